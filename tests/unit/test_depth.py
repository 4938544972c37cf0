"""Whole residual blocks: which modules are some, and what is left when they are taken out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.checkpoint.manifest import Manifest, Masks, RemovedBlock
from prunecli.checkpoint.masks import renamed
from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.blocks import at_random, block_influence, loss_increase
from prunecli.errors import MethodError, ModelError, VerificationError
from prunecli.methods import depth
from prunecli.models.loading import load_file
from prunecli.surgery.blocks.residual import ResidualBlock, residual_blocks
from prunecli.surgery.blocks.switching import switched_off
from prunecli.surgery.blocks.taking_out import in_order, take_out
from prunecli.surgery.proof.without_blocks import verify_without_blocks

WIDTH = 8


class Pre(nn.Module):
    """x + f(norm(x)), twice."""

    def __init__(self, width: int = WIDTH, rate: float = 0.2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.mlp = (
            nn.Linear(width, width),
            nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width)),
        )
        self.dropout = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.mix(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class Post(nn.Module):
    """norm(x + f(x)), each half in a module of its own, as in BERT."""

    class Half(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.linear(x))

    class Output(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return self.norm(self.linear(x) + residual)

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.attention, self.cross, self.inner = Post.Half(width), Post.Half(width), nn.Linear(width, width)
        self.output = Post.Output(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cross(self.attention(x))
        return self.output(self.inner(x).relu(), x)


class Halves(nn.Module):
    """A block that consists of residual halves of two kinds in a list, as in T5; it returns a tuple."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Pre(), Post.Half(WIDTH)])
        if first:
            self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if bias is None:
            bias = self.bias if hasattr(self, "bias") else torch.zeros(WIDTH)
        return self.layer[1](self.layer[0](x) + 0 * bias.sum()) + bias, bias


class Stack(nn.Module):
    """Blocks in a list, a stem and a head."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem, self.layers, self.head = nn.Linear(5, WIDTH), nn.ModuleList(blocks), nn.Linear(WIDTH, 3)
        self.num_layers = len(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
        return logits


def drawn(network: nn.Module) -> nn.Module:
    """Random weights everywhere, so that nothing is zero or one by chance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    return network.eval()


def stack(count: int = 4, kind: Callable[[], nn.Module] = Pre) -> nn.Module:
    return drawn(Stack([kind() for _ in range(count)]))


def x(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 6, 5), generator=torch.Generator().manual_seed(1))


def names(network: nn.Module, inputs: Any = None) -> list[str]:
    return [block.name for block in residual_blocks(network, x() if inputs is None else inputs)]


@pytest.mark.parametrize("kind", [Pre, Post])
def test_blocks_are_found_whatever_their_class_is_called(kind: Callable[[], nn.Module]) -> None:
    assert names(stack(3, kind)) == ["layers.0", "layers.1", "layers.2"]


class _Gated(nn.Module):
    """x times f(x): off, it would not pass its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear(x).sigmoid()


class _Halved(_Gated):
    """half of x plus f(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + self.linear(x)


class _Position(_Gated):
    """x plus something that x has no part in."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear.bias


class _Sub(_Gated):
    """f(x) minus x."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) - x


class _Aside(_Gated):
    """The sum is computed and not returned."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        (x + y).sum()
        return y


@pytest.mark.parametrize("kind", [_Gated, _Halved, _Position, _Sub, _Aside, lambda: nn.Linear(WIDTH, WIDTH)])
def test_other_modules_that_keep_the_shape_are_none(kind: Callable[[], nn.Module]) -> None:
    assert names(stack(2, kind)) == []
    with pytest.raises(MethodError, match=r"no residual blocks.*such as l1"):
        prunecli.prune(stack(2, kind), "depth", example_inputs=x())


def test_a_stage_is_a_chain_and_its_blocks_count() -> None:
    stages = nn.Sequential(nn.Sequential(Pre(), Pre()), nn.Sequential(Pre(), Post()))
    network = drawn(nn.Sequential(nn.Linear(5, WIDTH), stages, nn.Linear(WIDTH, 3)))
    assert names(network) == ["1.0.0", "1.0.1", "1.1.0", "1.1.1"]


class _Around(nn.Module):
    """x plus a convolution of a chain of blocks, as in SwinIR: the whole is the block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.Sequential(Pre(), Pre()), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x)) + x  # type: ignore[no-any-return]


