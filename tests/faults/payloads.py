"""Files that run code wherever they are unpickled: each creates a folder, the sentinel."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Call:
    """An object whose pickle calls a function.

    Args:
        function: Its module and name, with a dot between.
        *arguments: What it is called with; other calls may be among them.
    """

    def __init__(self, function: str, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


def dumps(value: Any) -> bytes:
    """Pickles plain values and calls by name at protocol 2, as torch.save does, whatever is installed."""
    return b"\x80\x02" + instructions(value) + b"."


def instructions(value: Any) -> bytes:
    """The part of a pickle that makes one value."""
    if isinstance(value, Call):
        module, _, name = value.function.rpartition(".")
        return f"c{module}\n{name}\n".encode() + instructions(value.arguments) + b"R"
    if isinstance(value, Name):
        module, _, name = value.rpartition(".")
        return f"c{module}\n{name}\n".encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(instructions, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(instructions, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(instructions(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, bytes):
        return instructions(Call("_codecs.encode", value.decode("latin1"), "latin1"))
    return pickle.dumps(value, 2)[2:-1]


class Name(str):
    """A class or function that is pickled by its dotted name."""


def hostile(folder: Path) -> dict[str, bytes]:
    """Pickles by name, each of which makes `folder` when it is read with `pickle.loads`."""
    path = str(folder)
    code = f"import os; os.mkdir({path!r})"
    make = Call("os.mkdir", path)
    module = folder.parent / "sentinel_module.py"
    module.write_text(code, encoding="utf-8")
    calls = {
        "os.mkdir": make,
        "os.system": Call("os.system", f"mkdir {path}"),
        "posix.system": Call("posix.system", f"mkdir {path}"),
        "posix.mkdir": Call("posix.mkdir", path),
        "os.popen": Call("builtins.getattr", Call("os.popen", f"mkdir {path}"), "read"),
        "subprocess.call": Call("subprocess.call", ["mkdir", path]),
        "subprocess.check_output": Call("subprocess.check_output", ["mkdir", path]),
        "subprocess.getoutput": Call("subprocess.getoutput", f"mkdir {path}"),
        "builtins.eval": Call("builtins.eval", f"__import__('os').mkdir({path!r})"),
        "builtins.exec": Call("builtins.exec", code),
        "__builtin__.eval": Call("__builtin__.eval", f"__import__('os').mkdir({path!r})"),
        "compile and exec": Call("builtins.exec", Call("builtins.compile", code, "x", "exec")),
        "getattr": Call("builtins.getattr", Call("builtins.__import__", "os"), "mkdir"),
        "pathlib": Call("builtins.getattr", Call("pathlib.PosixPath", path), "mkdir"),
        "os.makedirs": Call("os.makedirs", path),
        "shutil.copytree": Call("shutil.copytree", str(folder.parent / "source"), path),
        "timeit": Call("timeit.timeit", "pass", code, Name("time.perf_counter"), 1),
        "profile": Call("cProfile.run", code),
        "runpy": Call("runpy.run_path", str(module)),
        "code": Call("builtins.getattr", Call("code.InteractiveInterpreter"), "runsource"),
        "partial": Call("builtins.list", Call("builtins.map", Call("functools.partial", Name("os.mkdir")), [path])),
        "map": Call("builtins.list", Call("builtins.map", Name("os.mkdir"), [path])),
        "methodcaller": Call("operator.methodcaller", "mkdir", path),
        "nested pickle": Call("pickle.loads", dumps(make)),
        "torch.fx": Call("torch.fx.graph_module._exec_with_source", code, {}),
        "yaml": Call("yaml.unsafe_load", f"!!python/object/apply:os.mkdir ['{path}']"),
        "ordered": Call("collections.OrderedDict", Call("builtins.map", Name("os.mkdir"), [path])),
        "counter": Call("collections.Counter", Call("builtins.map", Name("os.mkdir"), [path])),
        "set": Call("builtins.set", Call("builtins.map", Name("os.mkdir"), [path])),
        "bytearray": Call("builtins.bytearray", Call("builtins.map", Name("os.mkdir"), [path])),
        "from_type": Call("torch._tensor._rebuild_from_type_v2", Name("os.mkdir"), Name("torch.Tensor"), (path,), {}),
    }
    pickles = {name: dumps(call) for name, call in calls.items()}
    # Calls that hand back a function are finished by calling that.
    finish: dict[str, tuple[Any, ...]] = {
        "getattr": (path,),
        "pathlib": (),
        "os.popen": (),
        "code": (code,),
        "methodcaller": (Call("builtins.__import__", "os"),),
    }
    for name, arguments in finish.items():
        pickles[name] = pickles[name][:-1] + instructions(arguments) + b"R."
    line = path.encode() + b"\n"
    pickles["INST"] = b"(S'" + path.encode() + b"'\nios\nmkdir\n."
    pickles["OBJ"] = b"(cos\nmkdir\nV" + line + b"o."
    pickles["STACK_GLOBAL"] = pickle.PROTO + b"\x04\x8c\x02os\x8c\x05mkdir\x93" + instructions((path,)) + b"R."
    pickles["memo"] = b"\x80\x02cos\nmkdir\nq\x00h\x00" + instructions((path,)) + b"R."
    pickles["protocol 0"] = b"cos\nmkdir\n(V" + line + b"tR."
    pickles["BUILD"] = _setattr(code)
    return pickles


def _setattr(code: str) -> bytes:
    """Fills an object with state whose items are objects that run code."""
    return (
        b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00a" + instructions(Call("builtins.exec", code)) + b"sb."
    )


Wrap = Callable[[bytes], bytes]


def wrappings() -> dict[str, Wrap]:
    """Ways to make a file of a pickle."""
    return {"alone": lambda content: content, "zip": as_zip, "legacy": as_legacy, "tar": as_tar}


def as_zip(content: bytes, *, method: int = 0, **records: bytes) -> bytes:
    """A file such as torch.save writes, with `content` as its pickle and further records."""
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        for name, record in records.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", record)
        archive.writestr("archive/version", b"3\n")
    return stream.getvalue()


def as_legacy(content: bytes, *, keys: bytes = b"\x80\x02].", numbers: bytes = b"") -> bytes:
    """A file such as torch.save wrote before it wrote zip files."""
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join((*head, content, keys, numbers))


def as_tar(content: bytes) -> bytes:
    """A file such as the first versions of torch wrote."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for name, data in (("storages", dumps(0)), ("tensors", dumps(0)), ("pickle", content)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def storage(key: str, count: int, kind: str = "torch.FloatStorage", *, legacy: bool = False) -> bytes:
    """Instructions for the note that stands for a storage."""
    view: tuple[None, ...] = (None,) if legacy else ()
    return instructions(("storage", Name(kind), key, "cpu", count, *view)) + b"Q"


def tensor(note: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """Instructions that rebuild a tensor from the note of its storage."""
    rest = b"".join(map(instructions, (offset, shape, strides, False, Call("collections.OrderedDict"))))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + note + rest + b"tR"


def state_dict(*tensors: bytes) -> bytes:
    """A pickle of tensors named t0, t1, ..."""
    items = b"".join(instructions(f"t{place}") + made for place, made in enumerate(tensors))
    return b"\x80\x02}(" + items + b"u."


def safetensors(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def beside_weights(content: bytes) -> bytes:
    """A pickle of weights with another pickle's value among them."""
    body = content[2:-1] if content[:2] == b"\x80\x02" else content[:-1]
    return b"\x80\x02}(" + instructions("w") + tensor(storage("0", 2), (2,), (1,)) + instructions("x") + body + b"u."


def weights() -> bytes:
    """The numbers of the tensor in `beside_weights`."""
    return bytes(torch.ones(2).numpy().tobytes())
