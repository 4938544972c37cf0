"""`prune token`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from prunecli.cli.declared import Command
from prunecli.cli.next_steps import after_pruning
from prunecli.cli.options import option, options_of, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, check_writable, checkpoint_path, prepare, show_pruning, stage_options
from prunecli.errors import RecipeError, unknown
from prunecli.methods.params import TokenParams, TokenSelector
from prunecli.methods.spec import MethodSpec
from prunecli.recipe.schema import PruneStage

if TYPE_CHECKING:
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.token_pictures import PictureRequest

_Number = TypeVar("_Number", int, float)
_IMAGES = 16
_SELECTORS = ",".join(get_args(TokenSelector))
_BLOCKS, _SHARES = "1", "0.25,0.5,0.75"
_TO_SEE = [
    option("extract_attention", str, "Write attention weights, of test images, to this file (.safetensors, .npz)."),
    option(
        "attention_block", list[int], "Blocks whose attention is written, may be given again; default: of the stages."
    ),
    option("overlay", str, "Draw test images in this folder, with patches that are left out greyed."),
    option("pictures", int, "Test images, from the first on, for both.", default=_IMAGES),
]
_OF_FRONTIER = ("frontier_selectors", "frontier_blocks", "frontier_shares")
_FRONTIER = [
    option("frontier", str, "Draw accuracy against MACs of many selections here (.png, .svg, .pdf); saves no network."),
    option("frontier_selectors", str, "Selectors to try, with commas.", default=_SELECTORS),
    option("frontier_blocks", str, "Blocks to begin at, with commas.", default=_BLOCKS),
    option("frontier_shares", str, "Shares of the tokens that stay, with commas.", default=_SHARES),
]
_OPTIONS = [
    *options_of(TokenParams, ("stages", "STAGE", "params")),
    *options_of(PruneStage, ("stages", "STAGE"), only=("latency_rounds",)),
    *_TO_SEE,
    *_FRONTIER,
    *stage_options("checkpoint"),
]


def method_command(spec: MethodSpec) -> Command:
    """The command."""

    def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
        _check_together(values)
        space = prepare(output, model, {"stage": "prune", "method": spec.name}, _OPTIONS, values)
        if space is not None:
            _run(output, space, spec.name, values)

    epilog = f"Paper: {spec.paper}" if spec.paper else None
    renamed = {"--keep": "--keep-share", "--frontier-keeps": "--frontier-shares"}
    return Command(spec.name, with_output(run, _OPTIONS), spec.summary, epilog, renamed=renamed)


def _run(output: Output, space: Workspace, suffix: str, values: dict[str, Any]) -> None:
    """Leaves tokens out, compares, and shows what stays on request."""
    stage = space.recipe.stages[0]
    assert isinstance(stage, PruneStage)
    if values["frontier"] is not None:
        _draw_frontier(output, space, stage, values)
        return
    from prunecli.pipeline.stages.prune import prune_stage
    from prunecli.pipeline.stages.runtime import RuntimeOutcome

    path, views = checkpoint_path(space, values, suffix), _views(values)
    if views is None:
        changed = prune_stage(space, stage, path)
        show_pruning(output, changed)
        after_pruning(output, space, changed.path, finetunes=False)
        return
    from prunecli.studies.token_pictures import check_request, write_attention, write_overlays

    check_request(space, views, TokenParams(**stage.params).selector, path)
    outcome = prune_stage(space, stage, path)
    assert isinstance(outcome, RuntimeOutcome)
    show_pruning(output, outcome)
    if views.attention is not None:
        write_attention(space, outcome.change, views.attention, views.blocks, views.count)
        output.note(f"wrote {views.attention}")
    if views.overlay is not None:
        write_overlays(space, outcome.change, views.overlay, views.count)
        output.note(f"drew pictures in {views.overlay}")


def _check_together(values: dict[str, Any]) -> None:
    """Options that belong to a frontier, and those that it has no use for.

    Raises:
        RecipeError: They are given without it, or with it.
    """
    drawn = values["frontier"] is not None
    of_one = ("keep_share", "tokens", "speedup", "k_anchors", "top_m", "stages", "merge", "selector", "block", "batch")
    unread = (
        (*of_one, "latency_rounds", "extract_attention", "overlay", "out", "save_recipe") if drawn else _OF_FRONTIER
    )
    given = [name for name in unread if values.get(name) not in (None, (), [])]
    flags = ", ".join("-o" if name == "out" else f"--{name.replace('_', '-')}" for name in given)
    if given and drawn:
        raise RecipeError(f"{flags}: --frontier tries many, times none and saves none; leave out what is for one")
    if given:
        raise RecipeError(f"{flags}: goes with --frontier: give the file to draw, too")


def _draw_frontier(output: Output, space: Workspace, stage: PruneStage, values: dict[str, Any]) -> None:
    """A row and a point for each selection."""
    picture = Path(values["frontier"])
    if picture.suffix not in (".png", ".svg", ".pdf"):
        raise RecipeError(f"--frontier {picture}: name it {picture.with_suffix('.png')}, or with .svg or .pdf")
    check_writable(picture, space.force)
    selectors: list[Any] = [name.strip() for name in (values["frontier_selectors"] or _SELECTORS).split(",")]
    for name in selectors:
        if name not in _SELECTORS.split(","):
            raise RecipeError(unknown("selector", name, _SELECTORS.split(",")))
    blocks = _numbers(values["frontier_blocks"] or _BLOCKS, "--frontier-blocks", int)
    shares = _numbers(values["frontier_shares"] or _SHARES, "--frontier-shares", float)
    from prunecli.report.table import Table
    from prunecli.report.token_tables import frontier_columns, frontier_row
    from prunecli.studies.token_frontier import token_frontier, write_frontier

    points = token_frontier(space, stage, selectors, blocks, shares)
    rows = [
        (point.selector, point.block, point.keep, point.macs_ratio, point.score, point.variant.agreement,
         point.variant.cosine)
        for point in points
    ]  # fmt: skip
    columns = frontier_columns(points[0].score_name)
    output.document([dict(zip(columns, row, strict=True)) for row in rows])
    output.table(Table(columns, [frontier_row(row) for row in rows], numeric=tuple(range(1, 7))))
    loaded = space.model()
    write_frontier(points, f"{Path(loaded.name).name} on {space.data().name}", picture, replace=space.force)
    output.note(f"wrote {picture}")


def _numbers(text: str, flag: str, kind: Callable[[str], _Number]) -> list[_Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"{flag} {text}: write numbers with commas") from None


def _views(values: dict[str, Any]) -> PictureRequest | None:
    """What is to be seen.

    Raises:
        RecipeError: An option is given without the one that it belongs to.
    """
    attention, overlay = values["extract_attention"], values["overlay"]
    if values["attention_block"] and attention is None:
        raise RecipeError("--attention-block goes with --extract-attention: give the file to write, too")
    if attention is None and overlay is None:
        if values["pictures"] is not None:
            raise RecipeError("--pictures goes with --extract-attention or --overlay: give one of them, too")
        return None
    from prunecli.studies.token_pictures import PictureRequest

    return PictureRequest(
        None if attention is None else Path(attention),
        tuple(dict.fromkeys(values["attention_block"] or ())),
        None if overlay is None else Path(overlay),
        _IMAGES if values["pictures"] is None else values["pictures"],
    )
