"""`module:`: networks and data sets of the user's own code, which runs only where the user names it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Prune

CODE = """
import torch
from torch import nn

def network(width=16, num_classes=2):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.out = nn.Embedding(7, 6), nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, values, ids):
        return self.out(torch.relu(self.hidden(values + self.table(ids))))

def two():
    return Two()

class Fading(nn.Module):  # in evaluation it divides by what fades to zero in training
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(432, 2)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        scores = self.linear(x.flatten(1))
        if self.training:
            self.scale *= 0
            return scores
        return scores / self.scale

def fading():
    return Fading()

def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 2))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.out = nn.Embedding(7, 6), nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.table(ids)).mean(1)))

def words():
    return Words()

class Bright(torch.utils.data.Dataset):
    classes = ["dark", "bright"]

    def __init__(self, count, seed):
        self.images = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        self.targets = (self.images.mean((1, 2, 3)) > 0).long().tolist()
        self.images += 3 * torch.tensor(self.targets).reshape(-1, 1, 1, 1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]

def bright():
    return {"train": Bright(160, 0), "test": Bright(80, 1)}

class Shaken(Bright):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), label

def shaken_training():
    return {"train": Shaken(160, 0), "val": Bright(40, 2), "test": Bright(80, 1)}

def shaken_alone():
    return {"train": Shaken(160, 0), "test": Bright(80, 1)}

def shaken_test():
    return {"train": Bright(160, 0), "val": Shaken(40, 2), "test": Bright(80, 1)}

def broken():
    raise RuntimeError("no such thing")

def text():
    return "a text"

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out, self.shift = nn.Linear(6, 24), nn.Linear(24, 3), [torch.randn(6)]

    def forward(self, values):
        return self.out(torch.relu(self.hidden(values + self.shift[0])))

def noisy():
    return Noisy()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with a module of the user's."""
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def test_from_training_to_evaluation_with_own_network_and_data(prune: Prune, code: Path) -> None:
    train = ["train", "module:mine:network", "--model-kwargs", "width=24", "--data", "module:mine:bright"]
    done = prune(*train, "--epochs", "3", "--lr", "0.05", "-o", "a.safetensors", "--json")
    assert done.code == 0, done.err
    pruned = prune(
        *("l1", "a.safetensors", "--allow-code", "mine", "--data", "module:mine:bright", "--ratio", "0.5"),
        *("-o", "b.safetensors", "--latency-rounds", "2", "--json"),
    )
    assert pruned.code == 0, pruned.err
    assert pruned.json["verify_error"] < 1e-9 and pruned.json["achieved"] > 0.3
    report = prune(
        *("eval", "b.safetensors", "--allow-code", "mine", "--data", "module:mine:bright", "--measure", "accuracy"),
        *("-o", "b.json", "--json"),
    )
    assert report.code == 0, report.err
    assert report.json["metrics"]["top1"] > 90


def test_a_loss_that_is_no_number_in_validation_alone_is_no_success(prune: Prune, code: Path) -> None:
    words = ("--data", "module:mine:bright", "--epochs", "2", "--lr", "0.01", "--threads", "1")
    done = prune("train", "module:mine:fading", *words, "-o", "f.safetensors")
    assert done.code == 1 and not (code / "f.safetensors").exists()
    assert "error: the validation loss is nan after epoch 1, although the weights are finite; lower" in done.err


def test_of_epochs_with_equal_accuracy_the_one_with_the_lowest_loss_is_kept(prune: Prune, code: Path) -> None:
    words = ("--data", "module:mine:bright", "--epochs", "4", "--lr", "0.05", "--threads", "1")
    done = prune("train", "module:mine:flat", *words, "-o", "f.safetensors", "--json")
    assert done.code == 0, done.err
    epochs = [json.loads(line) for line in (code / "f.metrics.jsonl").read_text().splitlines()]
    best = max(epoch["validation_top1"] for epoch in epochs)
    losses = {epoch["epoch"]: epoch["validation_loss"] for epoch in epochs if epoch["validation_top1"] == best}
    assert len(losses) > 1 and done.json["chosen_epoch"] == min(losses, key=lambda epoch: losses[epoch]) > min(losses)


