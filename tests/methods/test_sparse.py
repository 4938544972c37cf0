"""Masks for single weights, from the command line to a file that keeps every zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import prunecli
from prunecli.checkpoint.io import read_manifest
from prunecli.checkpoint.manifest import Masks
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.holding import holding
from prunecli.engine.optimizer import make_optimizer
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import MethodError, PruneError
from prunecli.methods.sparse import SparseRequest, WeightPruning, mask_weights
from prunecli.methods.sparse_index import SPARSE
from prunecli.methods.sparse_params import SparseParams
from prunecli.models.loading import load_file, load_reference, save
from prunecli.pipeline.stages.prune import prune_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, PruneStage, Recipe
from tests.conftest import Prune
from tests.processes import Ended, Processes
from tests.unit.test_schedule import _Silent

CPU = torch.device("cpu")
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture(scope="module")
def run(processes: Processes, folder: Path) -> Run:
    return lambda *words, **options: processes.run(words, folder, **options)


@pytest.fixture(scope="module")
def trained(run: Run, folder: Path) -> Path:
    """ResNet-20 on digits, and what it was after its first epoch."""
    for epochs in (1, 3):
        words = ("--data", "digits", "--epochs", epochs, "--lr", "0.05", "-o", f"after{epochs}.safetensors")
        done = run("train", "cifar:resnet20", *words)
        assert done.code == 0, done.err
    return folder / "after3.safetensors"


def _zeros(path: Path) -> dict[str, Tensor]:
    """Where masked parameters of a checkpoint are zero."""
    manifest = read_manifest(path)
    assert manifest is not None and manifest.masks is not None
    model = prunecli.load(path)
    return {name: model.get_parameter(name).detach() == 0 for name in manifest.masks.weights}


def _share(path: Path) -> float:
    zeros = _zeros(path)
    return sum(int(mask.sum()) for mask in zeros.values()) / sum(mask.numel() for mask in zeros.values())


def _prune(path: Path, out: Path, method: str, data: str | None = "digits", seed: int = 0, **options: Any) -> Any:
    """The stage in this process."""
    section = DataSection(name=data)
    recipe = Recipe(model=ModelSection(weights=str(path)), data=section, device="cpu", seed=seed)
    stage = {"latency_rounds": 2, "calibration_images": 64, **options}
    return prune_stage(Workspace(recipe, _Silent()), PruneStage(method=method, **stage), out)  # type: ignore[arg-type]


def _masked(model: nn.Module, example: Tensor, method: str = "magnitude", **options: Any) -> Any:
    known = {name: options.pop(name) for name in ("keep", "calibration", "seed") if name in options}
    request = SparseRequest(method=method, params=SparseParams(**options), example_inputs=example, **known)
    return mask_weights(model, request)


def test_pruned_inspected_finetuned_and_pruned_further(run: Run, trained: Path, folder: Path) -> None:
    done = run("magnitude", trained, "--sparsity", "0.9", "--latency-rounds", "2", "-o", "m.safetensors")
    assert done.code == 0 and "dense kernels multiply them like other numbers" in done.err, done.err
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.out.splitlines()}
    assert rows["sparsity of masked layers"][:2] == ["0.00 %", "90.00 %"]
    assert rows["parameters not zero"][2] == "x0.105" and rows["parameters"][2] == "x1.000"
    before = _zeros(folder / "m.safetensors")
    assert _share(folder / "m.safetensors") == pytest.approx(0.9, abs=1e-5)
    shown = run("inspect", "m.safetensors").out
    assert "parameters not zero\t28.19k (10.46 %), masked ones are held at zero" in shown
    assert "parameters not zero" not in run("inspect", trained).out
    tuned = run("finetune", "m.safetensors", "--epochs", "1", "--optimizer", "adamw", "-o", "f.safetensors")
    assert tuned.code == 0, tuned.err
    after = _zeros(folder / "f.safetensors")
    assert all(torch.equal(after[name], mask) for name, mask in before.items())
    evaluated = run("eval", "f.safetensors", "--measure", "accuracy", "--require", "top1 >= 50")
    assert evaluated.code == 0, evaluated.out
    further = run(
        "random-weights", "f.safetensors", "--sparsity", "0.95", "--latency-rounds", "2", "-o", "g.safetensors"
    )
    assert further.code == 0 and _share(folder / "g.safetensors") == pytest.approx(0.95, abs=1e-5)
    last = _zeros(folder / "g.safetensors")
    assert all(bool(last[name][mask].all()) for name, mask in before.items())
    less = run("magnitude", "g.safetensors", "--sparsity", "0.9", "-o", "h.safetensors")
    assert less.code == 2 and "are zero already (95 %), so a sparsity of 0.9 masks no more" in less.err
    assert not (folder / "h.safetensors").exists() and len(less.err.splitlines()) == 1


def test_a_recipe(run: Run, trained: Path, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        f"""model: {{weights: {trained.name}}}
data: {{name: digits}}
stages:
  - {{stage: prune, method: magnitude, params: {{sparsity: 0.5, scope: layer}}, latency_rounds: 2}}
  - {{stage: finetune, epochs: 1}}
  - {{stage: eval, measure: [accuracy, params], require: 'top1 >= 50'}}
