"""Second moments of what layers of attention read and write, within each head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.inputs import Inputs, run_batch, sample_count, take_samples
from prunecli.ranks import rank, summed_by_name, together, world_size
from prunecli.surgery.taps import attended_positions, channels_last, counted_rows, layer_input

Key = tuple[str, bool]
"""A layer, and whether what it reads is meant rather than what it writes."""


@dataclass
class Sums:
    """Of all rows of one layer's channels: how many, their sum, and the sums of products within heads.

    Products of all channels with each other would take as much memory for each layer as its weight, twice or more.

    Attributes:
        count: Number of rows.
        total: Sum of them, shape (channels,).
        places: Where the heads lie that somebody asks for, each of shape (dimensions of a head, heads).
        products: For each of them, the sum of products of shape (heads, dimensions, dimensions).
    """

    count: int
    total: Tensor
    places: list[Tensor]
    products: list[Tensor]

    @classmethod
    def none(cls, width: int, places: list[Tensor]) -> Sums:
        """Those of no rows."""
        sizes = [(place.shape[1], place.shape[0], place.shape[0]) for place in places]
        products = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        return cls(0, torch.zeros(width, dtype=torch.float64), places, products)

    def add(self, rows: Tensor) -> None:
        """Adds rows of shape (rows, channels)."""
        self.count += len(rows)
        self.total += rows.sum(0).cpu().double()
        every = (rows.T @ rows).cpu()
        for place, products in zip(self.places, self.products, strict=True):
            chosen = place.T  # (heads, dimensions)
            products += every[chosen.unsqueeze(2), chosen.unsqueeze(1)].double()

    def second(self, positions: Tensor, *, centred: bool) -> Tensor:
        """Second moments or covariances within each head, shape (heads, dimensions, dimensions)."""
        number = next(n for n, place in enumerate(self.places) if torch.equal(place, positions))
        products, mean = self.products[number] / self.count, self.total[positions.T] / self.count
        return products - mean.unsqueeze(2) * mean.unsqueeze(1) if centred else products

    def is_finite(self) -> bool:
        """Whether no product has overflowed."""
        return all(bool(products.isfinite().all()) for products in self.products)


def moments_within(
    model: nn.Module, places: Mapping[Key, list[Tensor]], batches: Iterable[Inputs]
) -> tuple[dict[Key, Sums], Inputs | None]:
    """Sums over all batches, which processes that work together share, and two samples of the first.

    Args:
        model: The network; not changed.
        places: Where heads lie in what layers read or write, each of shape (dimensions of a head, heads).
        batches: Inputs.
    """
    sums: dict[Key, Sums] = {}
    attended: list[Tensor | None] = [None]

    def add(key: Key, module: nn.Module, values: Tensor) -> None:
        rows = counted_rows(channels_last(module, values), attended[0]).float()
        if key not in sums:
            sums[key] = Sums.none(rows.shape[1], places[key])
        sums[key].add(rows)

    def watch(name: str, reads: bool) -> Any:
        module = model.get_submodule(name)
        if reads:

            def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
                values = layer_input(args, kwargs)
                if values is not None:
                    add((name, True), layer, values)

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def behind(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                add((name, False), layer, output)

        return module.register_forward_hook(behind)

    hooks = [watch(name, reads) for name, reads in sorted(places)]
    few: Inputs | None = None
    try:
        for number, batch in enumerate(batches):
            few = take_samples(batch, 0, 2) if few is None and sample_count(batch) else few
            if number % world_size() != rank():
                continue
            attended[0] = attended_positions(batch)
            run_batch(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return _over_ranks(sums, places) if together() else sums, few


def _over_ranks(sums: Mapping[Key, Sums], places: Mapping[Key, list[Tensor]]) -> dict[Key, Sums]:
    """Sums of all processes; some may have seen no rows of a layer."""
    named = {
        f"{reads:d}{name}": torch.cat(
            [torch.tensor([float(own.count)], dtype=torch.float64), *map(torch.flatten, own.products), own.total]
        )
        for (name, reads), own in sums.items()
    }
    joined: dict[Key, Sums] = {}
    for name, numbers in summed_by_name(named).items():
        key = name[1:], name[0] == "1"
        empty = Sums.none(0, places[key])
        sizes = [products.numel() for products in empty.products]
        count, *products, total = torch.split(numbers, [1, *sizes, len(numbers) - 1 - sum(sizes)])
        shaped = [own.reshape(like.shape) for own, like in zip(products, empty.products, strict=True)]
        joined[key] = Sums(int(count), total, empty.places, shaped)
    return joined
