"""What pages say of the files that the program writes: reports and manifests."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

from prunecli.cli.reference.markdown import code, kind, prose, table, value


def report_sections(_: str) -> str:
    """A section for each part of a report."""
    from prunecli.report import schema

    parts = (schema.Report, schema.ModelInfo, schema.DataInfo, schema.Metrics, schema.Latency)
    return _sections((*parts, schema.LayerEnergy, schema.NeuronRates))


def manifest_sections(_: str) -> str:
    """A section for each part of a manifest."""
    from prunecli.checkpoint import manifest

    parts = (
        *(manifest.Manifest, manifest.Architecture, manifest.InputNormalisation, manifest.Edit),
        *(manifest.RemovedBlock, manifest.TokenSelection, manifest.TokenStage, manifest.RuntimeChange),
        *(manifest.Masks, manifest.UsedVocabulary, manifest.UsedTokenizer),
        *(manifest.Step, manifest.UsedData, manifest.UsedLabel, manifest.Untouched),
    )
    return _sections(parts)


def condition_names(_: str) -> str:
    """Every figure that a condition of `compare` may name."""
    from prunecli.report.comparison import GATE_NAMES

    return ", ".join(map(code, GATE_NAMES)) + "."


def _sections(models: tuple[Any, ...]) -> str:
    links = {model: f"[{model.__name__}](#{model.__name__.lower()})" for model in models}
    return "\n\n".join(_section(model, links) for model in models)


def _section(model: Any, links: dict[Any, str]) -> str:
    doc = inspect.getdoc(model) or ""
    text, _, attributes = doc.partition("Attributes:\n")
    described = {
        match["name"]: " ".join(match["text"].split())
        for match in re.finditer(r"^ {4}(?P<name>\w+): (?P<text>.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    }
    rows = [
        (
            code(field.alias or name),
            kind(field.annotation, links),
            "required" if field.is_required() else value(_default(field)),
            prose(described.get(name) or _of_part(field.annotation, links)) or "-",
        )
        for name, field in model.model_fields.items()
    ]
    columns = ("key", "type", "default", "meaning")
    if not described:
        columns, rows = columns[:3], [row[:3] for row in rows]  # type: ignore[assignment, misc]
    return f"### {model.__name__}\n\n{prose(text.strip())}\n\n{table(columns, rows)}"


def _of_part(annotation: Any, links: dict[Any, str]) -> str:
    """The beginning of what is said of the class of a field that says nothing itself."""
    parts = (annotation, *get_args(annotation))
    return next((re.split(r";|\.(?=\s|$)", str(part.__doc__))[0] + "." for part in parts if part in links), "")


def _default(field: Any) -> Any:
    return field.get_default(call_default_factory=True)


def requirement_names(_: str) -> str:
    """Every figure that a condition of `eval` may name."""
    from prunecli.report.schema import METRIC_NAMES

    return ", ".join(map(code, METRIC_NAMES)) + "."
