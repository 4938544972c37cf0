"""Files that are not what their name says: each with the cause and the remedy that have to be named."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save

from prunecli.checkpoint.header import MANIFEST_KEY
from tests.faults.payloads import Call, Name, as_legacy, as_zip, dumps, safetensors, state_dict, storage, tensor


@dataclass(frozen=True)
class BadFile:
    """A file that has to be refused.

    Attributes:
        name: What kind it is.
        content: Its bytes.
        cause: What the line has to say about it.
        remedy: What the line has to advise.
        suffixes: What it is called, for instance ".pt".
    """

    name: str
    content: bytes
    cause: str
    remedy: str
    suffixes: tuple[str, ...] = (".pt", ".safetensors")


def bad_files() -> list[BadFile]:
    """One file of every kind, from empty to nested garbage."""
    return [*_other_formats(), *_cut_short(), *_wrong_content(), *_nested(), *_not_finite()]


def good_torch_file() -> bytes:
    """A file of torch.save with a state dict."""
    stream = io.BytesIO()
    torch.save({"a.weight": torch.arange(64.0).reshape(8, 8), "a.bias": torch.ones(8)}, stream)
    return stream.getvalue()


def good_legacy_file() -> bytes:
    """The same before torch wrote zip files."""
    stream = io.BytesIO()
    weights = {"a.weight": torch.arange(64.0).reshape(8, 8), "a.bias": torch.ones(8)}
    torch.save(weights, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def good_safetensors() -> bytes:
    """The same as safetensors."""
    return bytes(save({"a.weight": torch.arange(64.0).reshape(8, 8), "a.bias": torch.ones(8)}))


def _other_formats() -> list[BadFile]:
    page = b"<!DOCTYPE html>\n<html><body>Not found</body></html>"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 102530333\n"
    image = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(13) + struct.pack(">I", zlib.crc32(b""))
    return [
        BadFile("empty", b"", "is empty", "fetch or save"),
        BadFile("web page", page, "a web page", "download the file itself"),
        BadFile("XML", b'<?xml version="1.0"?><Error/>', "an XML document", "download the file again"),
        BadFile("LFS pointer", pointer, "Git LFS pointer", "git lfs pull"),
        BadFile("PNG", image, "a PNG image", "give a file of weights"),
        BadFile("JPEG", b"\xff\xd8\xff\xe0" + bytes(64), "a JPEG image", "give a file of weights"),
        BadFile("zeros", bytes(4096), "nothing but zero bytes", "fetch or copy"),
        BadFile("gzip", gzip.compress(b"x" * 100), "compressed with gzip", "unpack it"),
        BadFile("tar", _tar(), "a tar archive", "unpack it"),
        BadFile("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file", "convert it"),
        BadFile("GGUF", b"GGUF\3\0\0\0" + bytes(64), "a GGUF file", "converted from"),
        BadFile("ONNX", b"\x08\x07\x12\x07pytorch\x1a" + b"\x05" * 64, "an ONNX model", "exported from"),
        BadFile("JSON", b'{"a": [1, 2]}', "a JSON document", "give a file of weights"),
        BadFile("index", b'{"weight_map": {"a": "model-00001.safetensors"}}', "a list of weight files", "in one file"),
        BadFile("text", "Gewichte für später\n".encode(), "a text file", "give a file of weights"),
        BadFile("pickle", pickle.dumps({"a": 1}), "a Python pickle", "torch.save"),
        BadFile("npy", _npy(), "a NumPy array", "named tensors"),
        BadFile("npz", _npz(), "a NumPy archive", "named tensors"),
        BadFile("zip", _zip({"a.txt": b"hello"}), "torch.save did not write", "unpack it"),
        BadFile("noise", bytes(range(7, 255)) * 9, "not a known kind of weights file", "give a file of weights"),
        BadFile("TorchScript", _torchscript(), "a TorchScript program", r"torch\.jit\.load\('"),
        BadFile(
            "TorchScript data", _zip({"m/constants.pkl": b"", "m/data.pkl": b""}), "TorchScript", r"torch\.jit\.load\('"
        ),
        BadFile("pt2", _exported(), "a program saved by torch.export", r"torch\.export\.load\('", (".pt2", ".pt")),
        BadFile(
            "older pt2", _zip({"serialized_exported_program.json": b"{}"}), "torch.export", r"torch\.export\.load\('"
        ),
    ]


def _cut_short() -> list[BadFile]:
    zipped, legacy, plain = good_torch_file(), good_legacy_file(), good_safetensors()
    return [
        BadFile("zip cut", zipped[: len(zipped) // 2], "cut short", "fetch or save"),
        BadFile("zip with more", zipped + b"more", "added at its end", "fetch or save"),
        BadFile("legacy cut in the numbers", legacy[:-40], "does not have|cut short", "fetch or save"),
        BadFile("legacy cut in the pickle", legacy[:200], "cut short or damaged", "fetch or save"),
        BadFile("safetensors cut in the numbers", plain[:-4], "", "fetch or make"),
        BadFile("safetensors cut in the header", plain[:60], "is cut short", "fetch or save"),
        BadFile("wrong magic", b"\x89" + zipped[1:], "not a known kind of weights file", "give a file of weights"),
        BadFile("wrong magic of legacy", legacy.replace(b"\xfc\x9cF", b"\xfc\x9cG"), "a Python pickle", "torch.save"),
        BadFile("wrong magic of a pickle", as_zip(b"hello"), "instruction b'h'|cut short or damaged", "save"),
    ]


def _wrong_content() -> list[BadFile]:
    foreign = json.dumps({"__metadata__": {MANIFEST_KEY: '{"schema":"prunecli.manifest/9"}'}}).encode()
    other = json.dumps({"__metadata__": {MANIFEST_KEY: '{"schema":"other","sha256":""}'}}).encode()
    nested = io.BytesIO()
    torch.save({"epoch": 3, "args": [1, 2]}, nested)
    listed = io.BytesIO()
    torch.save([torch.ones(2)], listed)
    number = io.BytesIO()
    torch.save({"model": {"state_dict": 7}}, number)
    sparse = io.BytesIO()
    torch.save({"a": torch.eye(3).to_sparse()}, sparse)
    return [
        BadFile("later schema", safetensors(foreign), "prunecli.manifest/9", "another version"),
        BadFile("wrong schema", safetensors(other), "schema 'other'", "altered"),
        BadFile("no JSON", safetensors(b"{not json}"), "not valid JSON", "fetch or make"),
        BadFile("no mapping", safetensors(b'{"a": 3}'), "claims a tensor 'a'", "fetch or make"),
        BadFile("no tensors in safetensors", safetensors(b"{}"), "holds no tensors", "give a file of weights"),
        BadFile("no tensors", nested.getvalue(), "holds no tensors", "state dict"),
        BadFile("list", listed.getvalue(), "holds a list", "state_dict"),
        BadFile("number", number.getvalue(), "holds no tensors", "state dict"),
        BadFile("sparse", sparse.getvalue(), "sparse tensors", "dense tensors"),
        BadFile(
            "missing numbers", as_zip(state_dict(tensor(storage("0", 2), (2,), (1,)))), "are missing", "fetch or save"
        ),
        BadFile("quantized", as_zip(dumps(Call("torch._utils._rebuild_qtensor"))), "quantized", "dense tensors"),
        BadFile("subclass", as_zip(_subclass()), "class 'numpy.ndarray'", "dense tensors"),
        BadFile("shell", as_zip(dumps(Call("os.system", "true"))), "'os.system' when it is unpickled", "hostile"),
    ]


def _nested() -> list[BadFile]:
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    pairs = b"\x80\x02](K\1K\2\x86q\1" + b"h\1h\1\x86q\1" * 60 + b"e}h\1Ns."
    wrapped: dict[str, object] = {"a": torch.ones(2)}
    for _ in range(20):
        wrapped = {"model": wrapped}
    stream = io.BytesIO()
    torch.save(wrapped, stream)
    return [
        BadFile("deep list", as_zip(deep), "holds a list", "state_dict"),
        BadFile("deep list of legacy", as_legacy(deep), "holds a list", "state_dict"),
        BadFile("shared pairs", as_zip(pairs), "nested keys", "state_dict"),
        BadFile("wrapped", stream.getvalue(), "over and over", "state_dict"),
        BadFile("deep JSON", safetensors(b'{"a":' + b"[" * 100_000), "not valid JSON", "fetch or make"),
        BadFile("many marks", as_zip(b"\x80\x02" + b"(" * 500_000), "nested too deeply", "state_dict"),
        BadFile("itself", as_zip(_module_in_itself()), "nested too deeply", "fetch or save"),
    ]


def _not_finite() -> list[BadFile]:
    files = []
    for name, value in (("NaN", torch.nan), ("Inf", -torch.inf)):
        weights = {f"layer{i}.weight": torch.tensor([1.0, value]) for i in range(5)} | {"fine": torch.ones(1)}
        cause = "'layer0.weight', 'layer1.weight', 'layer2.weight' and 2 more hold NaN"
        stream = io.BytesIO()
        torch.save(weights, stream)
        files.append(BadFile(f"{name} in safetensors", bytes(save(weights)), cause, "--allow-nonfinite"))
        files.append(BadFile(f"{name} of torch.save", stream.getvalue(), cause, "--allow-nonfinite"))
    return files


def _module_in_itself() -> bytes:
    """A module that is its own child."""
    empty = b"X\x0b\0\0\0_parameters}X\x08\0\0\0_buffers}X\x08\0\0\0_modules}"
    return b"\x80\x02cmine\nNet\n)\x81q\0}(" + empty + b"X\5\0\0\0childh\0sub."


def _subclass() -> bytes:
    kind = Call(
        "torch._tensor._rebuild_from_type_v2", Name("torch._utils._rebuild_tensor_v2"), Name("numpy.ndarray"), (), {}
    )
    return dumps(kind)


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return stream.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _torchscript() -> bytes:
    stream = io.BytesIO()
    example = (torch.ones(1, 3),)
    torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), example), stream)
    return stream.getvalue()


def _exported() -> bytes:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),)), stream)
    return stream.getvalue()
