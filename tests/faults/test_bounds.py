"""Loading takes time and memory for what a file holds, not for what it claims."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from prunecli.checkpoint.foreign_files import read_foreign
from prunecli.checkpoint.io import read_checkpoint, write_checkpoint
from prunecli.checkpoint.manifest import Architecture, Edit, Manifest
from prunecli.errors import ModelError
from tests.conftest import REPOSITORY
from tests.faults.bombs import bombs, text_bombs

MEMORY = 1 << 30
SECONDS = 5
CAUSES = {
    "10^12 numbers": "claims 4,000,000,000,000 bytes, the file has 8",
    "10^12 numbers in a legacy file": "claims 4,000,000,000,000 bytes that the file does not have",
    "two sizes": "claims storage '0' twice",
    "numbers that expand": "is compressed",
    "entries over each other": "overlaps another one",
    "one number repeated": "repeats 1,000 numbers over and over",
    "behind the end": "does not fit its data",
    "overlapping": "its tensors overlap",
    "call of torch.Tensor": "calls 'torch.Tensor'",
    "too many instructions": "over 1,000,000 instructions",
    "keys that share parts": "nested keys",
    "keys that collide": "keys that do not belong in a state dict",
    "120,000 tensors": "over 100,000",
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
def test_files_that_claim_much_are_refused_quickly_and_in_little_memory(tmp_path: Path) -> None:
    files = {tmp_path / f"{place}.pt": (name, make) for place, (name, make) in enumerate(bombs().items())}
    for path, (_, make) in files.items():
        path.write_bytes(make())
    texts = text_bombs()
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.faults.limited",
            str(MEMORY),
            *map(str, files),
            *(tmp_path / name for name in texts),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {
        files[path][0] if (path := Path(name)) in files else path.name: it
        for name, it in json.loads(done.stdout).items()
    }
    assert len(found) == len(files) + len(texts)
    for name, (seconds, message) in found.items():
        assert seconds < SECONDS, (name, seconds)
        assert message and "\n" not in message, name
        assert "more memory than there is" not in message, name
        assert CAUSES.get(name, "") in message, (name, message)


def test_a_large_manifest_is_read(tmp_path: Path) -> None:
    indices = list(range(20_000))
    edits = [
        Edit(group=f"g{place}", width_before=40_000, width_after=20_000, keep_indices=indices, layers=["a"])
        for place in range(100)
    ]
    manifest = Manifest(architecture=Architecture(ref="cifar:resnet20"), edits=edits)
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"w": torch.ones(2)}, manifest)
    assert path.stat().st_size > 10_000_000
    assert read_checkpoint(path)[0].edits == edits


def test_many_tensors_are_read(tmp_path: Path) -> None:
    weights = {f"layer{place}.weight": torch.full((2,), float(place)) for place in range(10_000)}
    torch.save({"model": weights, "model_ema": weights, "epoch": 3}, tmp_path / "x.pt")
    assert len(read_foreign(tmp_path / "x.pt").tensors) == 10_000


def test_an_archive_with_wide_fields_is_read(tmp_path: Path) -> None:
    """Sizes and offsets of files over 4 GiB stand in a record of their own."""
    stream = io.BytesIO()
    torch.save({"a": torch.arange(5.0)}, stream)
    content = stream.getvalue()
    path = tmp_path / "x.pt"
    path.write_bytes(_with_wide_fields(content))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert torch.equal(read_foreign(path).tensors["a"], torch.arange(5.0))
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(5.0))


def test_data_of_one_storage_under_another_name_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.arange(5.0)}, stream)
    content = stream.getvalue()
    twice = content.replace(b"version", b"data/0x").replace(b"data/0x", b"DATA/0\0", 2)
    (tmp_path / "x.pt").write_bytes(twice)
    with pytest.raises(ModelError, match="zip"):
        read_foreign(tmp_path / "x.pt")


def _with_wide_fields(content: bytes) -> bytes:
    end64 = content.rindex(b"PK\6\6")
    (start,) = struct.unpack_from("<Q", content, end64 + 48)
    directory = b""
    place = start
    while content[place : place + 4] == b"PK\1\2":
        record = bytearray(content[place : place + 46])
        packed, size = struct.unpack_from("<2L", record, 20)
        name_length, extra_length, _ = struct.unpack_from("<3H", record, 28)
        (offset,) = struct.unpack_from("<L", record, 42)
        name = content[place + 46 : place + 46 + name_length]
        extra = struct.pack("<2H3Q", 1, 24, size, packed, offset)
        struct.pack_into("<2L2H", record, 20, 0xFFFFFFFF, 0xFFFFFFFF, name_length, len(extra))
        struct.pack_into("<L", record, 42, 0xFFFFFFFF)
        directory += bytes(record) + name + extra
        place += 46 + name_length + extra_length
    end = bytearray(content[end64:])
    struct.pack_into("<2Q", end, 40, len(directory), start)
    struct.pack_into("<Q", end, 56 + 8, start + len(directory))
    struct.pack_into("<2L", end, 56 + 20 + 12, len(directory), start)
    return content[:start] + directory + bytes(end)