class _Before(_Around):
    """A position term is added first, as in wav2vec 2.0: the blocks behind it count."""

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x + self.last(x))  # type: ignore[no-any-return]


def test_what_adds_around_a_chain_is_one_block_and_what_adds_before_it_none() -> None:
    assert names(stack(2, _Around)) == ["layers.0", "layers.1"]
    assert names(stack(1, _Before)) == ["layers.0.blocks.0", "layers.0.blocks.1"]


def test_a_block_of_residual_halves_is_one_block() -> None:
    class Tuples(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x, bias = self.stem(x), None
            for layer in self.layers:
                x, bias = layer(x, bias)
            return self.head(x)  # type: ignore[no-any-return]

    network = drawn(Tuples([Halves(first=index == 0) for index in range(3)]))
    found = residual_blocks(network, x())
    assert [block.name for block in found] == ["layers.0", "layers.1", "layers.2"]
    assert not any(block.bare for block in found)
    result = prunecli.prune(network, "depth", example_inputs=x(), drop="layers.1")  # there is dropout in those behind
    assert result.report.removed == ("layers.1",) and result.report.verify_error == 0.0
    with pytest.raises(MethodError, match=r"layers.0 cannot be removed: the network without its blocks differs"):
        prunecli.prune(network, "depth", example_inputs=x(), drop="layers.0")


def by_hand(network: Any, inputs: Tensor, off: list[int]) -> Tensor:
    stream = network.stem(inputs)
    for index, layer in enumerate(network.layers):
        stream = stream if index in off else layer(stream)
    logits: Tensor = network.head(stream)
    return logits


def test_what_is_left_computes_what_the_others_compute() -> None:
    network = stack(5)
    result = prunecli.prune(network, "depth", example_inputs=x(), drop=["layers.1", "layers.3"])
    assert result.report.removed == ("layers.1", "layers.3") and result.report.achieved == 0.4
    assert [block.name for block in result.manifest.blocks] == ["layers.3", "layers.1"]
    model: Any = result.model
    assert len(model.layers) == 3 and model.num_layers == 3 and len(network.layers) == 5  # type: ignore[arg-type]
    assert torch.equal(model(x(4, 7, 5)), by_hand(network, x(4, 7, 5), [1, 3]))
    assert result.report.verify_error == 0.0
    assert result.report.params_before - result.report.params_after == 2 * sum(p.numel() for p in Pre().parameters())


def test_names_are_taken_out_from_the_end() -> None:
    assert in_order(["a.2", "a.10", "a.1", "b.3"]) == ["b.3", "a.10", "a.2", "a.1"]
    network: Any = stack(12)
    former = take_out(network, [RemovedBlock(name=name) for name in in_order(["layers.2", "layers.10"])])
    assert len(network.layers) == 10
    assert former["layers.2"] == "layers.3" and former["layers.9.mlp.0"] == "layers.11.mlp.0"
    assert former["layers.1"] == "layers.1" and former[""] == ""


def test_a_block_that_is_an_attribute_leaves_something_that_passes_on() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = nn.Linear(5, WIDTH), Pre(), Pre()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(self.stem(x)))  # type: ignore[no-any-return]

    network: Any = drawn(Named())
    result = prunecli.prune(network, "depth", example_inputs=x(), drop="first")
    assert [block.left for block in result.manifest.blocks] == ["identity"]
    assert torch.equal(result.model(x()), network.second(network.stem(x())))
    assert not list(result.model.first.parameters())  # type: ignore[union-attr]


