"""Sections about what was done to a network: widths, scores, layers left alone, history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prunecli.checkpoint.contents import contents_of
from prunecli.checkpoint.manifest import Manifest, Masks, Step
from prunecli.report.inspection_tables import history_tables
from prunecli.report.page import Block, Picture, Rows, Section, Text
from prunecli.report.page_plots import Width, pooled, scores_plot, widths_plot
from prunecli.report.pruning_tables import left_alone_tables, reconstruction_tables, repair_tables, scoring_tables
from prunecli.report.table import Table
from prunecli.studies.methods_used import method_of

_DRAWN = 80
"""Groups whose widths are drawn; more are in the table alone."""


def summary(manifest: Manifest) -> str:
    """What was done, in a sentence: "cifar:resnet20: train (12 epochs), prune (l1 ratio=0.5)"."""
    steps = []
    for step in manifest.history:
        achieved, epochs = step.figures.get("achieved"), step.figures.get("epochs")
        parts = next((part for part in ("blocks", "experts") if part in step.figures), "channels")
        removed = f"{100 * achieved:.1f} % of {parts} removed" if isinstance(achieved, float) else ""
        details = [method_of(step), removed, f"{epochs} epochs" if epochs else ""]
        told = ", ".join(detail for detail in details if detail)
        steps.append(f"{step.stage} ({told})" if told else step.stage)
    network = manifest.architecture.ref or manifest.architecture.class_name or "a network"
    return f"{network}: {', '.join(steps)}" if steps else network


def history_section(manifest: Manifest, path: Path) -> Section:
    """Every stage that a checkpoint went through, with the files in between."""
    rows = [
        (
            f"{number}. {step.stage}",
            method_of(step),
            step.parent or "-",
            (step.parent_sha256 or "-")[:16],
            f"{step.data.images:,} of {step.data.name} ({step.data.fingerprint})" if step.data else "-",
            str(step.seed),
        )
        for number, step in enumerate(manifest.history, start=1)
    ]
    columns = ("stage", "method", "started from", "its sha256", "data", "seed")
    blocks: list[Block] = [
        Text(f"The file is {path}; its header has the hash {manifest.sha256 or '(none)'}."),
        Rows(Table(columns, rows), "Lineage"),
    ]
    details = history_tables([_brief(step) for step in manifest.history], [method_of(s) for s in manifest.history])
    blocks += [Rows(table, f"Settings and figures of {table.columns[0]}", long=True) for table in details]
    return Section("history", "History", blocks)


def widths_sections(manifest: Manifest, path: Path) -> list[Section]:
    """Channels of each group before and after, masks and tokens; no section where nothing was removed.

    Args:
        manifest: The manifest of a checkpoint.
        path: The checkpoint, where zeros are counted if it has masks.
    """
    widths = widths_of(manifest)
    parts = [
        f"{block.name} ({'passes on its input' if block.left == 'identity' else 'taken out'})"
        for block in manifest.blocks
    ]
    blocks: list[Block] = []
    if widths:
        table = Table(
            ("group", "before", "after", "kept", "layers"),
            [
                (width.name, str(width.before), str(width.after), f"{100 * width.after / width.before:.0f} %", layers)
                for width, layers in widths.items()
            ],
            numeric=(1, 2, 3),
        )
        before, after = (sum(getattr(width, side) for width in widths) for side in ("before", "after"))
        said = f"{after:,} of {before:,} channels stay, in {len(widths)} groups of layers"
        if len(widths) <= _DRAWN:
            drawn = widths_plot(list(widths))
            blocks.append(Picture(drawn, "svg", "Channels by group, before and after", said, table))
        else:
            blocks += [Text(said), Rows(table, "Channels by group", long=True)]
    if parts:
        blocks.append(Text(f"Parts that were removed whole: {', '.join(parts)}."))
    if manifest.masks is not None:
        blocks += _masked(manifest.masks, path)
    if manifest.tokens is not None:
        stages = [(str(s.block), str(s.kept), str(s.anchors)) for s in manifest.tokens.stages]
        blocks += [
            Text(f"Tokens are left out while it runs, by {manifest.tokens.selector}; {manifest.tokens.tokens} enter."),
            Rows(Table(("block", "patches kept", "anchors among them"), stages, numeric=(0, 1, 2))),
        ]
    return [Section("widths", "What was removed", blocks)] if blocks else []


def _masked(masks: Masks, path: Path) -> list[Block]:
    """How many weights of each masked tensor are not zero."""
    blocks: list[Block] = []
    if masks.weights:
        stored = contents_of(path, zeros=True).tensors
        known = {name: stored[name] for name in masks.weights if name in stored}
        left = [Width(name, tensor.numbers, tensor.numbers - (tensor.zeros or 0)) for name, tensor in known.items()]
        rows = [(w.name, f"{w.before:,}", f"{w.after:,}", f"{100 * w.after / max(w.before, 1):.1f} %") for w in left]
        table = Table(("tensor", "weights", "not zero", "share"), rows, numeric=(1, 2, 3))
        numbers, others = sum(width.before for width in left), sum(width.after for width in left)
        said = (
            f"{others:,} of {numbers:,} weights in masked tensors are not zero ({100 * others / max(numbers, 1):.1f} %)"
        )
        if len(left) <= _DRAWN:
            drawn = widths_plot(left, "weights")
            blocks.append(Picture(drawn, "svg", "Weights by tensor, all and those that are not zero", said, table))
        else:
            blocks += [Text(said), Rows(table, "Weights by tensor", long=True)]
    if masks.spikes:
        blocks.append(Text(f"Spikes are masked in {', '.join(masks.spikes)}."))
    return blocks


def widths_of(manifest: Manifest) -> dict[Width, str]:
    """Width of each group before its first edit and after its last, with the layers that belong to it."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    layers: dict[str, str] = {}
    for edit in manifest.edits:
        first.setdefault(edit.group, edit.width_before)
        last[edit.group], layers[edit.group] = edit.width_after, ", ".join(edit.layers)
    return {Width(name, first[name], last[name]): layers[name] for name in first}