"""
    )
    done = run("run", "recipe.yaml", "-o", "runs")
    assert done.code == 0, done.err
    final = sorted((folder / "runs").rglob("*.safetensors"))[-1]
    assert _share(final) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow if name == "synflow" else ()) for name in SPARSE]
)
def test_every_method_reaches_what_was_asked_and_is_the_same_again(method: str, trained: Path, tmp_path: Path) -> None:
    outcomes = [
        _prune(trained, tmp_path / f"{name}.safetensors", method, params={"sparsity": 0.7}, seed=seed)
        for name, seed in (("a", 0), ("b", 0))
    ]
    total = outcomes[0].sparse.weights
    assert outcomes[0].sparse.layers == 20 and outcomes[0].sparse.nonzero[1] < outcomes[0].sparse.nonzero[0]
    whole = method not in ("wanda-weights", "sparsegpt")  # these count by layer
    assert abs(_share(tmp_path / "a.safetensors") * total - 0.7 * total) <= (0.5 if whole else 10)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    manifest = read_manifest(tmp_path / "a.safetensors")
    assert manifest is not None and manifest.history[-1].figures["sparsity_requested"] == 0.7
    assert {entry.reason for entry in manifest.history[-1].untouched} == {"a normalisation"}


@pytest.mark.slow
def test_methods_that_look_at_data_beat_chance(trained: Path, tmp_path: Path) -> None:
    """On a trained network: not grasp, which is for new ones."""

    def top1(path: Path) -> float:
        from prunecli.pipeline.stages.eval import eval_stage
        from prunecli.recipe.schema import EvalStage

        recipe = Recipe(model=ModelSection(weights=str(path)), data=DataSection(name="digits"), device="cpu")
        space = Workspace(recipe, _Silent())  # type: ignore[arg-type]
        outcome = eval_stage(space, EvalStage(measure=("accuracy",)), path.with_suffix(".json"))
        return float(outcome.metrics.top1)

    scores = {}
    for method in ("random-weights", "magnitude", "wanda-weights", "snip", "sparsegpt"):
        path = tmp_path / f"{method}.safetensors"
        _prune(trained, path, method, params={"sparsity": 0.5}, calibration_images=256)
        scores[method] = top1(path)
    assert all(score > scores["random-weights"] + 10 for name, score in scores.items() if name != "random-weights"), (
        scores
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_no_optimizer_revives_a_masked_weight(optimizer: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(6)]
    config = FitConfig(epochs=2, lr=0.05, optimizer=optimizer, weight_decay=0.1, momentum=0.9, schedule="constant")
    task = Classification.with_classes(3)
    moments = make_optimizer(model, config)
    fit(model, batches, None, config, CPU, task=task, optimizer=moments)  # moments that would move weights
    pruning = _masked(model, torch.randn(1, 6), sparsity=0.6)
    before = copy.deepcopy(model)
    fit(model, batches, None, config, CPU, task=task, optimizer=moments, hooks=holding(model, pruning.masks()))
    for name in ("0.weight", "2.weight"):
        old, new = before.get_parameter(name), model.get_parameter(name)
        assert torch.equal(old == 0, new == 0) and not torch.equal(old, new)


@pytest.mark.parametrize("method", ["magnitude", pytest.param("snip", marks=pytest.mark.slow)])
def test_training_between_steps_holds_zeros(method: str, trained: Path, tmp_path: Path) -> None:
    params = {"sparsity": 0.8, "schedule": "cubic", "steps": 2}
    outcome = _prune(trained, tmp_path / "a.safetensors", method, params=params, epochs=1, lr=0.02)
    assert outcome.sparse.steps == 2 and _share(tmp_path / "a.safetensors") == pytest.approx(0.8, abs=1e-5)


def test_rewinding_puts_earlier_weights_back(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def watched(self: Any, transition: Any) -> None:
        seen.append({name: value.detach().clone() for name, value in transition.after.named_parameters()})

    monkeypatch.setattr("prunecli.pipeline.progressive.StepTraining.__call__", watched)
    earlier = folder / "after1.safetensors"
    params = {"sparsity": 0.5, "schedule": "linear", "steps": 2, "rewind": str(earlier)}
    _prune(trained, tmp_path / "a.safetensors", "magnitude", params=params, epochs=1)
    weights = dict(prunecli.load(earlier).named_parameters())
    for share, step in zip((0.25, 0.5), seen, strict=True):
        zeros = 0
        for name, value in step.items():
            masked = (value == 0) & (weights[name] != 0)
            zeros += int(masked.sum())
            assert torch.equal(value[~masked], weights[name][~masked])
        assert zeros == round(share * 268048)


KILLS = ["stage:masked@1", "fit:step@9"]
MORE = [
    "fit:step@2",
    "stage:masked@2",
    "stage:masked@3",
    "fit:step@1",
    "fit:step@3",
    "fit:step@6",
    "fit:step@7",
    "fit:step@12",
    "fit:epoch@1",
    "fit:epoch@2",
    "stage:pruned",
]


@pytest.fixture(scope="module")
def whole(run: Run, trained: Path, folder: Path) -> tuple[tuple[object, ...], bytes]:
    """The words of a run with a schedule, and what it writes."""
    words = ("snip", trained.name, "--sparsity", "0.8", "--schedule", "linear", "--steps", "3", "--epochs", "1")
    words = (*words, "--batch-size", "256", "--save-every", "0", "--latency-rounds", "2", "--calibration-images", "64")
    words = (*words, "--optimizer", "adamw", "--lr", "0.002", "-o")
    done = run(*words, "whole.safetensors")
    assert done.code == 0, done.err
    return words, (folder / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("fault", [*KILLS, *(pytest.param(fault, marks=pytest.mark.slow) for fault in MORE)])
def test_a_killed_schedule_resumes_to_the_same_bytes(
    run: Run, folder: Path, whole: tuple[tuple[object, ...], bytes], fault: str
) -> None:
    words, expected = whole
    name = f"{fault.replace(':', '-')}.safetensors"
    assert run(*words, name, fault=fault).code == -9
    assert not (folder / name).exists()
    resumed = run(*words, name, "--resume")
    assert resumed.code == 0, resumed.err
    assert (folder / name).read_bytes() == expected


@pytest.mark.slow
def test_rewinding_resumes_to_the_same_bytes(run: Run, trained: Path, folder: Path) -> None:
    words: tuple[object, ...] = ("magnitude", trained.name, "--schedule", "linear", "--steps", "2", "--epochs", "1")
    words = (*words, "--rewind", "after1.safetensors", "--batch-size", "256", "--save-every", "0")
    words = (*words, "--latency-rounds", "2", "-o")
    assert run(*words, "r.safetensors").code == 0
    assert run(*words, "s.safetensors", fault="fit:step@8").code == -9
    assert run(*words, "s.safetensors", "--resume").code == 0
    assert (folder / "r.safetensors").read_bytes() == (folder / "s.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "0"], "greater than 0"),
        (["--sparsity", "1"], "less than 1"),
        (["--sparsity", "nan"], "--sparsity"),
        (["--pattern", "4:2"], "--pattern 4:2: write N:M with 1 <= N < M <= 64"),
        (["--pattern", "two"], "--pattern two: write N:M"),
        (["--pattern", "2:4", "--sparsity", "0.9"], "the pattern 2:4 sets the sparsity, 0.5; leave it out"),
        (["--keep", "layerX*"], "layerX*"),
        (["--keep", "*"], "no layer can be masked (conv1: kept by pattern '*'"),
        (["--rewind", "after1.safetensors"], "--rewind puts weights back to train them again"),
        (["--rewind", "none.safetensors", "--epochs", "1"], "none.safetensors: no such file"),
        (
            ["--rewind", "other.safetensors", "--epochs", "1"],
            "is of another network (cifar:resnet32, not cifar:resnet20)",
        ),
        (["--scope", "row"], "--scope"),
        (["--compensate", "ls"], "--compensate"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run, trained: Path, folder: Path, words: list[str], message: str
) -> None:
    if not (folder / "other.safetensors").exists():
        other = load_reference("cifar:resnet32", num_classes=10, in_chans=1)
        other.manifest.architecture.input_shape = (1, 8, 8)
        save(folder / "other.safetensors", other.model, other.manifest)
    done = run("magnitude", trained.name, *words, "-o", "bad.safetensors")
    assert done.code == 2 and message in done.err, done.err
    assert len(done.err.splitlines()) == 1 or "No such option" in done.err
    assert not list(folder.glob("bad.safetensors*"))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("snip", {}, "method snip needs images: name a data set with --data"),
        ("grasp", {}, "method grasp needs images: name a data set with --data"),
        ("wanda-weights", {}, "method wanda-weights needs images"),
        ("sparsegpt", {}, "method sparsegpt needs images"),
        ("magnitude", {"epochs": 1}, "--epochs needs images"),
        ("magnitude", {"recalibrate": True}, "--recalibrate needs images"),
        ("sparsegpt", {"params": {"scope": "global"}}, "sparsegpt solves each layer by itself"),
        ("sparsegpt", {"params": {"rewind": "x"}, "epochs": 1}, "--rewind would undo how sparsegpt adjusts weights"),
    ],
)
def test_what_needs_images(tmp_path: Path, method: str, options: dict[str, Any], message: str) -> None:
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(tmp_path / "new.safetensors", loaded.model, loaded.manifest)
    data = "digits" if options.get("params") else None
    with pytest.raises(PruneError, match=message):
        _prune(tmp_path / "new.safetensors", tmp_path / "a.safetensors", method, data, **options)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("method", ["magnitude", "random-weights", "synflow"])
def test_what_needs_none(method: str, tmp_path: Path) -> None:
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(tmp_path / "new.safetensors", loaded.model, loaded.manifest)
    _prune(tmp_path / "new.safetensors", tmp_path / "a.safetensors", method, None)
    assert _share(tmp_path / "a.safetensors") == pytest.approx(0.5, abs=1e-5)


def test_a_recipes_rewind_file_stays_in_its_folder(run: Run, folder: Path, trained: Path) -> None:
    (folder / "out.yaml").write_text(
        f"model: {{weights: {trained.name}}}\ndata: {{name: digits}}\n"
        "stages: [{stage: prune, method: magnitude, epochs: 1, params: {rewind: ../x.safetensors}}]\n"
    )
    done = run("run", "out.yaml", "-o", "outside")
    assert done.code == 2 and "leads out of the recipe's folder" in done.err, done.err


def test_half_precision_keeps_its_zeros(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    torch.save(loaded.model.half().state_dict(), tmp_path / "half.pt")
    section = ModelSection(weights=str(tmp_path / "half.pt"), ref="cifar:resnet20")
    recipe = Recipe(model=section, data=DataSection(name="digits"), device="cpu")
    stage = PruneStage(method="sparsegpt", params={"sparsity": 0.6}, latency_rounds=2, calibration_images=32)
    prune_stage(Workspace(recipe, _Silent()), stage, tmp_path / "a.safetensors")  # type: ignore[arg-type]
    model, manifest = load_file(tmp_path / "a.safetensors").model, read_manifest(tmp_path / "a.safetensors")
    assert manifest is not None and manifest.masks is not None and len(manifest.masks.weights) == 20
    assert (
        _share(tmp_path / "a.safetensors") == pytest.approx(0.6, abs=1e-4) and model.conv1.weight.dtype == torch.float32
    )


class _Odd(nn.Module):
    """Everything that a mask must not touch, or touch only once."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.spectral = weight_norm(nn.Linear(8, 8)), spectral_norm(nn.Linear(8, 8))
        self.unused, self.tied, self.twin = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.twin.weight = self.tied.weight
        self.table, self.scores = nn.Embedding(8, 8), nn.Linear(8, 8)
        self.scores.weight = self.table.weight
        self.standard, self.zero = nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.zeros_(self.zero.weight)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.plain, self.norm = nn.Linear(8, 4), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twin(self.tied(self.spectral(self.normed(x)))) + self.zero(x) + self.table.weight[0]
        weight = self.standard.weight - self.standard.weight.mean()
        x = F.linear(self.scores(self.norm(x)), weight)
        self.standard.forward  # noqa: B018 - it is read, and not called
        return self.plain(x + self.attention(x, x, x)[0]).mean(1)


