"""Mutated files: whatever a byte is, only a PruneError may escape from what reads them.

`run_fuzz` mutates at random, `run_coverage_guided` lets atheris (libFuzzer) look for ways into the code. Both give
counts of what became of the files, and stop at the first exception of another kind with the bytes that led to it.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prunecli.errors import PruneError
from tests.faults.payloads import as_zip, safetensors

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TARGETS = ("weights", "pickle", "header", "checkpoint", "manifest", "recipe", "plan", "report", "tokenizer", "table")
GUIDED = ("weights", "pickle", "manifest", "recipe")
_TOKENS = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f",
    b"-1",
    b"1e999",
    b'"',
    b"{",
    b"[",
    b"}",
    b"]",
    b"\n",
    b"R",
    b"q\0",
    b"h\0",
)
_MAX_LENGTH = 1 << 16


class Escaped(AssertionError):
    """An exception that no user should see; carries the bytes that led to it."""

    def __init__(self, target: str, content: bytes, error: BaseException) -> None:
        super().__init__(f"{target}: {type(error).__name__}: {error} from {content[:2000]!r}")
        self.content = content


@cache
def seeds(target: str) -> list[bytes]:
    """Good and bad files to begin with."""
    from tests.faults import damage

    if target in ("recipe", "plan", "report"):
        from prunecli.report.schema import Metrics, ModelInfo, Report

        recipes = [path.read_bytes() for path in sorted((REPOSITORY / "recipes").glob("*.yaml"))]
        reports = [
            Report(model=ModelInfo(ref="timm:resnet18", input_shape=(3, 8, 8)), metrics=Metrics(top1=1.0))
            .to_json()
            .encode()
        ]
        return reports if target == "report" else recipes
    if target == "manifest":
        return [_manifest().to_json().encode()]
    if target == "checkpoint":
        return [_checkpoint()]
    if target == "header":
        return [content[8 : 8 + int.from_bytes(content[:8], "little")] for content in (_checkpoint(), _plain())]
    if target == "pickle":
        return [_records()["archive/data.pkl"]]
    if target == "tokenizer":
        return [_tokenizer()]
    if target == "table":
        return list(_tables())
    bad = [bad.content for bad in damage.bad_files() if len(bad.content) < _MAX_LENGTH]
    good = [damage.good_torch_file(), damage.good_legacy_file(), damage.good_safetensors(), _whole(False), _whole(True)]
    return [*good * 4, *bad]


def reader(target: str) -> Callable[[Path], Any]:
    """What reads a file of that kind."""
    from prunecli.checkpoint import foreign_files, io, manifest
    from prunecli.recipe import loader, resolve
    from prunecli.report import schema

    def weights(path: Path) -> Any:
        return io.read_manifest(path) or foreign_files.read_foreign(path, allow_nonfinite=True)

    def manifest_text(path: Path) -> Any:
        text = path.read_bytes().decode("utf-8", "replace")
        return manifest.parse_manifest(text, path, intact=True)

    readers: dict[str, Callable[[Path], Any]] = {
        "weights": weights,
        "pickle": weights,
        "header": weights,
        "checkpoint": io.read_checkpoint,
        "manifest": manifest_text,
        "recipe": loader.load_yaml,
        "plan": resolve.load_plan,
        "report": schema.read_report,
        "tokenizer": _read_tokenizer,
        "table": _read_table,
    }
    return readers[target]


def _read_tokenizer(path: Path) -> Any:
    from prunecli.data.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(str(path))
    return tokenizer.encode(["the cat sat"], str(path)), tokenizer.passages(["a cat"], ["sat"], 8, str(path))


def _read_table(path: Path) -> Any:
    from prunecli.data.text_tables import Columns, read_table

    first = path.read_bytes()[:1]
    named = path.with_suffix({b"P": ".parquet", b"{": ".jsonl"}.get(first, ".csv"))
    named.write_bytes(path.read_bytes())
    return read_table((named,), Columns(labelled=True))


@cache
def _tokenizer() -> bytes:
    from prunecli.data.tokenizer_training import train_tokenizer

    return train_tokenizer(["the cat sat on the mat " * 9], 270).signature()


@cache
def _tables() -> tuple[bytes, ...]:
    import io

    import pyarrow
    from pyarrow import parquet

    rows = [{"text": f"the cat sat {number} times", "label": number % 2} for number in range(20)]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    cells = b"text,label\n" + b"".join(f'"a, {row["text"]}",{row["label"]}\n'.encode() for row in rows)
    return buffer.getvalue(), lines, cells


def outcome(target: str, content: bytes, path: Path, read: Callable[[Path], Any] | None = None) -> str:
    """Reads one file.

    Returns:
        "read" or "refused".

    Raises:
        Escaped: Something else than a PruneError came out of it, or its message is no single line.
    """
    path.write_bytes(enclosed(target, content))
    try:
        (read or reader(target))(path)
    except PruneError as error:
        message = str(error)
        if "\n" in message or not message.startswith(str(path.parent)) or len(message) > 2000:
            raise Escaped(target, content, error) from error
        return "refused"
    except BaseException as error:
        raise Escaped(target, content, error) from error
    return "read"


def enclosed(target: str, content: bytes) -> bytes:
    """A whole file around what is mutated: torch's zip file around a pickle, and a right length before a header."""
    if target == "pickle":
        numbers = {name.rpartition("/")[2]: data for name, data in _records().items() if "/data/" in name}
        return as_zip(content, **{f"_{key}": data for key, data in numbers.items()})
    if target == "header":
        return safetensors(content, bytes(320))
    return content


