"""Networks of transformers on texts: what is scored, what padding may change, and which positions count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import prunecli
from prunecli.criteria.base import Calibration
from prunecli.criteria.obs import obs
from prunecli.inputs import call, logits
from prunecli.models.token_networks import (
    accepts,
    heeds_padding,
    learned_classes,
    longest_sequence,
    looks_ahead,
    padding_token,
    purpose_of,
    vocabulary_size,
    widest_input,
)
from prunecli.surgery.taps import attended_positions, counted_rows

VOCABULARY = 53
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


def llama(**settings: Any) -> nn.Module:
    config = transformers.LlamaConfig(**_TEXT, num_key_value_heads=2, head_dim=6, pad_token_id=0, **settings)
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bert(**settings: Any) -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**_TEXT, num_labels=3, **settings)).eval()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def _tokens(*shape: int) -> Tensor:
    return torch.randint(1, VOCABULARY, shape)


def test_what_a_network_is_its_configuration_says() -> None:
    assert [purpose_of(network) for network in (llama(), gpt2(), bert())] == ["next token", "next token", "classes"]
    assert vocabulary_size(llama()) == vocabulary_size(gpt2()) == VOCABULARY
    assert (longest_sequence(llama()), longest_sequence(gpt2()), longest_sequence(nn.Linear(2, 2))) == (32, 32, None)
    assert widest_input(llama()) == 40 and widest_input(bert()) == 40 and widest_input(gpt2()) == 96
    assert (padding_token(bert()), padding_token(gpt2()), padding_token(llama())) == (0, None, 0)
    assert accepts(bert(), "token_type_ids") and not accepts(llama(), "token_type_ids")
    assert learned_classes(bert()) == () == learned_classes(llama())
    assert learned_classes(bert(id2label={0: "a", 1: "b", 2: "c"})) == ("a", "b", "c")


def test_positions_that_begin_behind_that_of_padding_are_fewer() -> None:
    config = transformers.RobertaConfig(**{**_TEXT, "max_position_embeddings": 34}, pad_token_id=1)
    network = transformers.RobertaForSequenceClassification(config).eval()
    longest = longest_sequence(network)
    assert longest == 32
    call(network, {"input_ids": _tokens(1, 32).clamp(min=2), "attention_mask": torch.ones(1, 32, dtype=torch.long)})
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        network(_tokens(1, 33).clamp(min=2))


def test_networks_that_see_what_they_predict_are_found_out() -> None:
    assert not looks_ahead(llama(), _tokens(1, 9)) and not looks_ahead(gpt2(), _tokens(1, 9))
    both = transformers.BertLMHeadModel(transformers.BertConfig(**_TEXT, is_decoder=False)).eval()
    assert purpose_of(both) == "next token" and looks_ahead(both, _tokens(1, 9))
    causal = transformers.BertLMHeadModel(transformers.BertConfig(**_TEXT, is_decoder=True)).eval()
    assert not looks_ahead(causal, _tokens(1, 9))


def test_networks_that_pay_attention_to_padding_are_found_out() -> None:
    one = {"input_ids": _tokens(1, 7), "attention_mask": torch.ones(1, 7, dtype=torch.long)}
    assert not heeds_padding(bert(), one, 0)
    settings = dict(_TEXT, num_key_value_heads=2, head_dim=6, num_labels=3)
    last = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**settings, pad_token_id=0)).eval()
    assert not heeds_padding(last, one, 0) and heeds_padding(last, one, 5)  # it looks for its own padding


def test_positions_that_count() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    attended = attended_positions({"input_ids": mask, "attention_mask": mask})
    assert attended is not None and attended.tolist() == mask.bool().tolist()
    values = torch.arange(12.0).reshape(2, 3, 2)
    assert counted_rows(values, attended).tolist() == [[0, 1], [2, 3], [6, 7]]
    assert counted_rows(values.flatten(0, 1), attended).tolist() == [[0, 1], [2, 3], [6, 7]]
    assert counted_rows(values[:, 0], attended).tolist() == values[:, 0].tolist()  # a pooled position of each sample
    assert counted_rows(values[None], attended).shape == (6, 2)
    for inputs in ({"attention_mask": torch.ones(2, 3)}, {"attention_mask": torch.zeros(2, 1, 3, 3)}, mask, (mask,),
                   {"attention_mask": mask, "decoder_input_ids": mask}):  # fmt: skip
        assert attended_positions(inputs) is None


def _texts(network: nn.Module, garbage: int) -> list[dict[str, Tensor]]:
    """Batches of texts whose padding holds a token; and every text alone, without padding."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(6):
        ids = torch.randint(1, VOCABULARY, (6, 11), generator=generator)
        mask = torch.ones_like(ids)
        for row, length in enumerate(torch.randint(3, 12, (6,), generator=generator)):
            mask[row, length:] = 0
        ids[mask == 0] = garbage
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def _same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(torch.allclose(a, b, atol=1e-4) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("method", ["l1", "obs", "taylor", "activation"])
def test_padding_counts_neither_in_scores_nor_in_repairs(method: str) -> None:
    """What padded positions hold depends on the token that fills them up, and must not matter."""
    network = bert()
    example = {"input_ids": _tokens(1, 8), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    pruned = [
        prunecli.prune(
            network, method, example_inputs=example, data=_texts(network, garbage), compensate="ls", ratio=0.5
        ).model
        for garbage in (0, 7)
    ]
    assert _same(*pruned)
    probe = {"input_ids": _tokens(4, 9), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    torch.testing.assert_close(*(logits(call(model, probe)) for model in pruned), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("compensate", ["none", "ls"])
def test_layers_with_inputs_first_are_repaired_like_others(compensate: Any) -> None:
    """A copy of GPT-2's feed-forward layer whose weights lie the usual way gives the same."""
    from transformers.pytorch_utils import Conv1D

    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = Conv1D(20, 6), Conv1D(5, 20), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    class Usual(nn.Module):
        def __init__(self, other: Flipped) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 20), nn.Linear(20, 5), nn.Linear(5, 3)
            self.last.load_state_dict(other.last.state_dict())
            for name in ("first", "second"):
                layer, like = getattr(self, name), getattr(other, name)
                layer.weight.data, layer.bias.data = like.weight.data.T.clone(), torch.randn(len(like.bias))
                like.bias.data = layer.bias.data.clone()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    flipped = Flipped().eval()
    for layer in (flipped.first, flipped.second):
        nn.init.normal_(layer.weight)
    usual = Usual(flipped).eval()
    data = [torch.randn(64, 6) @ torch.randn(6, 6) for _ in range(4)]
    for method in ("l1", "obs", "taylor"):
        results = [
            prunecli.prune(net, method, example_inputs=data[0][:1], data=data, compensate=compensate, ratio=0.5)
            for net in (flipped, usual)
        ]
        assert results[0].report.compensated == results[1].report.compensated
        torch.testing.assert_close(results[0].model(data[0]), results[1].model(data[0]), atol=1e-4, rtol=1e-4)


def test_every_group_of_gpt2_is_ranked_by_obs() -> None:
    network = gpt2()
    data = [_tokens(8, 12) for _ in range(4)]
    result = prunecli.prune(network, "obs", example_inputs=_tokens(1, 12), data=data, compensate="ls", ratio=0.3)
    assert not [entry for entry in result.report.untouched if "watched" in entry.reason]
    assert result.report.compensated > 0
    trace = result.trace
    assert all(not isinstance(score, str) for score in obs(network, trace.groups, Calibration(batches=data)).values())
