"""Small recurrent networks, and the groups of their hidden units written down by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.surgery.groups import ChannelGroup, Member

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


class Words(nn.Module):
    """A language model of two layers, which run steps first; tokens come as (samples, steps)."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, words: int = 11, width: int = 5, units: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.first, self.second = kind(width, units), kind(units, units + 1)
        self.decode = nn.Linear(units + 1, words)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.second(self.first(self.embed(tokens).transpose(0, 1))[0])
        return self.decode(outputs.transpose(0, 1))


def hidden_group(model: nn.Module, name: str, *readers: tuple[str, str]) -> ChannelGroup:
    """The hidden units of the one-layer module `name`, which `readers`, (module, weight), read beside itself."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.RNNBase)
    units, gates = module.hidden_size, GATES[type(module)]
    plain = torch.arange(units)[:, None]
    rows = plain + units * torch.arange(gates)
    members = [Member(name, "weight_ih_l0", 0, rows, "producer"), Member(name, "weight_hh_l0", 0, rows, "producer")]
    if module.bias:
        members += [Member(name, bias, 0, rows, "producer") for bias in ("bias_ih_l0", "bias_hh_l0")]
    members += [Member(name, "weight_hh_l0", 1, plain, "consumer")]
    members += [Member(reader, weight, 1, plain, "consumer") for reader, weight in readers]
    return ChannelGroup(name, units, units, tuple(members))


def words_groups(model: nn.Module) -> list[ChannelGroup]:
    """Both groups of `Words`, and that of its embedding."""
    width = torch.arange(model.embed.embedding_dim)[:, None]  # type: ignore[union-attr,arg-type]
    members = (Member("embed", "weight", 1, width, "producer"), Member("first", "weight_ih_l0", 1, width, "consumer"))
    return [
        ChannelGroup("embed", len(width), len(width), members),
        hidden_group(model, "first", ("second", "weight_ih_l0")),
        hidden_group(model, "second", ("decode", "weight")),
    ]


def tokens(batches: int = 3, samples: int = 4, steps: int = 7, words: int = 11) -> list[tuple[Tensor, Tensor]]:
    """Batches of tokens and the tokens that follow."""
    generator = torch.Generator().manual_seed(9)
    drawn = [torch.randint(0, words, (samples, steps + 1), generator=generator) for _ in range(batches)]
    return [(batch[:, :-1], batch[:, 1:]) for batch in drawn]