def test_code_that_a_file_names_does_not_run(prune: Prune, code: Path) -> None:
    (code / "mine.py").write_text(CODE + "\nopen('ran', 'w').close()\n")
    (code / "r.yaml").write_text("version: 1\nmodel: {ref: 'module:mine:network'}\nstages: [{stage: eval}]\n")
    refused = prune("run", "r.yaml")
    assert refused.code == 2 and "--allow-code mine" in refused.err and not (code / "ran").exists()
    made = prune("l1", "module:mine:network", "--example-shape", "1x3x12x12", "--ratio", "0.5", "-o", "a.safetensors")
    assert made.code == 0 and (code / "ran").exists()
    (code / "ran").unlink()
    loaded = prune("inspect", "a.safetensors")
    assert loaded.code == 2 and "--allow-code mine" in loaded.err and not (code / "ran").exists()
    assert prune("inspect", "a.safetensors", "--allow-code", "mine").code == 0


def test_a_recipe_whose_name_looks_like_an_option_is_no_word_of_the_user(prune: Prune, code: Path) -> None:
    (code / "mine.py").write_text(CODE + "\nopen('ran', 'w').close()\n")
    (code / "--base.yaml").write_text("model: {ref: 'module:mine:network', example_shape: 1x3x12x12}\n")
    (code / "r.yaml").write_text("extends: --base.yaml\nstages: [{stage: eval}]\n")
    refused = prune("run", "r.yaml")
    assert refused.code == 2 and "--allow-code mine" in refused.err and not (code / "ran").exists()


def test_what_an_allowed_module_imports_does_not_run_because_a_file_names_it(prune: Prune, code: Path) -> None:
    """Arguments are the file's, so that `from os import system` would be enough to run anything."""
    (code / "mine.py").write_text(CODE + "\nfrom os import system\n")
    (code / "r.yaml").write_text(
        "model: {ref: 'module:mine:system', kwargs: {command: 'touch ran'}, example_shape: 1x3x8x8}\n"
        "stages: [{stage: eval}]\n"
    )
    refused = prune("run", "r.yaml", "--allow-code", "mine")
    assert refused.code == 2 and "only imports it" in refused.err and not (code / "ran").exists()
    assert "not a torch.nn.Module" in prune("run", "r.yaml", "--allow-code", "mine:system").err


def test_inputs_in_a_file(prune: Prune, code: Path) -> None:
    np.savez(code / "x.npz", values=np.zeros((2, 6), np.float32) + 0.3, ids=np.array([1, 2]))
    done = prune("l1", "module:mine:two", "--example", "x.npz", "--ratio", "0.5", "-o", "a.safetensors", "--json")
    assert done.code == 0, done.err
    assert done.json["achieved"] > 0.3


def test_a_network_that_would_be_another_after_loading_is_not_saved(prune: Prune, code: Path) -> None:
    failed = prune("l1", "module:mine:noisy", "--example-shape", "1x6", "--prune-stem", "--ratio", "0.5",
                   "-o", "a.safetensors")  # fmt: skip
    assert failed.code == 2 and "computes something else once it is loaded" in failed.err
    assert not (code / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["module:mine:networx"], "unknown function 'networx': did you mean 'network'"),
        (["module:yours:network"], "no module yours in this folder"),
        (["module:mine.py:network"], "without .py"),
        (["module:mine"], "package.file:function"),
        (["module:mine:broken"], "RuntimeError: no such thing"),
        (["module:mine:text"], "returns a str, not a torch.nn.Module"),
        (["module:mine:network"], "Give --example-shape"),
        (["module:mine:network", "--example-shape", "3,12"], "write it as 1x3x64x64"),
        (["module:mine:network", "--example", "nowhere.npz"], "no such file"),
        (["module:mine:network", "--example", "mine.py"], "no .npz file"),
        (["module:mine:network", "--example-shape", "1x3x12x12", "--data", "module:mine:text"], "item 0 is no pair"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, prune: Prune, code: Path) -> None:
    import re

    failed = prune("l1", *arguments, "--ratio", "0.5", "-o", "a.safetensors")
    assert failed.code == 2, failed.err
    assert re.search(message.replace("(", r"\(").replace("?", r"\?"), failed.err), failed.err
    assert len(failed.err.strip().splitlines()) == 1 and not (code / "a.safetensors").exists()


