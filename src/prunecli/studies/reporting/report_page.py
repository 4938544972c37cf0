"""The page of a report: every section that its material has something for."""

from __future__ import annotations

from pathlib import Path

from prunecli import __version__
from prunecli.checkpoint.manifest import Manifest
from prunecli.errors import PruneError
from prunecli.pipeline.sink import Sink
from prunecli.report.page import Block, Code, Page, Picture, Rows, Section, Text
from prunecli.report.table import Table
from prunecli.studies.reporting.figures import (
    check_not_empty,
    compared,
    figure_sections,
    firing_sections,
    parts_section,
    study_sections,
    tiles_of,
)
from prunecli.studies.reporting.history import (
    commands_of,
    history_section,
    scores_sections,
    summary,
    untouched_sections,
    versions_of,
    widths_sections,
)
from prunecli.studies.reporting.material import Material
from prunecli.studies.reporting.training import training_sections


def page_of(material: Material, sink: Sink, *, measure: bool, command: str, title: str | None = None) -> Page:
    """Makes the page.

    Args:
        material: What it is about.
        sink: Receives notes.
        measure: Whether to load the last checkpoint and measure its parts beside those of the dense network.
        command: How to make the page again.
        title: Its title; default: the names of what was given.

    Raises:
        RecipeError: There is nothing to report.
    """
    check_not_empty(material)
    path, manifest = next(reversed(material.manifests.items()), (None, None))
    comparison = compared(material)
    sections = [Section("cautions", "Cautions", [Text(text, caution=True) for text in material.cautions])]
    sections += figure_sections(comparison, material)
    if manifest is not None and path is not None:
        sections += widths_sections(manifest, path)
        if measure and _changes_layers(manifest):
            sections += _measured(path, manifest, sink)
        sections += scores_sections(manifest)
    sections += [
        *firing_sections(material),
        *_picture_sections(material),
        *training_sections(material.training, manifest),
    ]
    sections += study_sections(material)
    if manifest is not None and path is not None:
        sections += [*untouched_sections(manifest), history_section(manifest, path)]
    sections += _recipe_sections(material)
    sections.append(_environment_section(material, manifest))
    sections.append(_again_section(material, manifest, command))
    return Page(
        title=title or material.title,
        subtitle=summary(manifest) if manifest is not None else _networks(material),
        tiles=tiles_of(comparison, list(material.reports.values())),
        sections=[section for section in sections if section.blocks],
        made_by=f"prune {__version__}",
    )


def _networks(material: Material) -> str:
    """The networks that reports and studies are about."""
    models = [report.model for report in material.reports.values()]
    models += [audit.model for audit in material.audits.values()]
    models += [model for contest in material.contests.values() for model in contest.models]
    models += [search.model for search in material.searches.values()]
    return ", ".join(dict.fromkeys(model.ref or model.path or "a network" for model in models))


def _changes_layers(manifest: Manifest) -> bool:
    return bool(manifest.edits or manifest.blocks)


def _measured(path: Path, manifest: Manifest, sink: Sink) -> list[Section]:
    """Where things went; of a network that cannot be loaded here, why."""
    from prunecli.studies.reporting.parts import measure_parts

    try:
        return [parts_section(measure_parts(path, manifest, sink))]
    except PruneError as error:
        sink.warn(f"parts of {path} were not measured: {error}")
        told = Text(f"Not measured, because the network could not be loaded here: {error}", caution=True)
        return [Section("parts", "Where parameters, MACs and time went", [told])]


def _picture_sections(material: Material) -> list[Section]:
    blocks = [
        Picture(content, form, path.name, "a picture that was given with the report")
        for path, (form, content) in material.pictures.items()
    ]
    return [Section("pictures", "Pictures", blocks)] if blocks else []


def _recipe_sections(material: Material) -> list[Section]:
    blocks: list[Block] = []
    for path, text in material.plans.items():
        blocks += [Text(f"Every value that was used, from {path}:"), Code(text, "yaml")]
    return [Section("recipe", "Recipe", blocks)] if blocks else []


def _environment_section(material: Material, manifest: Manifest | None) -> Section:
    environment = [report.environment for report in material.reports.values() if report.environment]
    rows = [(key, str(value)) for key, value in (environment[-1] if environment else {}).items()]
    versions = versions_of(manifest.history) if manifest is not None else {}
    rows += [(f"{name} (when pruned)", version) for name, version in versions.items()]
    return Section("environment", "Environment", [Rows(Table(("what", "value"), rows))] if rows else [])


def _again_section(material: Material, manifest: Manifest | None, command: str) -> Section:
    commands = commands_of(manifest) if manifest is not None else []
    commands += [report.command for report in material.reports.values() if report.command]
    commands += [audit.command for audit in material.audits.values() if audit.command]
    commands += [contest.command for contest in material.contests.values() if contest.command]
    commands += [search.command for search in material.searches.values() if search.command]
    return Section(
        "again",
        "Make it again",
        [Code("\n".join(dict.fromkeys(commands))), Text("This page:"), Code(command)] if commands else [Code(command)],
    )
