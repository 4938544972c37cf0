"""On a trained network it matters which tokens stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from prunecli.cli.output import Output
from prunecli.measure.counts import Macs
from prunecli.methods.params import TokenParams
from prunecli.methods.token import TokenMethod, at_random, plan_selection
from prunecli.pipeline.stages.runtime import compare_changes
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe
from prunecli.tokens import runtime, selectors
from prunecli.tokens.selectors import AttentionInputs, Choice
from prunecli.tokens.towers import find_tower, token_count
from tests.processes import Processes

SIZE = [f"--model-kwargs={size}" for size in ("img_size=16", "patch_size=1", "embed_dim=64", "depth=3", "num_heads=4")]
TRAINING = ("--epochs", 10, "--batch-size", 32, "--optimizer", "adamw", "--lr", 0.002)
Chosen = tuple[Tensor, Tensor | None]


def inverted(choice: Choice, inputs: AttentionInputs) -> Chosen:
    """The tokens that matter least stay."""
    importance = selectors._importance(inputs, inputs.keys())[:, inputs.prefix :]
    return (-importance).topk(choice.kept, dim=1).indices.sort(dim=1).values, None


@pytest.fixture(scope="module")
def trained(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision transformer that knows digits; one convolution before its patches makes it learn in seconds."""
    folder = tmp_path_factory.mktemp("trained")
    done = processes.run(
        ("train", "timm:vit_tiny_r_s16_p8_224", *SIZE, "--data", "digits", *TRAINING, "-o", "vit.safetensors"), folder
    )
    assert done.code == 0, done.err
    return folder / "vit.safetensors"


def test_random_and_inverted_choices_lose_more(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the tokens go before the second of three blocks; all digits lie in the middle, so reuse is no mistake."""
    recipe = Recipe(model=ModelSection(weights=str(trained)), data=DataSection(name="digits"))
    space = Workspace(recipe, Output("quiet"))
    model = space.model().model.eval()
    tower = find_tower(model)
    tokens = token_count(model, tower, space.inputs.example())
    chosen = {
        selector: plan_selection(TokenParams(selector=selector), tower, tokens)  # type: ignore[arg-type]
        for selector in ("anchor", "cls", "diversity", "evit", "tome")
    }
    at_any = {f"random {seed}": at_random(chosen["cls"], tower, seed) for seed in range(5)}
    found = top1(space, {"unpruned": None, **chosen, **at_any})
    with monkeypatch.context() as patched:
        patched.setattr(runtime, "choose", inverted)
        found["inverted"] = top1(space, {"unpruned": None, "cls": chosen["cls"]})["cls"]
    assert found["unpruned"] >= 80
    worse = max(sum(found[name] for name in at_any) / len(at_any), found["inverted"])
    assert all(found[selector] > worse + 5 for selector in chosen), found


def top1(space: Workspace, selections: dict[str, runtime.TokenSelection | None]) -> dict[str, float]:
    """Accuracies by name."""
    variants = compare_changes(space, TokenMethod(), selections, dict.fromkeys(selections, Macs(0)))
    return {v.name: v.metrics.top1 for v in variants if v.metrics is not None and v.metrics.top1 is not None}