def mutate(content: bytes, random: random.Random) -> bytes:
    """Flips, removes, repeats, overwrites or inserts at a few places."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        place = random.randrange(len(data) + 1)
        span = random.choice((1, 1, 2, 4, 8, 64, 512))
        match random.randrange(7):
            case 0 if place < len(data):
                data[place] ^= 1 << random.randrange(8)
            case 1 if place < len(data):
                data[place] = random.randrange(256)
            case 2:
                del data[place : place + span]
            case 3:
                data[place:place] = data[place : place + span]
            case 4:
                data[place:place] = random.choice(_TOKENS)
            case 5:
                number = random.choice((0, 1, -1, 255, 2**31 - 1, -(2**31), 2**31, 10**9))
                data[place : place + 4] = struct.pack("<q", number)[:4]
            case _:
                source = random.randrange(len(data) + 1)
                data[place : place + span] = data[source : source + span]
    return bytes(data[:_MAX_LENGTH])


def run_fuzz(target: str, count: int, seed: int, folder: Path | None = None) -> Counter[str]:
    """Reads `count` mutated files of one kind.

    Args:
        target: One of `TARGETS`.
        count: How many.
        seed: Of the mutations.
        folder: Where the file lies; a temporary folder without it.

    Returns:
        How many were read and how many refused.

    Raises:
        Escaped: Something else than a PruneError came out of a reader.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return run_fuzz(target, count, seed, Path(made))
    chance = random.Random(seed)
    begin, read = seeds(target), reader(target)
    path = folder / "file"
    found = Counter[str]()
    while found.total() < count:
        content = chance.choice(begin)
        changed = mutate(content, chance)
        if changed != content:
            found[outcome(target, changed, path, read)] += 1
    return found


def run_coverage_guided(target: str, count: int, seed: int) -> Counter[str]:
    """Reads `count` files that atheris makes up by watching which code they reach.

    Args:
        target: One of `GUIDED`.
        count: How many.
        seed: Of libFuzzer.

    Returns:
        How many were read and how many refused.

    Raises:
        ImportError: atheris is not installed.
        Escaped: Something else than a PruneError came out of a reader.
    """
    import atheris  # noqa: F401

    with tempfile.TemporaryDirectory() as made:
        corpus = Path(made) / "corpus"
        corpus.mkdir()
        for place, content in enumerate(seeds(target)):
            (corpus / str(place)).write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.fuzzing", target, str(count), str(seed), made],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        escaped = Path(made) / "escaped"
        if escaped.exists():
            raise Escaped(target, escaped.read_bytes(), RuntimeError(done.stderr[-2000:]))
        if not (Path(made) / "counts.json").exists():
            raise RuntimeError(done.stderr[-4000:])
        return Counter(json.loads((Path(made) / "counts.json").read_text(encoding="utf-8")))


def _main(target: str, count: int, seed: int, folder: Path) -> None:
    """The process in which atheris runs, for libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["prunecli.checkpoint", "prunecli.recipe"]):
        read = reader(target)
    counts: Counter[str] = Counter()
    path = folder / "file"

    def test_one_input(content: bytes) -> None:
        try:
            counts[outcome(target, content, path, read)] += 1
        except Escaped:
            (folder / "escaped").write_bytes(content)
            raise
        if counts.total() >= count:
            (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")

    options = [f"-runs={count}", f"-seed={max(seed, 1)}", f"-max_len={_MAX_LENGTH}", "-rss_limit_mb=0", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], test_one_input)
    atheris.Fuzz()


def _manifest() -> Any:
    from prunecli.checkpoint.manifest import Architecture, Edit, InputNormalisation, Manifest, Step, Untouched

    return Manifest(
        architecture=Architecture(ref="cifar:resnet20", kwargs={"num_classes": 7}, input_shape=(3, 32, 32)),
        normalisation=InputNormalisation(mean=(0.5,), std=(0.5,)),
        attributes={"conv1": {"out_channels": 8}},
        edits=[Edit(group="a", width_before=4, width_after=2, keep_indices=[0, 3], layers=["a"])],
        history=[Step(stage="prune", figures={"params": 1.5}, untouched=[Untouched(name="a", channels=1, reason="b")])],
        aliases={"b": "a"},
    )


def _checkpoint() -> bytes:
    import torch

    from prunecli.checkpoint.io import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        write_checkpoint(path, {"a": torch.arange(6.0), "h": torch.ones(2, 3).half()}, _manifest())
        return path.read_bytes()


def _plain() -> bytes:
    from tests.faults import damage

    return damage.good_safetensors()


@cache
def _records() -> dict[str, bytes]:
    """The entries of a whole model."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(_whole(False))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _whole(legacy: bool) -> bytes:
    import io

    import torch

    stream = io.BytesIO()
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save({"model": model, "x": [1, 2.5, "a", None]}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _arguments(words: Sequence[str]) -> tuple[str, int, int, Path]:
    target, count, seed, folder = words
    return target, int(count), int(seed), Path(folder)


if __name__ == "__main__":
    _main(*_arguments(sys.argv[1:]))
