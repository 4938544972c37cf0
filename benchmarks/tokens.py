"""What dropping tokens saves and costs.

    python benchmarks/tokens.py speed -o benchmarks/results/tokens_speed.json
    PRUNE_DATA=DATA python benchmarks/tokens.py frontier MODEL --data cifar10 --blocks 1 3 -o out.json

`speed`: open_clip's ViT-B-16 with random weights (time does not depend on them) on one thread, the image tower alone:
61 of 197 tokens before block 1 and inside block 0, stages, ToMe with 13 and 16 pairs. The unpruned network, the
selection and the same number of random tokens are timed alternately, at batch 1 and 8. "limit" is the ratio of MACs if
choosing cost nothing. `frontier`: top-1 and agreement of every selector on a trained network, of random tokens with
several seeds, and of two deliberate mistakes with selector cls: using the first image's choice for all images
("reused"), and keeping the least important tokens ("inverted").
"""

from __future__ import annotations

import argparse
import copy
import json
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prunecli.cli.output import Output
from prunecli.measure.counts import count_macs
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import time_paired
from prunecli.methods.params import TokenParams
from prunecli.methods.runtime import get_runtime
from prunecli.methods.token import at_random, plan_selection
from prunecli.models.loading import load_reference
from prunecli.pipeline.stages.runtime import compare_changes
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe
from prunecli.tokens import runtime, selectors
from prunecli.tokens.runtime import tokens_pruned
from prunecli.tokens.selectors import AttentionInputs, Choice
from prunecli.tokens.towers import find_tower, token_count

CPU = torch.device("cpu")
SPEED: dict[str, dict[str, Any]] = {
    "anchor, 61 tokens before block 1": {"tokens": 61},
    "cls, 61 tokens before block 1": {"tokens": 61, "selector": "cls"},
    "anchor, 61 tokens inside block 0": {"tokens": 61, "block": 0, "inside": True},
    "anchor, stages 3:0.7 6:0.7 9:0.7": {"stages": ("3:0.7", "6:0.7", "9:0.7")},
    "tome, 13 pairs in every block": {"selector": "tome", "merge": 13, "block": 0},
    "tome, 16 pairs in every block": {"selector": "tome", "merge": 16, "block": 0},
}
SELECTORS = ("anchor", "cls", "diversity", "evit", "tome")
SEEDS = (0, 1, 2)


def speed(rounds: int) -> dict[str, Any]:
    """Limits and measured speed-ups."""
    torch.set_num_threads(1)
    model = load_reference("open_clip:ViT-B-16").model.visual.eval()  # type: ignore[union-attr, operator]
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tower = find_tower(model)
    tokens = token_count(model, tower, example)
    dense = count_macs(model, example).total
    rows: dict[str, Any] = {}
    for name, options in SPEED.items():
        selection = plan_selection(TokenParams(**options), tower, tokens)
        networks, macs = [model], []
        for variant in (selection, at_random(selection, tower, 0)):
            with tokens_pruned(model, variant):
                networks.append(copy.deepcopy(model))
                macs.append(count_macs(model, example).total)
        row: dict[str, Any] = {"limit": dense / macs[1], "macs": dense / macs[0]}
        for batch in (1, 8):
            images = example.expand(batch, -1, -1, -1).contiguous()
            timing = time_paired(networks, [images] * 3, rounds=rounds if batch == 1 else max(rounds // 3, 5))
            low, high = timing.ratio_intervals[1]
            row[f"batch {batch}"] = {
                "speedup": 1 / timing.ratios[1],
                "interval": [1 / high, 1 / low],
                "of_limit": 1 / timing.ratios[1] / row["limit"],
                "random": 1 / timing.ratios[2],
                "choosing_ms": timing.timings[1].median - timing.timings[2].median,
                "unpruned_ms": timing.timings[0].median,
            }
        rows[name] = row
        print(name, json.dumps(row), flush=True)
    return rows


def frontier(model: str, data: str, blocks: list[int], keeps: list[float]) -> list[dict[str, Any]]:
    """Rows of selector, block, share of tokens kept, seed, top-1, agreement, cosine and MACs."""
    recipe = Recipe(model=ModelSection(weights=model), data=DataSection(name=data))
    space = Workspace(recipe, Output("quiet"))
    network = space.model().model.eval()
    tower, example = find_tower(network), space.inputs.example()
    tokens = token_count(network, tower, example)
    ways: dict[tuple[Any, ...], Any] = {("unpruned", 0, 1.0, 0): None}
    for block, keep in product(blocks, keeps):
        for selector in SELECTORS:
            params = TokenParams(selector=selector, keep_share=keep, block=block)  # type: ignore[arg-type]
            ways[selector, block, keep, 0] = plan_selection(params, tower, tokens)
        for seed in SEEDS:
            ways["random", block, keep, seed] = at_random(ways["cls", block, keep, 0], tower, seed)
    named, macs, method = {str(key): way for key, way in ways.items()}, {}, get_runtime("token")
    for name, way in named.items():
        with method.applied(network, way):
            macs[name] = count_macs(network, example)
    variants = dict(zip(ways, compare_changes(space, method, named, macs), strict=True))
    for block, keep, kind in product(blocks, keeps, ("reused", "inverted")):
        key = str(("cls", block, keep, 0))
        with mock.patch.object(runtime, "choose", mistaken(kind)):
            ours = {"unpruned": None, key: ways["cls", block, keep, 0]}
            results = compare_changes(space, method, ours, macs | {"unpruned": macs[key]})
        variants[kind, block, keep, 0] = results[1]
    dense = variants["unpruned", 0, 1.0, 0].macs
    return [
        {
            "selector": selector,
            "block": block,
            "keep": keep,
            "seed": seed,
            "macs": result.macs / dense,
            "top1": getattr(result.metrics, "top1", None),
            "images": getattr(result.metrics, "images", None),
            "agreement": result.agreement,
            "cosine": result.cosine,
        }
        for (selector, block, keep, seed), result in variants.items()
    ]


def mistaken(kind: str) -> Any:
    """A deliberately wrong choice of tokens."""
    first: list[torch.Tensor] = []

    def choose(choice: Choice, seen: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        if kind == "inverted":
            importance = selectors._importance(seen, seen.keys())[:, seen.prefix :]
            return (-importance).topk(choice.kept, dim=1).indices.sort(dim=1).values, None
        if not first:
            first.append(selectors.choose(choice, seen)[0][:1])
        return first[0].expand(seen.x.shape[0], -1), None

    return choose


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "frontier"))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1])
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.15, 0.25, 0.5, 0.75])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.part == "speed":
        figures: Any = speed(arguments.rounds)
    else:
        figures = frontier(arguments.model, arguments.data, arguments.blocks, arguments.keeps)
    document = {"figures": figures, "environment": describe_environment(CPU)}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
