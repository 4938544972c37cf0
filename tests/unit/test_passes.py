"""What is followed and compared beside one pass in evaluation mode: training, branches, outputs, random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from prunecli.errors import DataDependentError, ModelError, VerificationError
from prunecli.surgery.outputs import chosen_outputs, default_outputs, free_outputs
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.reasons import UNREAD
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.trial import half_of

X = torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 24, 1)
        self.head, self.aux = nn.Linear(24, 5), nn.Linear(16, 7)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.b(F.relu(self.a(x))))
        return self.head(F.relu(self.c(y)).mean((2, 3))), self.aux(y.mean((2, 3)))


def test_what_only_training_returns_keeps_its_width() -> None:
    class Auxiliary(Body):
        def forward(self, x: Tensor) -> Any:
            scores, other = self.parts(x)
            return (scores, other) if self.training else scores

    result = prunecli.prune(Auxiliary().eval(), "l1", example_inputs=X, ratio=0.5)
    assert result.model.aux.out_features == 7 and result.model.b.out_channels < 16
    scores, other = result.model.train()(torch.cat([X, X]))
    assert scores.shape == (2, 5) and other.shape == (2, 7)


def test_what_nobody_reads_is_not_free_to_go() -> None:
    class Wasted(Body):
        def forward(self, x: Tensor) -> Tensor:
            return self.parts(x)[0]

    traced = trace(Wasted().eval(), X)
    assert "aux" not in {group.name for group in traced.groups}
    assert next(frozen.reason for frozen in traced.frozen if frozen.name == "aux") == UNREAD


def test_training_is_compared_with_equal_random_numbers() -> None:
    class Noisy(Body):
        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(F.relu(self.b(F.dropout2d(F.relu(self.a(x)), 0.5, self.training))), 0.5, self.training)
            if self.training:
                y = y + torch.rand_like(y)
            return self.head(F.relu(self.c(y * torch.empty(y.shape[0], 1, 1, 1).bernoulli_(0.9))).mean((2, 3)))

    result = prunecli.prune(Noisy().eval(), "l1", example_inputs=X, ratio=0.5)
    assert result.report.verify_error < 1e-12 and result.model.c.out_channels < 24


def test_a_difference_in_training_mode_alone_is_found() -> None:
    class Counting(Body):
        def forward(self, x: Tensor) -> Tensor:
            scores = self.parts(x)[0]
            return scores * self.b.weight.shape[0] if self.training else scores

    model = Counting().eval()
    traced = trace(model, X)
    keep = half_of(traced.groups)
    pruned = Counting().eval()
    pruned.load_state_dict(model.state_dict())
    remove(pruned, traced.groups, keep)
    with pytest.raises(VerificationError, match="differs from the masked original"):
        verify(model, pruned, traced, keep, X)


@pytest.mark.parametrize("check", ["assertion", "log", "clamp", "input alone", "branch"])
def test_values_that_are_read_do_not_stop_a_trace(check: str) -> None:
    class Reading(Body):
        def forward(self, x: Tensor) -> Tensor:
            if check == "input alone" and x.max() > 100:
                x = x / 255
            scores = self.parts(x)[0]
            if check == "assertion":
                assert not torch.isnan(scores).any(), "NaN"
            if check == "log":
                self.last = float(scores.abs().mean())
            if check == "clamp" and bool(torch.isinf(scores).any()):
                scores = scores.clamp(-1e4, 1e4)
            if check == "branch":
                scores = scores * 2 if scores.sum() > 0 else scores
            return scores

    result = prunecli.prune(Reading().eval(), "l1", example_inputs=X, ratio=0.5)
    assert result.model.b.out_channels < 16


def test_a_forward_pass_in_inference_mode_is_followed() -> None:
    class Inferring(Body):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Any:
            return self.parts(x)

    assert prunecli.prune(Inferring().eval(), "l1", example_inputs=X, ratio=0.5).model.b.out_channels < 16


def test_the_branch_not_taken_holds_its_channels_too() -> None:
    class Either(Body):
        def __init__(self) -> None:
            super().__init__()
            del self.aux

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.b(F.relu(self.a(x))))
            wide = F.relu(self.c(y)).mean((2, 3))
            return self.head(wide) if wide.mean() > -1 else wide

    traced = trace(Either().eval(), X)
    assert "c" not in {group.name for group in traced.groups}


def test_layers_behind_a_decision_that_the_inputs_never_take_are_named() -> None:
    class Routed(Body):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.b(F.relu(self.a(x))))
            index = int(y.mean((2, 3)).argmax())
            return self.head(F.relu(self.c(y)).mean((2, 3))) if index < 99 else self.aux(y.mean((2, 3)))

    with pytest.raises(DataDependentError, match=r"aux\.weight was not reached"):
        trace(Routed().eval(), X)


@dataclass
class Output:
    logits: Tensor
    last_hidden_state: Tensor


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(6, 32), nn.Linear(32, 48), nn.Linear(48, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Output:
        y = self.embed(x)
        y = y + self.down(F.gelu(self.up(y)))
        return Output(self.head(y), y)


def test_hidden_states_beside_scores_may_shrink_and_are_named() -> None:
    x = torch.randn(2, 5, 6)
    result = prunecli.prune(Encoder().eval(), "l1", example_inputs=x, ratio=0.5, scope="local")
    assert result.report.outputs == ("logits",) and result.report.free_outputs == ("last_hidden_state",)
    out = result.model(x)
    assert out.logits.shape == (2, 5, 4) and out.last_hidden_state.shape == (2, 5, 16)


def test_outputs_are_chosen_by_name() -> None:
    x = torch.randn(2, 5, 6)
    for outputs in (["last_hidden_state"], "logits,last_hidden_state"):
        result = prunecli.prune(Encoder().eval(), "l1", example_inputs=x, ratio=0.5, outputs=outputs)
        assert result.model(x).last_hidden_state.shape == (2, 5, 32)
    with pytest.raises(ModelError, match="unknown output 'logit': did you mean 'logits'"):
        prunecli.prune(Encoder().eval(), "l1", example_inputs=x, outputs=["logit"])


@pytest.mark.parametrize("draw", [torch.bernoulli, lambda p: torch.normal(p, 1.0), torch.poisson])
def test_an_operator_that_draws_does_not_hide_what_it_is_given(draw: Any) -> None:
    class Sampling(Body):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.b(F.relu(self.a(x))))
            rates = F.relu(self.c(y)).mean((2, 3)).sigmoid() / y.shape[1]  # the width enters the numbers
            return self.head(draw(rates))

    model = Sampling().eval()
    traced = trace(model, X)
    keep = half_of([traced.group("b")])
    pruned = Sampling().eval()
    pruned.load_state_dict(model.state_dict())
    remove(pruned, traced.groups, keep)
    with pytest.raises(VerificationError, match="random operator"):
        verify(model, pruned, traced, keep, X)


@pytest.mark.parametrize("read", ["training", "integer", "many"])
def test_reads_of_every_kind_are_answered_both_ways(read: str) -> None:
    class Reading(Body):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(16, 24, 1)
            del self.aux

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.b(F.relu(self.a(x))))
            z = self.c(y)
            if read == "training" and self.training and y.max() > 1e6:
                z = z + self.wide(y)
            if read == "integer" and int((y > 1e6).sum()) > 0:
                z = z + self.wide(y)
            for _ in range(12 if read == "many" else 0):
                if torch.isnan(z).any():
                    raise ValueError("NaN")
            return self.head(F.relu(z if read != "many" else z + self.wide(y)).mean((2, 3)))

    traced = trace(Reading().eval(), X)
    assert "wide" in {name for group in traced.groups for name in group.modules("producer")}


def test_outputs_of_a_part_all_keep_their_width() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = Encoder(), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x).last_hidden_state)

    x = torch.randn(2, 5, 6)
    result = prunecli.prune(Whole().eval(), "l1", example_inputs=x, ratio=0.5, only="body")
    assert result.model.body.embed.out_features == 32 and result.model.body.up.out_features < 48
    with pytest.raises(ModelError, match="outputs and only exclude each other"):
        prunecli.prune(Whole().eval(), "l1", example_inputs=x, only="body", outputs="logits")


def test_a_boolean_output_and_one_with_nan_are_compared() -> None:
    class Flags(Body):
        def forward(self, x: Tensor) -> Any:
            scores = self.parts(x)[0]
            return scores, scores > 0

    assert prunecli.prune(Flags().eval(), "l1", example_inputs=X, ratio=0.5).report.verify_error < 1e-12


def test_feature_maps_beside_predictions_are_no_predictions() -> None:
    boxes, scores, first, second = (torch.zeros(size) for size in (1, 2, 3, 4))
    raw = {"boxes": boxes, "scores": scores, "feats": [first, second]}
    for output, free in (
        (raw, ("feats",)),
        ((boxes, raw), ("1.feats",)),
        ((boxes, {"one2many": raw, "one2one": raw}), ("1.one2many.feats", "1.one2one.feats")),
    ):
        names = default_outputs(output)
        assert names is not None and not any("feats" in name for name in names)
        assert all(len(tensor) < 3 for tensor in chosen_outputs(output, None))
        assert free_outputs(output, None) == free
    alone = {"scores": scores, "feats": [first]}
    assert len(chosen_outputs(alone, None)) == 2 and free_outputs(alone, None) == ()
    assert [len(tensor) for tensor in chosen_outputs(raw, ("feats.1",))] == [4]
    assert [len(tensor) for tensor in chosen_outputs(raw, ("0", "1.boxes"))] == [1, 2], "another pass's names"
    assert len(chosen_outputs(raw, ())) == 4
