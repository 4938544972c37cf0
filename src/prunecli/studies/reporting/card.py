"""A model card for the Hugging Face hub, with huggingface_hub's own classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.errors import RecipeError
from prunecli.models.catalog import split_reference
from prunecli.report.page import Code, Page, Section, Text
from prunecli.report.page_markdown import page_markdown
from prunecli.report.schema import Report
from prunecli.report.scores import SCORES
from prunecli.studies.reporting.material import Material

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_TASKS = {
    "classification": "image-classification",
    "zeroshot": "zero-shot-image-classification",
    "linear-probe": "image-feature-extraction",
    "retrieval": "zero-shot-image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "word-language": "text-generation",
    "character-language": "text-generation",
    "token-language": "text-generation",
    "masked-language": "fill-mask",
    "token-classification": "token-classification",
}
"""Tasks by the names that the hub has for them."""
_METRICS = {"top1": "accuracy", "top5": "accuracy", "miou": "mean_iou", "map50_95": "mAP", "perplexity": "perplexity"}


def model_card(material: Material, page: Page) -> str:
    """The card: what hub searches read, how to load the network, and the report as Markdown.

    Args:
        material: With the checkpoint that is to be published, its last one.
        page: The report about it.

    Raises:
        RecipeError: There is no checkpoint.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if not material.manifests:
        raise RecipeError("--card is about a checkpoint, and none was given; name the .safetensors file as well")
    path, manifest = next(reversed(material.manifests.items()))
    reports = list(material.reports.values())
    report = next((r for r in reversed(reports) if r.data is not None), None)
    source, _, name = manifest.architecture.ref.partition(":")
    data = ModelCardData(
        library_name="prunecli",
        tags=["pruning", "model-compression", *([source] if source else [])],
        pipeline_tag=_TASKS.get(report.data.task or "") if report is not None and report.data is not None else None,
        base_model=name if source == "hf" and "/" in name and split_reference(manifest.architecture.ref) else None,
        model_name=path.stem,
        eval_results=_results(report) if report is not None else None,
    )
    use = Section(
        "use",
        "Use it",
        [
            Text("The widths of its layers are in the header of the file, so it is opened with prunecli:"),
            Code("pip install prunecli", "sh"),
            Code(_loading(path), "python"),
        ],
    )
    shown = dataclasses.replace(page, sections=[use, *page.sections])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{page_markdown(shown)}"))


def _results(report: Report) -> list[EvalResult] | None:
    from huggingface_hub import EvalResult

    data, metrics = report.data, report.metrics
    if data is None:
        return None
    results = [
        EvalResult(
            task_type=_TASKS.get(data.task or "", data.task or "other"),
            dataset_type=data.name,
            dataset_name=f"{data.name} ({data.split}, {data.images} samples)",
            metric_type=_METRICS.get(score.name, score.name),
            metric_name=f"{score.label}{' (%)' if score.unit else ''}",
            metric_value=getattr(metrics, score.name),
        )
        for score in SCORES
        if getattr(metrics, score.name) is not None
    ]
    return results or None


def _loading(path: Path) -> str:
    return f'import prunecli\n\nmodel = prunecli.load("{path.name}").eval()'
