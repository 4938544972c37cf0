"""What a report is made of: the files that it is given, or those in the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecli.checkpoint.header import read_manifest
from prunecli.checkpoint.manifest import Manifest
from prunecli.errors import RecipeError
from prunecli.pipeline.run_folder import PLAN_NAME, RUN_NAME
from prunecli.pipeline.sweep_cells import read_cells
from prunecli.report.audit import Audit, read_audit
from prunecli.report.auto import AutoReport, read_auto
from prunecli.report.comparison import Comparison, read_comparison
from prunecli.report.contest import Contest, read_contest
from prunecli.report.numbers import number_of
from prunecli.report.schema import Report, read_report
from prunecli.report.sweep import is_sweep, paths_of

_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".svg": "svg"}
_LARGEST_PICTURE = 16 << 20
_METRICS = ".metrics.jsonl"
_KINDS = (
    "reports (.json), checkpoints (.safetensors), logs of training (.metrics.jsonl), pictures, or the folder of a run"
)
_HEAD = 4096


@dataclass
class Material:
    """Everything that a report can speak about, each by its file, in the order in which it was given.

    Attributes:
        title: What the report is called, unless somebody says otherwise.
        reports: Figures of networks, the baseline first.
        manifests: What checkpoints say about themselves.
        training: Rows of logs, one for each epoch.
        comparisons: Comparisons that were made already, with paired latencies.
        audits: Studies of criteria.
        contests: Comparisons of methods.
        searches: Searches for the smallest network.
        pictures: Picture files.
        plans: Plans of runs, as YAML.
        cautions: What the reader should know about the files.
        labels: What files of a sweep are called: the values of their cells.
    """

    title: str = ""
    reports: dict[Path, Report] = field(default_factory=dict)
    manifests: dict[Path, Manifest] = field(default_factory=dict)
    training: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)
    comparisons: dict[Path, Comparison] = field(default_factory=dict)
    audits: dict[Path, Audit] = field(default_factory=dict)
    contests: dict[Path, Contest] = field(default_factory=dict)
    searches: dict[Path, AutoReport] = field(default_factory=dict)
    pictures: dict[Path, tuple[str, bytes]] = field(default_factory=dict)
    plans: dict[Path, str] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)
    labels: dict[Path, str] = field(default_factory=dict)

    def names(self, paths: Sequence[Path]) -> list[str]:
        """File names, or whole paths where two files share a name; of cells, their values."""
        names = [self.labels.get(path, path.name) for path in paths]
        return names if len(set(names)) == len(names) else [str(path) for path in paths]


def collect(paths: Sequence[Path]) -> Material:
    """Reads what a report is made of.

    Args:
        paths: Files, and folders of runs.

    Raises:
        RecipeError: There is nothing, a folder holds nothing to report, or a file is of no kind that reports have.
        ModelError: A checkpoint is damaged.
    """
    material = Material(title=", ".join(path.resolve().name for path in paths))
    for path in paths:
        if path.is_dir() and is_sweep(path):
            _collect_sweep(path, material)
        elif path.is_dir():
            _collect_folder(path, material)
        else:
            _collect_file(path, material)
    return material


def _collect_folder(folder: Path, material: Material) -> None:
    record = folder / RUN_NAME
    files = _files_of_run(record, material) if record.is_file() else []
    logs = [log for file in files if (log := file.with_name(file.stem + _METRICS)).is_file()]
    if not record.is_file():
        files = sorted(file for file in folder.iterdir() if file.suffix == ".json" and _schema_of(file) is not None)
        files += sorted(file for file in folder.glob("*.safetensors") if read_manifest(file) is not None)
        logs = sorted(folder.glob(f"*{_METRICS}"))
    if not files:
        raise RecipeError(
            f"{folder}: holds no reports; give the folder of `prune run`, or files that `prune eval -o` wrote"
        )
    pictures = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES and file.is_file())
    for file in (*files, *logs, *pictures):
        _collect_file(file, material)
    plan = folder / PLAN_NAME
    if plan.is_file():
        material.plans[plan] = plan.read_text(encoding="utf-8", errors="replace")


def _collect_sweep(folder: Path, material: Material) -> None:
    """The dense network and every finished cell of a sweep, which may be running."""
    rows = read_cells(folder)
    for label, path in paths_of(folder, rows):
        _collect_file(path, material)
        material.labels[path] = label
    for status in ("failed", "damaged"):
        named = [f"{row.label} ({row.error})" for row in rows if row.status == status]
        if named:
            cells = number_of(len(named), f"{status} cell")
            material.cautions.append(f"{folder}: {cells} left out: {'; '.join(named)}")


def _files_of_run(record: Path, material: Material) -> list[Path]:
    """The files that a run has written, in its order."""
    try:
        stages = json.loads(record.read_text(encoding="utf-8"))["stages"]
        names = [Path(str(stage["path"])).name for stage in stages]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{record}: is damaged; give the reports of the run one by one") from error
    files = [record.with_name(name) for name in names]
    gone = [file.name for file in files if not file.is_file()]
    if gone:
        material.cautions.append(f"{record.parent}: {', '.join(gone)} of this run no longer there")
    return [file for file in files if file.is_file()]


def _collect_file(path: Path, material: Material) -> None:
    if not path.is_file():
        raise RecipeError(f"{path}: no such file or folder; give {_KINDS}")
    suffix = path.suffix.lower()
    if suffix == ".json":
        _collect_document(path, material)
    elif suffix == ".safetensors":
        manifest = read_manifest(path)
        if manifest is None:
            raise RecipeError(f"{path}: holds no pruning manifest, so there is nothing to report; give a checkpoint")
        material.manifests[path] = manifest
    elif suffix == ".jsonl":
        material.training[path] = _rows(path)
    elif suffix in _PICTURES:
        size = path.stat().st_size
        if size > _LARGEST_PICTURE:
            raise RecipeError(f"{path}: is over {_LARGEST_PICTURE:,} bytes, too large for a page; make it smaller")
        material.pictures[path] = (_PICTURES[suffix], path.read_bytes())
    else:
        raise RecipeError(f"{path}: is nothing that a report is made of; give {_KINDS}")


def _collect_document(path: Path, material: Material) -> None:
    readers: Mapping[str, tuple[Callable[[Path], Any], dict[Path, Any]]] = {
        "prunecli.report/": (read_report, material.reports),
        "prunecli.comparison/": (read_comparison, material.comparisons),
        "prunecli.audit/": (read_audit, material.audits),
        "prunecli.contest/": (read_contest, material.contests),
        "prunecli.auto/": (read_auto, material.searches),
    }
    schema = _schema_of(path)
    for start, (read, place) in readers.items():
        if schema is not None and schema.startswith(start):
            place[path] = read(path)
            return
    material.reports[path] = read_report(path)  # which says what is wrong with it


def _schema_of(path: Path) -> str | None:
    """The schema that one of our JSON files names, by its first lines."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD).decode("utf-8", errors="replace")
    except OSError:
        return None
    start = head.find('"prunecli.')
    return None if start < 0 else head[start + 1 :].partition('"')[0]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log of training; a line that a crash cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("epoch"), int):
            rows.append(row)
    if not rows:
        raise RecipeError(f"{path}: holds no epochs; give the .metrics.jsonl that `prune train` wrote")
    return rows
