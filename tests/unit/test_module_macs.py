"""MACs by module: fvcore's count next to ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import ModelError
from prunecli.measure.counts import count_macs
from prunecli.models.catalog import build
from prunecli.report.inspection_tables import disagreement_note, module_table
from prunecli.studies.module_macs import TOLERANCE, ModuleMacs, disagreements, macs_by_module


class Recurrent(nn.Module):
    """Every kind of recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, 2, bidirectional=True, batch_first=True, proj_size=8)
        self.gru, self.rnn = nn.GRU(16, 24), nn.RNN(24, 24)
        self.cell, self.fc = nn.LSTMCell(24, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(self.gru(self.lstm(x)[0])[0])[0]
        return self.fc(self.cell(x[:, 0])[0])


class Mixed(nn.Module):
    """An operator that fvcore does not count: a batched product that adds to something."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.fc = Mixing(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mix(x))


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(x, x, self.weight)


def _rows(modules: list[ModuleMacs]) -> dict[str, ModuleMacs]:
    return {module.name: module for module in modules}


@pytest.mark.parametrize(
    ("ref", "kwargs", "shape", "named"),
    [
        ("cifar:resnet20", {}, (1, 3, 32, 32), "layer1.0"),
        ("timm:test_vit", {}, (1, 3, 160, 160), "blocks.0"),
        ("segformer:b0", {"num_classes": 4}, (1, 3, 64, 64), "segformer.stages"),
    ],
)
def test_both_counts_agree(ref: str, kwargs: dict[str, int], shape: tuple[int, ...], named: str) -> None:
    torch.manual_seed(0)
    model, example = build(ref, **kwargs).eval(), torch.randn(shape)
    modules = macs_by_module(model, example, 2)
    rows = _rows(modules)
    assert rows[""].macs == count_macs(model, example).total
    assert rows[""].params == sum(parameter.numel() for parameter in model.parameters())
    assert rows[named].depth == named.count(".") + 1 and rows[named].macs > 0
    assert max(module.depth for module in modules) == 2
    assert all(abs(module.difference) <= TOLERANCE for module in modules)
    assert disagreements(modules) == {}
    assert disagreement_note({}, TOLERANCE) == "fvcore's MACs agree with ours to 1 % in every module"
    assert _rows(macs_by_module(model, example, 1)).keys() == {name for name in rows if "." not in name}


def test_recurrent_layers_are_counted() -> None:
    modules = macs_by_module(Recurrent().eval(), torch.randn(3, 5, 16), 1)
    assert [module.name for module in modules] == ["", "lstm", "gru", "rnn", "cell", "fc"]
    assert all(module.macs == module.fvcore_macs > 0 for module in modules)


def test_inputs_of_any_form_and_fused_attention() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, query: Tensor, key: Tensor) -> dict[str, Tensor]:
            return {"sum": self.encoder(query) + key}

    tokens = torch.randn(1, 7, 32)
    modules = macs_by_module(Pair().eval(), {"query": tokens, "key": tokens}, 1)
    assert all(module.macs == module.fvcore_macs > 0 for module in modules)


def test_a_difference_is_explained() -> None:
    modules = macs_by_module(Mixed().eval(), torch.randn(2, 5, 8), 1)
    rows = _rows(modules)
    assert rows["mix"].macs == 2 * 5 * 8 * 8 and rows["mix"].fvcore_macs == 0
    assert rows["mix"].uncounted == ("aten::baddbmm",) and rows["mix"].to_dict()["difference"] == -1
    assert disagreements(modules) == {"mix": "fvcore does not count aten::baddbmm"}
    note = "fvcore's MACs differ from ours by more than 1 % in mix (fvcore does not count aten::baddbmm)"
    assert disagreement_note(disagreements(modules), TOLERANCE) == note
    assert module_table(modules).rows[1] == ("mix", "Mixing", "128", "640", "0", "-100.0 %")
    assert ModuleMacs("a", "A", 1, 0, 0, 5).to_dict()["difference"] is None


def test_what_cannot_be_traced_is_an_error() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("not while tracing")
            return self.fc(x)

    with pytest.raises(ModelError, match=r"fvcore cannot trace this network \(not while tracing\); leave out"):
        macs_by_module(Untraceable().eval(), torch.randn(1, 4), 1)
