"""What kind of file something is, judged by its content and never by its name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from prunecli.checkpoint.archive import Damaged, Entry, read_directory
from prunecli.errors import ModelError

Kind = Literal["safetensors", "torch", "legacy"]
"""Formats that can be read: safetensors, and the two of torch.save (a zip file, or a sequence of pickles)."""

_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_HEAD = 4096
_GIVE_WEIGHTS = "give a file of weights (safetensors, or written by torch.save)"
_UNPACK = "unpack it and give the weights file inside"

_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "run `git lfs pull` to fetch it"),
    (b"\x89PNG", "a PNG image", _GIVE_WEIGHTS),
    (b"\xff\xd8\xff", "a JPEG image", _GIVE_WEIGHTS),
    (b"GIF8", "a GIF image", _GIVE_WEIGHTS),
    (b"%PDF", "a PDF document", _GIVE_WEIGHTS),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, perhaps from Keras", "convert it to a PyTorch state dict first"),
    (b"GGUF", "a GGUF file", "give the weights it was converted from"),
    (b"\x93NUMPY", "a NumPy array", "save named tensors with torch.save or safetensors"),
    (b"\x7fELF", "an executable program", _GIVE_WEIGHTS),
)


@contextmanager
def open_weights(path: Path) -> Iterator[tuple[BinaryIO, Kind]]:
    """Opens a weights file and identifies its format.

    Raises:
        ModelError: It cannot be opened, or is not a weights file.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise refusal(path, f"cannot be opened ({error.strerror})", "check its name and its permissions") from error
    with file:
        yield file, _kind_of(file, path)


def _kind_of(file: BinaryIO, path: Path) -> Kind:
    """Identifies the format by the first bytes and, for a zip file, by its entries.

    Raises:
        ModelError: It cannot be read; the message says what it is and what to do.
    """
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    head = file.read(_HEAD)
    if not size:
        raise refusal(path, "is empty", "fetch or save the file again")
    if not any(head):
        raise refusal(path, "begins with nothing but zero bytes", "fetch or copy the file again")
    if head.startswith(b"PK\3\4"):
        return _kind_of_zip(file, size, path)
    if head[:1] == b"\x80" and _LEGACY_MAGIC in head[:32]:
        return "legacy"
    if head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if 8 + length <= size:
            return "safetensors"
        raise refusal(path, f"is cut short: its header claims {length:,} bytes", "fetch or save the file again")
    raise refusal(path, *_describe(head))


def entries_of(file: BinaryIO, size: int, path: Path) -> dict[str, Entry]:
    """The entries of a zip file by name.

    Raises:
        ModelError: It cannot be read safely.
    """
    try:
        return read_directory(file, size)
    except Damaged as error:
        raise refusal(path, f"is not readable as a zip file: {error.cause}", error.remedy) from error


def refusal(path: Path, cause: str, remedy: str) -> ModelError:
    """Returns the error for a file that is refused.

    Args:
        path: The file.
        cause: A clause with the file as its subject, such as "is empty".
        remedy: What to do about it.
    """
    return ModelError(f"{path}: {cause}; {remedy}")


def _kind_of_zip(file: BinaryIO, size: int, path: Path) -> Kind:
    names = entries_of(file, size, path)
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise refusal(
            path,
            "is a TorchScript program, not weights",
            f"convert it where you trust it: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')",
        )
    if _is_exported(names, inside):
        raise refusal(
            path,
            "is a program saved by torch.export, not weights",
            f"convert it where you trust it: torch.save(torch.export.load({path.name!r}).state_dict, 'weights.pt')",
        )
    if "data.pkl" in inside:
        return "torch"
    if all(name.endswith(".npy") for name in names):
        raise refusal(path, "is a NumPy archive", "save named tensors with torch.save or safetensors")
    if "model.weights.h5" in names:
        raise refusal(path, "is a Keras model", "convert it to a PyTorch state dict first")
    raise refusal(path, "is a zip archive that torch.save did not write", _UNPACK)


def _is_exported(names: Collection[str], inside: Collection[str]) -> bool:
    older = any(name.startswith("serialized_exported_program") for name in (*names, *inside))
    return older or "archive_format" in inside or any(name.startswith("models/") for name in inside)


def _describe(head: bytes) -> tuple[str, str]:
    for signature, kind, remedy in _SIGNATURES:
        if head.startswith(signature):
            return f"is {kind}", remedy
    if head[257:262] == b"ustar":
        return "is a tar archive", _UNPACK
    if head[:1] == b"\x80":
        return "is a Python pickle that torch.save did not write", "save `model.state_dict()` with torch.save"
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model", "convert it to a PyTorch state dict first"
    if head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head[:64].lower()):
        return "is an ONNX model", "give the weights it was exported from"
    text = _text(head)
    if text is not None:
        return _describe_text(text)
    start = head[:4].hex(" ")
    return f"is not a known kind of weights file (it begins with {start})", _GIVE_WEIGHTS


def _text(head: bytes) -> str | None:
    """The head of a text file; None for anything else."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # otherwise a character was cut in two
            return None
        text = head[: error.start].decode("utf-8-sig")
    return text if all(character.isprintable() or character in "\r\n\t\f" for character in text) else None


def _describe_text(text: str) -> tuple[str, str]:
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body", "<script")):
        return "is a web page", "download the file itself, not the page that shows it"
    if start.startswith("<"):
        return "is an XML document, perhaps a server's error message", "download the file again"
    if "weight_map" in text:
        return "is a list of weight files", "give a model with all its weights in one file"
    return "is a JSON document" if start.startswith(("{", "[")) else "is a text file", _GIVE_WEIGHTS