def scores_sections(manifest: Manifest) -> list[Section]:
    """How scores of kept and removed channels were distributed, and what repairs came to; none without records."""
    step = manifest.last("prune")
    if step is None:
        return []
    scoring: Mapping[str, Any] = _mapping(step.figures.get("scoring"))
    histogram = _mapping(scoring.get("score_histogram"))
    blocks: list[Block] = []
    if histogram.get("groups"):
        counts = pooled(histogram["groups"])
        edges = histogram["edges"]
        rows = [
            (f"{low:.3f} to {high:.3f}", str(kept), str(removed))
            for low, high, kept, removed in zip(edges[:-1], edges[1:], counts["kept"], counts["removed"], strict=True)
        ]
        said = (
            f"{sum(counts['kept']):,} channels kept and {sum(counts['removed']):,} removed; each score is divided by "
            "the mean size of the scores in its group"
        )
        table = Table(("score / mean", "kept", "removed"), rows, numeric=(1, 2))
        blocks.append(Picture(scores_plot(histogram), "svg", "Scores of channels", said, table))
    blocks += [Rows(table) for table in scoring_tables(scoring)]
    trials = step.figures.get("repairs")
    if isinstance(trials, list):
        known = [SimpleNamespace(**trial) for trial in trials if isinstance(trial, dict)]
        blocks += [Rows(table, "Repairs that were compared") for table in repair_tables(known)]
    blocks += [Rows(table) for table in reconstruction_tables(_mapping(step.figures.get("reconstruction")))]
    return [Section("scores", "Scores and repairs", blocks)] if blocks else []


def untouched_sections(manifest: Manifest) -> list[Section]:
    """Every layer that kept its width, or more of it than was asked, and why."""
    reasons = {entry.name: entry.reason for step in manifest.history for entry in step.untouched}
    tables = left_alone_tables(reasons)
    blocks = [Rows(table) for table in tables]
    return [Section("left-alone", "Layers left alone", blocks)] if blocks else []


def commands_of(manifest: Manifest) -> list[str]:
    """The commands that made a checkpoint, each once."""
    return list(dict.fromkeys(step.command for step in manifest.history if step.command))


def _brief(step: Step) -> Step:
    """A step without figures that have a place of their own."""
    own = ("repairs", "reconstruction", "scoring")
    return step.model_copy(update={"figures": {k: v for k, v in step.figures.items() if k not in own and v != {}}})


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def versions_of(steps: Sequence[Step]) -> dict[str, str]:
    """Versions of libraries in the last step that names any."""
    return next((step.versions for step in reversed(steps) if step.versions), {})
