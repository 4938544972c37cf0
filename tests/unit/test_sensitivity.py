"""What each layer costs, and the ratios that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from prunecli.cli.output import Output
from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.magnitude import l1
from prunecli.errors import MethodError
from prunecli.inputs import split_batch
from prunecli.methods import ranking
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.pipeline.run import check_plan
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.resolve import load_plan
from prunecli.recipe.schema import DataSection, ModelSection, PruneStage, Recipe
from prunecli.report.plots import sensitivity_plot
from prunecli.studies import sensitivity
from prunecli.studies.layer_curves import Curve, Point, Sensitivity
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.tracing.trace import trace
from tests.conftest import Prune
from tests.unit.networks import Plain, example


def _curve(*points: tuple[float, float], name: str = "a") -> Curve:
    return Curve(name, 64, tuple(Point(share, share, 90 - drop, drop) for share, drop in points))


def test_a_ratio_is_read_off_the_curve() -> None:
    curve = _curve((0.2, 0.0), (0.4, 1.0), (0.6, 3.0))
    assert curve.ratio_within(0.5) == pytest.approx(0.3)
    assert curve.ratio_within(1.0) == pytest.approx(0.4)
    assert curve.ratio_within(2.0) == pytest.approx(0.5)
    assert curve.ratio_within(9.0) == 0.6  # nothing is known beyond that
    assert _curve((0.2, 1.0), (0.4, 0.5), (0.6, 2.0)).ratio_within(0.5) == pytest.approx(0.1)  # a dip is luck
    assert _curve((0.5, -0.3)).ratio_within(0.1) == 0.5


def _weights(widths: dict[str, float]) -> object:
    """A judge that knows what every removed channel of a layer costs."""

    def judge(model: nn.Module) -> float:
        lost = 0.0
        for name, cost in widths.items():
            layer = model.get_submodule(name)
            lost += cost * (dense[name] - layer.out_channels) / dense[name]  # type: ignore[operator]
        return 90.0 - lost

    dense = {"body.3": 64, "body.6": 64, "body.9": 64}
    return judge


def _study(costs: dict[str, float], repaired: list[int]) -> Sensitivity:
    model = Plain((16, 64, 64, 64)).eval()
    groups = trace(model, example()).groups
    scores = {name: value for name, value in l1(model, groups, Calibration()).items() if not isinstance(value, str)}

    def mend(before: nn.Module, after: nn.Module, live: list[ChannelGroup], keep: Keep) -> None:
        repaired.append(len(live))

    return Sensitivity(model, groups, scores, StructuralParams(), _weights(costs), mend)  # type: ignore[arg-type]


def test_curves_prune_one_layer_alone_and_proposals_hold_together() -> None:
    repaired: list[int] = []
    study = _study({"body.3": 1.0, "body.6": 4.0, "body.9": 40.0}, repaired)
    curves = [study.curve(name, [0.25, 0.5, 0.75]) for name in ("body.3", "body.6", "body.9")]
    assert repaired == [1] * 9
    assert [point.drop for point in curves[0].points] == pytest.approx([0.25, 0.5, 0.75])
    assert [point.drop for point in curves[2].points] == pytest.approx([10, 20, 30])
    proposal = study.propose(curves, 2.0)
    assert 1.5 < proposal.drop <= 2.0  # alone each would get 2 points, together 4.75
    assert proposal.ratios["body.3"] == 0.75 and proposal.ratios["body.9"] == 0
    assert proposal.accuracy == pytest.approx(90 - proposal.drop)
    widths = {name: round(64 * (1 - ratio)) for name, ratio in proposal.ratios.items()}
    assert all(width % 8 == 0 for width in widths.values())


def test_equal_widths_are_judged_once_and_nothing_within_the_drop_is_nothing() -> None:
    repaired: list[int] = []
    study = _study({"body.3": 100.0, "body.6": 100.0, "body.9": 100.0}, repaired)
    curve = study.curve("body.3", [0.5, 0.501, 0.01])
    assert len(repaired) == 1 and curve.points[0].drop == 0 and curve.points[1].drop == curve.points[2].drop
    proposal = study.propose([curve], 0.5)
    assert not any(proposal.ratios.values()) and proposal.drop == 0


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_plot_is_a_picture(form: str) -> None:
    curves = {f"layer{i}.conv": [(0.1, 0.1 * i), (0.5, 1.0 * i)] for i in range(30)}
    picture = sensitivity_plot(curves, 1.0, "title", form)
    assert picture.startswith(b"\x89PNG" if form == "png" else b"<?xml") and len(picture) > 5000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from prunecli.data.catalog import load_data
    from prunecli.data.loader import training_batches
    from prunecli.data.preparation import Augmentation, Preprocessing
    from prunecli.engine.fit import FitConfig, fit
    from prunecli.engine.tasks.classification import Classification
    from prunecli.models.catalog import build

    data = load_data("digits")
    torch.manual_seed(0)
    model = build("cifar:resnet20", in_chans=1)
    batches = training_batches(
        data.training_split(), Preprocessing((1, 8, 8), data.mean, data.std), Augmentation(flip=False), 64, seed=0
    )
    fit(model, batches, None, FitConfig(epochs=3, lr=0.05), torch.device("cpu"), task=Classification.with_classes(10))
    path = tmp_path_factory.mktemp("digits") / "trained.pt"
    torch.save(model.state_dict(), path)
    return path


def test_the_verb_writes_a_recipe_that_prunes(prune: Prune, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--arch", "cifar:resnet20", "--data", "digits", "--ratios", "0.25,0.5", "--max-drop", "3"]
    arguments += ["--calibration-images", "64"]
    (tmp_path / "dense.safetensors").write_bytes(checkpoint.read_bytes())
    words = ["sensitivity", "dense.safetensors", *arguments, "-o", "s.yaml"]
    done = prune(*words, "--method", "fisher", "--json")
    assert done.code == 0, done.err
    outcome = done.json
    assert len(outcome["curves"]) == 9 and outcome["images"] == 144
    assert outcome["proposal"]["drop"] <= 3
    assert "linear" in outcome["left_out"]
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    recipe = yaml.safe_load((tmp_path / "s.yaml").read_text())
    (stage,) = recipe["stages"]
    assert stage["method"] == "fisher" and stage["params"]["layer_ratio"] == outcome["proposal"]["ratios"]
    assert check_plan(load_plan(tmp_path / "s.yaml"))
    pruned = prune("prune", "s.yaml", "-o", "p.safetensors", "--latency-rounds", "2", "--json")
    assert pruned.code == 0, pruned.err
    widths = {edit["group"]: edit["width_after"] / edit["width_before"] for edit in pruned.json["edits"]}
    expected = {name: 1 - ratio for name, ratio in outcome["proposal"]["ratios"].items() if ratio}
    assert widths == pytest.approx(expected)
    again = prune(*words)
    assert again.code == 2 and "s.yaml: exists; add --force" in again.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ratios", "0.1,x"], "--ratios 0.1,x: write numbers between 0 and 1"),
        (["--ratios", "1.5"], "--ratios 1.5: write numbers between 0 and 1"),
        (["--max-drop", "0"], "--max-drop has to be greater than 0 (got 0)"),
        (["--images", "0"], "--images has to be at least 1"),
        (["-o", "x.json"], "recipes are YAML; name it x.yaml"),
        (["--plot", "x.txt"], "--plot x.txt: name it x.png"),
        (["--val-fraction", "0"], "has no validation images to judge on"),
        (["--method", "tailor"], "unknown method 'tailor': did you mean 'taylor'"),
        (["--keep", "*"], "no layer can shrink"),
        (["--compensate", "auto"], "repairs all candidates alike: give --compensate ls, reconstruct, bias or none"),
    ],
)
def test_what_cannot_be_is_one_line(prune: Prune, checkpoint: Path, words: list[str], message: str) -> None:
    done = prune("sensitivity", checkpoint, "--arch", "cifar:resnet20", "--data", "digits", *words)
    assert done.code == 2 and message in done.err.splitlines()[-1], done.err
    assert "Traceback" not in done.err


def _space(ref: str, **kwargs: Any) -> Workspace:
    torch.manual_seed(0)
    return Workspace(
        Recipe(model=ModelSection(ref=ref, kwargs=kwargs), data=DataSection(name="digits")), Output("quiet")
    )


class _StopError(Exception):
    """Ends a study after ranking."""


def _stop_after_ranking(monkeypatch: pytest.MonkeyPatch) -> list[PruneRequest]:
    requests: list[PruneRequest] = []

    def stop(model: nn.Module, request: PruneRequest) -> None:
        requests.append(request)
        raise _StopError

    monkeypatch.setattr(sensitivity, "rank", stop)
    return requests


def test_gradients_of_a_network_with_a_text_tower_are_those_of_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    space = _space("open_clip:tiny", dim=32, depth=2)
    requests = _stop_after_ranking(monkeypatch)
    stage = PruneStage(method="taylor", calibration_images=64)
    with pytest.raises(_StopError):
        sensitivity.sensitivity_stage(space, stage, [0.5], 1.0, 16)
    (request,) = requests
    model, assumed = space.model().model, replace(request, loss=default_loss)
    assert request.calibration is not None
    images, labels = split_batch(next(iter(request.calibration)))
    with torch.no_grad():
        expected = functional.cross_entropy(space.judging.classifier(model).eval()(images), labels, reduction="sum")
        assert torch.allclose(request.loss(model(images), labels), expected, rtol=1e-5)
    scores, others = ranking.rank(model, request).scores, ranking.rank(model, assumed).scores
    assert scores.keys() == others.keys() and scores
    assert not any(torch.allclose(scores[name], others[name]) for name in scores)


def test_residual_streams_that_prune_holds_are_not_proposed(prune: Prune, tmp_path: Path) -> None:
    words = ["spiking:spikformer-1-32", "--model-kwargs", "patch_size=1", "--model-kwargs", "T=2", "--data", "digits"]
    done = prune("sensitivity", *words, "--method", "spike", "--ratios", "0.5", "--max-drop", "90", "--images", "16",
                 "--calibration-images", "16", "-o", "s.yaml", "--json")  # fmt: skip
    assert done.code == 0, done.err
    outcome = done.json
    held = {name for name, reason in outcome["left_out"].items() if "--residual" in reason}
    assert held and not held & outcome["proposal"]["ratios"].keys()
    assert any(outcome["proposal"]["ratios"].values())
    pruned = prune("prune", "s.yaml", "-o", "p.safetensors", "--latency-rounds", "2", "--json")
    assert pruned.code == 0, pruned.err
    assert {edit["group"] for edit in pruned.json["edits"]} == {
        name for name, ratio in outcome["proposal"]["ratios"].items() if ratio
    }


def test_scores_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def undefined(model: nn.Module, groups: list[ChannelGroup], calibration: Calibration) -> dict[str, Tensor]:
        return {group.name: torch.full((group.units,), torch.nan, dtype=torch.float64) for group in groups}

    monkeypatch.setattr(ranking, "get_structural", lambda name: SimpleNamespace(load=lambda: undefined))
    with pytest.raises(MethodError, match="its scores are not finite; check the weights and the data"):
        sensitivity.sensitivity_stage(_space("cifar:resnet20"), PruneStage(method="l1"), [0.5], 1.0, 16)