def test_what_is_left_alone_has_a_reason() -> None:
    torch.manual_seed(0)
    model, example = _Odd().eval(), torch.randn(2, 5, 8)
    pruning = _masked(model, example)
    names = [weight.name for weight in pruning.weights]
    assert names == ["tied.weight", "attention.in_proj_weight", "attention.out_proj.weight", "plain.weight"]
    computed = (
        "its weight is computed from other tensors (a parametrisation), so zeros in these would not be zeros in it"
    )
    assert pruning.reasons == {
        "normed": computed,
        "spectral": computed,
        "unused": "never called in the forward pass",
        "table": "an embedding",
        "scores": "shared with table, which is not masked",
        "standard": "never called in the forward pass",
        "zero": "all of its weights are zero already",
        "norm": "a normalisation",
    }
    assert pruning.sparsity == 0.5 and pruning.counts[0] == 64 + 192 + 64 + 32  # what is tied counts once
    assert pruning.masks().weights == names
    watched = _masked(_Odd().eval(), example, "wanda-weights", calibration=[example])
    assert [weight.name for weight in watched.weights] == ["tied.weight", "plain.weight"]
    assert watched.reasons["attention"] == watched.reasons["attention.out_proj"] == "its inputs cannot be watched"


def test_a_resumed_step_knows_what_earlier_ones_left_alone() -> None:
    torch.manual_seed(0)
    model, example = _Odd().eval(), torch.randn(2, 5, 8)
    request = SparseRequest(
        method="wanda-weights", params=SparseParams(), example_inputs=example, calibration=[example]
    )
    done = mask_weights(copy.deepcopy(model), request)
    resumed = WeightPruning(model, request)
    assert len(resumed.weights) == 4
    resumed.restore(done.state())
    assert [weight.name for weight in resumed.weights] == ["tied.weight", "plain.weight"]
    assert resumed.reasons == done.reasons