class Paired(Stack):
    """Every layer has a scale of its own number, so one that is gone moves all others to another scale."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.scales = nn.Parameter(torch.rand(len(blocks), WIDTH) + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, scale in zip(self.layers, self.scales, strict=False):
            x = layer(x) * scale
        return self.head(x)  # type: ignore[no-any-return]


def test_where_the_number_of_a_block_counts_something_stands_in_its_place(tmp_path: Path) -> None:
    network = drawn(Paired([Pre() for _ in range(3)]))
    result = prunecli.prune(network, "depth", example_inputs=x(), drop="layers.1")
    assert [(block.name, block.left) for block in result.manifest.blocks] == [("layers.1", "identity")]
    with switched_off(network, [ResidualBlock("layers.1", 0, True, 0)]):
        assert torch.equal(result.model(x()), network(x()))
    result.save(tmp_path / "p.safetensors")
    restored = prunecli.load(tmp_path / "p.safetensors", network)
    assert torch.equal(restored(x()), result.model(x()))
    again = prunecli.prune(restored, "depth", example_inputs=x(), drop="layers.0")
    again.save(tmp_path / "q.safetensors")
    assert torch.equal(prunecli.load(tmp_path / "q.safetensors", network)(x()), again.model(x()))


@pytest.mark.parametrize("wrong", ["another block", "one more", "nothing", "another weight"])
def test_the_proof_sees_what_went_wrong(wrong: str) -> None:
    network: Any = stack(4)
    block = next(block for block in residual_blocks(network, x()) if block.name == "layers.1")
    pruned = copy.deepcopy(network)
    former = take_out(pruned, [RemovedBlock(name="layers.1")])
    assert verify_without_blocks(network, pruned, [block], former, x()) == 0.0
    if wrong == "another weight":
        with torch.no_grad():
            pruned.layers[1].mix.weight[0, 0] += 1e-3
    else:
        pruned = copy.deepcopy(network)
        gone = {"another block": ["layers.2"], "one more": ["layers.2", "layers.1"], "nothing": []}[wrong]
        former = take_out(pruned, [RemovedBlock(name=name) for name in gone])
    with pytest.raises(VerificationError):
        verify_without_blocks(network, pruned, [block], former, x())


def test_a_zero_scale_hides_no_mistake() -> None:
    class Scaled(Pre):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gamma * self.mlp(self.norm2(x))

    network = Stack([Scaled() for _ in range(3)]).eval()  # at first no block does anything
    block = next(block for block in residual_blocks(network, x()) if block.name == "layers.1")
    pruned = copy.deepcopy(network)
    former = take_out(pruned, [RemovedBlock(name="layers.2")])
    assert torch.equal(network(x()), pruned(x()))
    with pytest.raises(VerificationError, match="differs"):
        verify_without_blocks(network, pruned, [block], former, x())


@pytest.mark.parametrize("rate", [0.0, 0.6])  # at that rate, equal draws would leave out all layers in training
def test_training_is_compared_too(rate: float) -> None:
    class Late(Stack):
        layerdrop = rate

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for index, layer in enumerate(self.layers):
                if not self.training or torch.rand([]) >= self.layerdrop:
                    x = layer(x) * (1 + index if self.training else 1)
            return self.head(x)  # type: ignore[no-any-return]

    made = drawn(Late([Pre() for _ in range(3)]))
    made.layerdrop = rate
    result = prunecli.prune(made, "depth", example_inputs=x(), drop="layers.0")
    assert [block.left for block in result.manifest.blocks] == ["identity"]


def test_dropout_and_layer_drop_do_not_disturb_the_proof() -> None:
    class Dropping(Stack):
        def __init__(self, blocks: list[nn.Module]) -> None:
            super().__init__(blocks)
            self.layerdrop = 0.5

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                if not self.training or torch.rand([]) >= self.layerdrop:
                    x = layer(x)
            return self.head(x)  # type: ignore[no-any-return]

    network = drawn(Dropping([Pre(rate=0.5) for _ in range(4)]))
    for gone in ("layers.0", "layers.1", "layers.[12]"):
        result = prunecli.prune(network, "depth", example_inputs=x(), drop=gone)
        assert {block.left for block in result.manifest.blocks} == {"nothing"}, gone
        assert result.report.verify_error == 0.0 and result.model.layerdrop == 0.5


def test_scores_are_what_their_names_say() -> None:
    network: Any = stack(3)
    blocks = residual_blocks(network, x())
    data = [(x(2, 6, 5), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)), (x(3, 6, 5), torch.tensor([[2, 1, 0, 0, 1, 2]] * 3))]
    calibration = Calibration(batches=data, example_inputs=x())
    cosines = block_influence(network, blocks, [], calibration)
    stream, expected = [network.stem(inputs).double() for inputs, _ in data], {}
    for index, layer in enumerate(network.layers.double()):
        after = [layer(part) for part in stream]
        pairs = [nn.functional.cosine_similarity(a, b, dim=-1) for a, b in zip(stream, after, strict=True)]
        expected[f"layers.{index}"] = float(1 - torch.cat([pair.detach().flatten() for pair in pairs]).mean())
        stream = after
    network.float()
    assert cosines == pytest.approx(expected, rel=1e-5)
    losses = loss_increase(network, blocks, [], calibration)

    def loss(off: list[int]) -> float:
        with torch.no_grad():
            return sum(float(default_loss(by_hand(network, inputs, off), labels)) for inputs, labels in data) / 5

    assert losses == pytest.approx({f"layers.{i}": loss([i]) - loss([]) for i in range(3)}, rel=1e-4, abs=1e-6)
    beside = loss_increase(network, blocks[1:], blocks[:1], calibration)
    assert beside["layers.2"] == pytest.approx(loss([0, 2]) - loss([0]), rel=1e-4, abs=1e-6)
    assert at_random(network, blocks, [], Calibration()) == at_random(
        network, blocks, [], Calibration(torch.Generator())
    )


def test_without_labels_the_loss_is_the_distance_to_the_whole_network() -> None:
    network: Any = stack(3)
    calibration = Calibration(batches=[x(2, 6, 5), x(3, 6, 5)], example_inputs=x())
    losses = loss_increase(network, residual_blocks(network, x()), [], calibration)
    both = [x(2, 6, 5), x(3, 6, 5)]
    moved = sum(float((by_hand(network, one, [1]) - network(one)).square().sum()) for one in both) / 2 / 5
    assert losses["layers.1"] == pytest.approx(moved, rel=1e-4) and min(losses.values()) > 0


def test_the_lowest_go_and_kept_ones_stay() -> None:
    network = stack(4)
    every = prunecli.prune(network, "depth", example_inputs=x(), data=[x()], blocks=2).report
    order = sorted(every.scores, key=lambda name: every.scores[name])
    assert len(order) == 4 and sorted(every.removed) == sorted(order[:2])
    kept = prunecli.prune(network, "depth", example_inputs=x(), data=[x()], blocks=2, keep=[order[0]]).report
    assert sorted(kept.removed) == sorted(order[1:3])
    assert {entry.name: entry.reason for entry in kept.untouched} == {order[0]: f"kept by pattern {order[0]!r}"}


def test_greedy_scores_the_rest_anew() -> None:
    network = stack(3)
    with torch.no_grad():
        for index in range(3):
            block: Any = network.get_submodule(f"layers.{index}")
            for parameter in block.parameters():
                parameter.zero_()
        biases = [network.get_submodule(f"layers.{index}.mlp.2").bias for index in range(3)]
        for bias, value in zip(biases, (1.0, -1.1, 1.3), strict=True):  # with 0 gone, 1 alone leaves 0.2 too little
            bias.fill_(value)  # type: ignore[union-attr, operator]

    def removed(**how: Any) -> tuple[str, ...]:
        found = prunecli.prune(network, "depth", example_inputs=x(), data=[x()], score="loss", blocks=2, **how)
        return found.report.removed

    assert removed() == ("layers.0", "layers.1")
    assert removed(greedy=True) == ("layers.0", "layers.1")
    with torch.no_grad():
        biases[2].fill_(-1.2)  # type: ignore[union-attr, operator]
        biases[1].fill_(1.1)  # type: ignore[union-attr, operator]
    assert removed() == ("layers.0", "layers.1")  # 1.0 and 1.1 are the smallest
    assert removed(greedy=True) == ("layers.0", "layers.2")  # but 1.0 and -1.2 nearly undo each other


def test_a_share_is_rounded_and_one_block_stays() -> None:
    for ratio, count in ((0.01, 1), (0.4, 2), (0.5, 2), (0.6, 2), (0.99, 3)):
        assert len(prunecli.prune(stack(4), "depth", example_inputs=x(), ratio=ratio).report.removed) == count, ratio


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ratio": 0.5, "blocks": 2}, "ratio and blocks both say which blocks go"),
        ({"drop": ["layers.1"], "blocks": 2}, "blocks and drop both say"),
        ({"drop": ["layers.1"], "greedy": True}, "greedy=True chooses blocks one by one and drop names them"),
        ({"drop": "layers.7"}, r"block 'layers.7'.*layers\.\d"),
        ({"drop": "layers.*"}, "drop names all 4 blocks of the network; leave at least one"),
        ({"drop": "layers.0", "keep": ["layers.0"]}, "layers.0 cannot be removed: kept by pattern 'layers.0'"),
        ({"blocks": 4}, "4 blocks cannot be removed: 3 of the network's 4 can be"),
        ({"blocks": 3, "keep": ["layers.[01]"]}, "2 of the network's 4 can be; layers.0: kept by .* and 1 more"),
        ({"keep": ["layers.*"]}, "0 of the network's 4 can be"),
        ({"keep": ["body.*"]}, r"layer pattern 'body.\*'"),
        (
            {"score": "loss"},
            "score='loss' is measured on data: give calibration batches as data=, or choose score='cosine'",
        ),
        ({"score": "taylor"}, "score"),
        ({"heads": True}, "parameter of depth"),
        ({"compensate": "ls"}, "takes neither compensate"),
        ({"recalibrate": True}, "recalibrate=True needs data"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message) as raised:
        prunecli.prune(stack(4), "depth", example_inputs=x(), **params)
    assert "\n" not in str(raised.value)


def test_a_wrong_result_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model: nn.Module, removed: list[RemovedBlock]) -> dict[str, str]:
        return take_out(model, [RemovedBlock(name="layers.0")])

    monkeypatch.setattr(depth, "take_out", careless)
    with pytest.raises((VerificationError, MethodError)):
        prunecli.prune(stack(4), "depth", example_inputs=x(), drop="layers.2")


def test_width_and_depth_in_any_order_come_back_bit_by_bit(tmp_path: Path) -> None:
    network = stack(5)
    wide = prunecli.prune(network, "l1", example_inputs=x(), ratio=0.3)
    shallow = prunecli.prune(wide.model, "depth", example_inputs=x(), blocks=2)
    both = prunecli.prune(shallow.model, "l1", example_inputs=x(), ratio=0.3)
    last = prunecli.prune(both.model, "depth", example_inputs=x(), blocks=1)
    for number, result in enumerate((wide, shallow, both, last)):
        path = tmp_path / f"{number}.safetensors"
        result.save(path)
        restored = prunecli.load(path, network)
        assert torch.equal(restored(x()), result.model(x())), number
    assert [step.settings["method"] for step in last.manifest.history] == ["l1", "depth", "l1", "depth"]
    assert len(last.manifest.blocks) == 3 and len(last.model.layers) == 2  # type: ignore[arg-type]


def test_a_file_says_what_was_taken_out_and_others_keep_their_bytes(tmp_path: Path) -> None:
    import json

    network = stack(3)
    prunecli.prune(network, "l1", example_inputs=x(), ratio=0.3).save(tmp_path / "wide.safetensors")
    result = prunecli.prune(network, "depth", example_inputs=x(), blocks=1)
    assert "blocks" not in json.loads(prunecli.prune(network, "l1", example_inputs=x()).manifest.to_json())
    assert json.loads(result.manifest.to_json())["blocks"] == [{"name": result.report.removed[0], "left": "nothing"}]
    assert b'"blocks"' not in (tmp_path / "wide.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "left", "message"),
    [
        ("layers.9", "nothing", "takes out module 'layers.9', which the architecture does not have"),
        ("", "nothing", "which the architecture does not have"),
        ("layers.1.mlp.0.weight", "nothing", "which the architecture does not have"),
        ("layers.1.mix", "nothing", "out of a list, and the architecture has none there"),
    ],
)
def test_a_record_of_another_network_is_refused(name: str, left: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        take_out(stack(3), [RemovedBlock(name=name, left=left)])


def test_an_altered_record_does_not_pass_unseen(tmp_path: Path) -> None:
    network, path = stack(3), tmp_path / "p.safetensors"
    result = prunecli.prune(network, "depth", example_inputs=x(), blocks=1)
    other = next(f"layers.{i}" for i in range(3) if f"layers.{i}" != result.report.removed[0])
    changed = Manifest.model_validate({**result.manifest.model_dump(by_alias=True), "blocks": []})
    from prunecli.models.loading import save

    with pytest.raises(ModelError):
        save(path, prunecli.prune(network, "depth", example_inputs=x(), drop=other).model, changed, None)
        load_file(path)


def test_masks_move_with_their_layers() -> None:
    masks = Masks(weights=["layers.0.mix.weight", "layers.2.mix.weight", "head.weight"], spikes={"layers.2.lif": (3,)})
    former = {"": "", "layers.0.mix": "layers.0.mix", "layers.1.mix": "layers.2.mix", "head": "head"}
    moved = renamed(masks, former | {"layers.1.lif": "layers.2.lif"})
    assert moved.weights == ["layers.0.mix.weight", "layers.1.mix.weight", "head.weight"]
    assert moved.spikes == {"layers.1.lif": (3,)}
