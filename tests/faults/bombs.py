"""Small files that claim much: they have to be refused quickly and without memory for what they claim."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable

from tests.faults.payloads import (
    Call,
    Name,
    as_legacy,
    as_zip,
    dumps,
    instructions,
    safetensors,
    state_dict,
    storage,
    tensor,
)

MANY = 990_000
_START = b"\x80\x02"


def bombs(many: int = MANY) -> dict[str, Callable[[], bytes]]:
    """Files of weights by name; each is made when it is called.

    Args:
        many: How often instructions and the like are repeated; the default is just below what a reader allows.
    """
    return {**_claims(), **_archives(), **_views(), **_calls(), **_floods(many), **_headers(many)}


def text_bombs() -> dict[str, bytes]:
    """Recipes and reports."""
    return {
        "aliases.yaml": b"a: &a [x, x]\n"
        + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in range(98, 122)),
        "nested.yaml": b"a: " + b"[" * 500_000,
        "nested.json": b"[" * 5_000_000,
        "nested.objects.json": b'{"schema":' * 1_000_000,
        "digits.json": b'{"schema": ' + b"9" * 5_000_000 + b"}",
        "digits.yaml": b"a: " + b"9" * 900_000,
    }


def _claims() -> dict[str, Callable[[], bytes]]:
    huge = 10**12
    claim = tensor(storage("0", huge), (huge,), (1,))
    two = 1 << 29
    keys = pickle.dumps(["0"], 2)
    old = tensor(storage("0", huge, legacy=True), (huge,), (1,))
    return {
        "10^12 numbers": lambda: as_zip(state_dict(claim), _0=bytes(8)),
        "2 GiB": lambda: as_zip(state_dict(tensor(storage("0", two), (two,), (1,))), _0=bytes(1024)),
        "negative": lambda: as_zip(state_dict(tensor(storage("0", -1), (1,), (1,))), _0=bytes(8)),
        "10^12 numbers in a legacy file": lambda: as_legacy(state_dict(old), keys=keys, numbers=bytes(16)),
        "10^12 numbers twice": lambda: as_legacy(
            state_dict(old), keys=keys, numbers=struct.pack("<q", huge) + bytes(16)
        ),
        "a text of 4 GiB": lambda: as_zip(_START + b"X\xff\xff\xff\xff" + b"abc"),
        "a name without end": lambda: as_zip(_START + b"c" + b"a" * 5_000_000),
        "a memo of 2^32": lambda: as_zip(_START + b"]r\xff\xff\xff\xff."),
        "two sizes": lambda: as_zip(
            state_dict(
                *(tensor(storage("0", 2, kind), (2,), (1,)) for kind in ("torch.FloatStorage", "torch.IntStorage"))
            ),
            _0=bytes(8),
        ),
    }


def _archives() -> dict[str, Callable[[], bytes]]:
    deflated = 8
    good = as_zip(state_dict(tensor(storage("0", 2), (2,), (1,))), _0=bytes(8))
    end = good.rindex(b"PK\5\6")

    def patched(offset: int, layout: str, value: int) -> bytes:
        content = bytearray(good)
        struct.pack_into(layout, content, offset, value)
        return bytes(content)

    central = good.index(b"PK\1\2")
    return {
        "a pickle that expands": lambda: as_zip(_START + b"]" + b"0" * 60_000_000, method=deflated),
        "numbers that expand": lambda: as_zip(b"", method=deflated, _0=bytes(50_000_000)),
        "65535 entries": lambda: patched(end + 10, "<H", 65535),
        "a directory of 4 GiB": lambda: patched(end + 12, "<L", 0xFFFFFFF0),
        "an entry of 4 GiB": lambda: patched(patched_at(good, b"archive/data/0") + 20, "<L", 0xFFFFFFF0),
        "an entry elsewhere": lambda: patched(central + 42, "<L", 0xFFFFFF0),
        "entries over each other": lambda: _overlapping(good),
        "2^60 entries": lambda: _wide(good, 1 << 60),
    }


def patched_at(content: bytes, name: bytes) -> int:
    """Where the record of an entry begins in the central directory."""
    return content.rindex(name) - 46


def _overlapping(good: bytes) -> bytes:
    """Every entry of the directory points at the first."""
    content = bytearray(good)
    place = good.index(b"PK\1\2")
    while content[place : place + 4] == b"PK\1\2":
        struct.pack_into("<L", content, place + 42, 0)
        lengths = struct.unpack_from("<3H", content, place + 28)
        place += 46 + sum(lengths)
    return bytes(content)


def _wide(good: bytes, count: int) -> bytes:
    """The same with a zip64 record that claims many entries."""
    end = good.rindex(b"PK\5\6")
    start = good.index(b"PK\1\2")
    record = b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, end - start, start)
    return good[:end] + record + b"PK\6\7" + struct.pack("<LQL", 0, end, 1) + good[end:]


def _views() -> dict[str, Callable[[], bytes]]:
    note = storage("0", 1000)
    numbers = bytes(4000)
    return {
        "one number repeated": lambda: as_zip(state_dict(tensor(note, (10**6, 10**6), (0, 0))), _0=numbers),
        "an impossible shape": lambda: as_zip(state_dict(tensor(note, (1 << 62, 1 << 62), (0, 0))), _0=numbers),
        "far away": lambda: as_zip(state_dict(tensor(note, (2,), (10**9,))), _0=numbers),
        "behind the end": lambda: as_zip(state_dict(tensor(note, (2,), (1,), 10**9)), _0=numbers),
        "before the start": lambda: as_zip(state_dict(tensor(note, (2,), (-1,))), _0=numbers),
        "windows": lambda: as_zip(state_dict(tensor(note, (998, 3), (1, 1))), _0=numbers),
        "overlapping": lambda: as_zip(state_dict(*_shifted()), _0=bytes(40_000_000)),
    }


def _shifted() -> list[bytes]:
    note = storage("0", 10_000_000)
    return [tensor(note, (9_000_000,), (1,), offset) for offset in range(500)]


def _calls() -> dict[str, Callable[[], bytes]]:
    calls = {
        "bytearray": Call("builtins.bytearray", 10**11),
        "torch.Tensor": Call("torch.Tensor", 10**11),
        "torch.FloatTensor": Call("torch.FloatTensor", 10**11),
        "UntypedStorage": Call("torch.storage.UntypedStorage", 10**11),
        "meta": Call("torch._utils._rebuild_meta_tensor_no_storage", Name("torch.float32"), (10**6,), (1,), False),
        "list of a range": Call("builtins.list", Call("builtins.range", 10**11)),
        "repeated text": Call("operator.mul", "x", 10**11),
        "power": Call("builtins.pow", 10, 10**9),
        "codec": Call("_codecs.encode", "x" * 1000, "idna"),
        "counter": Call("collections.Counter", [1] * 100),
    }
    made = {f"call of {name}": (lambda call=call: as_zip(dumps(call))) for name, call in calls.items()}
    new = _START + b"ctorch\nFloatTensor\n" + instructions((10**11,)) + b"\x81."
    return {**made, "a new torch.FloatTensor": lambda: as_zip(new)}


def _floods(many: int) -> dict[str, Callable[[], bytes]]:
    keys = b"".join(instructions(place * ((1 << 61) - 1)) + b"N" for place in range(1, 100))
    module = b"\x80\x02cmine\nNet\n)\x81q\0}("
    parts = b"X\x0b\0\0\0_parameters}X\x08\0\0\0_buffers}X\x08\0\0\0_modules}("
    shared = b"Nq\1" + b"".join(b"cmine\nNet\n)\x81}(" + parts + b"X\1\0\0\0ah\1X\1\0\0\0bh\1uubq\1" for _ in range(60))
    objects = b"cm\nf\nq\0](" + b"h\0)R" * (many * 8 // 33) + b"e."
    named = (
        b"]("
        + b"".join(b"cm\nf%d\n)R" % place for place in range(1900))
        + b"cm\nx\nq\0"
        + b"h\0)R" * (many // 10)
        + b"e."
    )
    return {
        "too many instructions": lambda: as_zip(_START + b"](" + b"]" * (2 * MANY) + b"e."),
        "lists": lambda: as_zip(_START + b"](" + b"]" * many + b"e."),
        "nested lists": lambda: as_zip(_START + b"]" * (many // 2) + b"a" * (many // 2 - 1) + b"."),
        "nested tuples": lambda: as_zip(_START + b")" + b"\x85" * many + b"."),
        "memo": lambda: as_zip(
            _START + b"]" + b"".join(b"r" + struct.pack("<I", place) for place in range(many)) + b"."
        ),
        "marks": lambda: as_zip(_START + b"(" * many),
        "objects": lambda: as_zip(_START + objects),
        "objects of many names": lambda: as_zip(_START + named),
        "keys that collide": lambda: as_zip(_START + b"}(" + keys + b"u."),
        "keys that share parts": lambda: as_zip(_START + b"](K\1K\2\x86q\1" + b"h\1h\1\x86q\1" * 100 + b"e}h\1Ns."),
        "modules that share modules": lambda: as_zip(module + parts + b"X\1\0\0\0a" + shared + b"uub."),
    }


def _headers(many: int) -> dict[str, Callable[[], bytes]]:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    far = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    flat = {"a": {"dtype": "F32", "shape": [1] * 1_000_000, "data_offsets": [0, 4]}}

    def tensors(count: int) -> bytes:
        return json.dumps({f"t{place}": entry for place in range(count)}).encode()

    def manifest(text: str) -> bytes:
        return json.dumps({"__metadata__": {"prunecli.manifest": text}}).encode()

    return {
        "a header of 2^60 bytes": lambda: safetensors(b"{}", length=1 << 60),
        "a header of 70 MB": lambda: safetensors(b'{"' + b"a" * 70_000_000),
        "120,000 tensors": lambda: safetensors(tensors(120_000), bytes(4)),
        "tensors over each other": lambda: safetensors(tensors(many // 11), bytes(4)),
        "a tensor of 4 TiB": lambda: safetensors(json.dumps(far).encode(), bytes(4)),
        "a million dimensions": lambda: safetensors(json.dumps(flat).encode(), bytes(4)),
        "nested JSON": lambda: safetensors(b'{"a":' + b"[" * 10_000_000),
        "a nested manifest": lambda: safetensors(manifest('{"schema":' + "[" * 10_000_000)),
        "a manifest of one number": lambda: safetensors(manifest('{"schema":' + "9" * 10_000_000)),
        "a manifest of many numbers": lambda: safetensors(manifest("[" + "1," * (10 * many) + "1]")),
    }