def test_scopes() -> None:
    torch.manual_seed(0)
    dense, inputs = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 8)), torch.randn(20, 10)
    with torch.no_grad():
        dense[0].weight[:4] *= 0.1
        dense[1].weight *= 0.05
    zeros = {}
    for method, scope in (("magnitude", "auto"), ("magnitude", "layer"), ("wanda-weights", "auto"), ("snip", "global")):
        model = copy.deepcopy(dense)
        calibration = [(inputs, torch.randint(0, 8, (20,)))]
        pruning = _masked(model, inputs, method, scope=scope, calibration=calibration)
        assert pruning.sparsity == 0.5
        zeros[f"{method} {scope}"] = [(layer.weight == 0).sum(1).tolist() for layer in model]
    sums = {name: [sum(rows) for rows in layers] for name, layers in zeros.items()}
    assert sums["magnitude auto"][1] > 40 and sum(sums["magnitude auto"]) == 72
    assert sums["magnitude layer"] == [40, 32] and zeros["magnitude layer"][0] != [5] * 8
    assert zeros["wanda-weights auto"] == [[5] * 8, [4] * 8]
    assert sums["snip global"] != [40, 32]


def test_a_weight_that_is_standardised_is_left_alone() -> None:
    model = load_reference("timm:resnetv2_50x1_bit", num_classes=4).model
    with pytest.raises(MethodError, match="kept by pattern"):
        _masked(model, torch.randn(1, 3, 32, 32), keep=["*"])
    pruning = _masked(model, torch.randn(1, 3, 32, 32))
    assert pruning.reasons["stem.conv"] == "its weight is changed before it is used, so a zero would not stay one"
    assert [weight.name for weight in pruning.weights] == ["head.fc.weight"]