def test_whole_numbers_as_inputs_are_remembered(prune: Prune, code: Path) -> None:
    refused = prune("l1", "module:mine:words", "--example-shape", "1x5", "--ratio", "0.5", "-o", "no.safetensors")
    assert refused.code == 2 and "FloatTensor" in refused.err
    shape = ("--example-shape", "1x5:int64")
    assert prune("l1", "module:mine:words", *shape, "--ratio", "0.5", "-o", "a.safetensors").code == 0
    allowed = ("--allow-code", "mine")
    again = prune("l1", "a.safetensors", *allowed, "--ratio", "0.5", "-o", "b.safetensors")
    assert again.code == 0, again.err
    for name in ("a", "b"):
        assert prune("eval", f"{name}.safetensors", *allowed, "-o", f"{name}.json").code == 0
    for files in (("a.safetensors", "b.safetensors"), ("a.json", "b.json")):
        compared = prune("compare", *files, *allowed)
        assert compared.code == 0 and "speed-up" in compared.out, compared.err


def test_reports_of_networks_with_several_inputs_are_compared_unpaired(prune: Prune, code: Path) -> None:
    np.savez(code / "both.npz", values=np.zeros((1, 6), np.float32), ids=np.array([1]))
    example, allowed = ("--example", "both.npz"), ("--allow-code", "mine")
    assert prune("l1", "module:mine:two", *example, "--ratio", "0.5", "-o", "a.safetensors").code == 0
    assert prune("eval", "a.safetensors", *example, *allowed, "-o", "a.json").code == 0
    compared = prune("compare", "a.json", "a.json", *allowed)
    assert compared.code == 0 and "unpaired" in compared.out, compared.err


def test_samples_to_judge_on_have_to_stay_the_same(prune: Prune, code: Path) -> None:
    network = ("module:mine:network", "--epochs", "1", "-o", "a.safetensors")
    assert prune("train", *network, "--data", "module:mine:shaken_training").code == 0
    refused = prune("train", *network, "--data", "module:mine:shaken_test", "--force")
    assert refused.code == 2 and "another one each time it is read; leave random changes to the" in refused.err
    refused = prune("train", *network, "--data", "module:mine:shaken_alone", "--force")
    assert refused.code == 2 and "another one each time it is read; return a validation split" in refused.err


def test_a_whole_pickled_network_is_pruned_as_its_message_says(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step follows the message before it."""
    (tmp_path / "own_net.py").write_text(CODE.replace("class Words", "class Wide").replace("width=16", "width=24"))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.import_module("own_net")
    torch.save(own.Two(), tmp_path / "two.pt")
    torch.save(own.Wide(), tmp_path / "wide.pt")
    done = prune("l1", "wide.pt", "--ratio", "0.5")
    assert done.code == 2 and "if it is of your own_net.py here" in done.err
    named = re.search(r"--arch (\S+),", done.err)
    assert named is not None and named[1] == "module:own_net:Wide"
    done = prune("l1", "wide.pt", "--ratio", "0.5", "--arch", named[1])
    assert done.code == 2 and "Give --example-shape" in done.err
    done = prune("l1", "wide.pt", "--ratio", "0.5", "--arch", named[1], "--example-shape", "1x12:int64")
    assert done.code == 0, done.err
    hint = re.search(r"^next: prune (.*)$", done.err, re.MULTILINE)
    assert hint is not None and prune(*hint[1].split()).code == 0
    assert "for a class or function in own_net.py write module:own_net:Two" in prune(
        "l1", "two.pt", "--arch", "own_net:Two"
    ).err  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = prune("l1", "../wide.pt", cwd=elsewhere)  # what a file says is no reason to name code that is not here
    assert "run where the code that defines it can be found" in done.err and "module:own_net" not in done.err
    code = (tmp_path / "own_net.py").read_text() + "\nclass Sized(Wide):\n    def __init__(self, size=9):\n"
    (tmp_path / "sized.py").write_text(code + "        super().__init__()\n        self.out = nn.Linear(24, size)\n")
    torch.save(importlib.import_module("sized").Sized(5), tmp_path / "sized.pt")
    words = ("inspect", "sized.pt", "--arch", "module:sized:Sized")
    assert "other arguments (size), give them: --model-kwargs size=VALUE" in prune(*words).err
