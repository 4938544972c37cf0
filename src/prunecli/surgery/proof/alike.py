"""Whether a network does on smaller inputs what it did when it was followed, but for sizes that mean nothing."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from torch import Tensor

from prunecli.surgery.tracing.labels import Label


class Alike:
    """Compares an operator call with its record.

    Args:
        parameters: Labels of the network's parameters and buffers by their ids.
        least: How long dimensions have to be at least, unless they were shorter when the network was followed.
    """

    def __init__(self, parameters: Mapping[int, Label], least: int) -> None:
        self._parameters = parameters
        self._owned = {id(label) for label in parameters.values()}
        self._least = least

    def reads_the_same(self, tensors: Sequence[Tensor], labels: Sequence[Label]) -> bool:
        """Whether an operator gets the parameters that it got then: other sizes may lead to other layers."""
        for tensor, label in zip(tensors, labels, strict=True):
            own = self._parameters.get(id(tensor))
            if own is not label and (own is not None or id(label) in self._owned):
                return False
        return True

    def has_its_size(self, tensor: Tensor, label: Label, channels: Container[int]) -> bool:
        """Whether dimensions that lose channels have their size, and all others enough positions."""
        if tensor.dim() != len(label.dims):
            return False
        return all(
            size == term.size if dim in channels else size >= min(term.size, self._least)
            for dim, (size, term) in enumerate(zip(tensor.shape, label.dims, strict=True))
        )

    @staticmethod
    def grows_alike(tensor: Tensor, label: Label, result: Tensor, output: Label, channels: Container[int]) -> bool:
        """Whether no dimension gets longer that did not then, as in pooling to a fixed size: positions would repeat.

        What has a single position, such as a batch, may be repeated for more samples than there were, and the result's
        dimensions that lose channels are as long as they have to be.
        """
        if tensor.dim() != result.dim():
            return True
        sizes = zip(tensor.shape, label.dims, result.shape, output.dims, strict=True)
        return all(
            before == 1 or after <= before or then.size > earlier.size or dim in channels
            for dim, (before, earlier, after, then) in enumerate(sizes)
        )