def test_patterns_of_layers_that_stay_dense() -> None:
    torch.manual_seed(0)
    model = load_reference("cifar:resnet20").model
    pruning = _masked(model, torch.randn(1, 3, 32, 32), keep=["conv1", "layer2*"])
    assert pruning.reasons["layer2.0.conv1"] == "kept by pattern 'layer2*'" and bool((model.conv1.weight != 0).all())
    assert not any(weight.name.startswith(("layer2", "conv1")) for weight in pruning.weights)


def test_global_ranking_leaves_every_layer_a_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    pruning = _masked(model, torch.randn(1, 8), sparsity=0.8)
    assert pruning.lone() == ["0.weight"] and pruning.sparsity == 102 / 128


def test_a_mask_of_before_is_kept_though_its_layer_is_left_alone_now() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    first = _masked(model, torch.randn(1, 8), sparsity=0.5)
    request = SparseRequest(
        method="magnitude", params=SparseParams(sparsity=0.75), example_inputs=torch.randn(1, 8), keep=["0"]
    )
    zeros = int((model[0].weight == 0).sum())
    second = mask_weights(model, request, first.masks())
    assert second.masks() == Masks(weights=["0.weight", "1.weight"])
    assert int((model[0].weight == 0).sum()) == zeros and int((model[1].weight == 0).sum()) == 48


def test_equal_weights_are_masked_in_order() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False))
    nn.init.ones_(model[0].weight)
    _masked(model, torch.randn(1, 6), sparsity=0.4)
    assert model[0].weight.flatten().tolist() == [0.0] * 14 + [1.0] * 22


@pytest.mark.parametrize(
    "method",
    ["magnitude", "wanda-weights", "snip", pytest.param("synflow", marks=pytest.mark.slow), "sparsegpt"],
)
def test_a_spiking_network(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"num_classes": 10, "in_chans": 1, "T": 2, "width": 0.125}
    loaded = load_reference("spiking:vgg9", **arguments)
    loaded.manifest.architecture.input_shape = (1, 32, 32)
    save(tmp_path / "new.safetensors", loaded.model, loaded.manifest)
    outcome = _prune(tmp_path / "new.safetensors", tmp_path / "a.safetensors", method, params={"sparsity": 0.5})
    assert outcome.energy is not None and "synaptic operations" in str(outcome.tables())
    share = _share(tmp_path / "a.safetensors")
    assert share == pytest.approx(0.5, abs=1e-3)


def test_a_vision_transformer_with_a_pattern_and_sparse_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    loaded = load_reference("timm:vit_tiny_patch16_224", num_classes=10, in_chans=1, **arguments)
    loaded.manifest.architecture.input_shape = (1, 16, 16)
    save(tmp_path / "vit.safetensors", loaded.model, loaded.manifest)
    params = {"pattern": "2:4", "csr": True}
    outcome = _prune(tmp_path / "vit.safetensors", tmp_path / "a.safetensors", "sparsegpt", params=params)
    assert outcome.sparse.layers == 9 and outcome.reasons["patch_embed.proj"] == "its 1 inputs are not a multiple of 4"
    assert len(outcome.csr) == 3 and all(timing.ratio > 0 and timing.sparsity == 0.5 for timing in outcome.csr)
    assert outcome.semi_structured == [] and "as CSR on the CPU" in str(outcome.tables())
    model = prunecli.load(tmp_path / "a.safetensors")
    assert bool(((model.blocks[0].attn.qkv.weight.reshape(-1, 4) != 0).sum(1) <= 2).all())
    with pytest.raises(MethodError, match="have the pattern 2:4 already"):
        _prune(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "magnitude", params={"pattern": "2:4"})


def test_a_pattern_in_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    request = SparseRequest(
        method="magnitude",
        params=SparseParams(pattern="1:4", schedule="linear", steps=3),
        example_inputs=torch.randn(1, 16),
    )
    pruning = WeightPruning(model, request)
    kept = []
    for goal in pruning.goals:
        pruning.step(goal)
        kept.append(set((model[0].weight.reshape(-1, 4) != 0).sum(1).tolist()))
    assert kept == [{3}, {2}, {1}] and pruning.sparsity == 0.75


def test_all_methods_are_listed(prune: Prune) -> None:
    listed = {entry["name"]: entry["family"] for entry in prune("methods", "--json").json}
    assert {name: listed[name] for name in SPARSE} == dict.fromkeys(SPARSE, "sparse")
    with pytest.raises(MethodError, match="is one of those that set single weights to zero"):
        prunecli.prune(nn.Linear(2, 2), "magnitude", example_inputs=torch.randn(1, 2))
