"""What a criterion takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.collective import in_turn
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import MethodError
from prunecli.inputs import (
    Inputs,
    cast_inputs,
    explained,
    logits,
    model_device,
    output_tensors,
    run_batch,
    sample_count,
    split_batch,
    take_samples,
)
from prunecli.naming import give_data
from prunecli.phases import counting
from prunecli.ranks import rank, world_size
from prunecli.surgery.groups import ChannelGroup, Member, Role


@runtime_checkable
class OwnLoss(Protocol):
    """The loss of networks that compute it themselves, from inputs and labels, as detectors do.

    It says nothing of one sample of a batch: it is divided by what all samples have together, such as objects. So
    wherever it is taken, samples come one by one.
    """

    def of(self, network: nn.Module, inputs: Any, labels: Any) -> Tensor:
        """The loss of one sample, a scalar.

        Raises:
            MethodError: There are no labels, or the network has no loss of its own.
        """
        ...


Loss: TypeAlias = Callable[[Any, Tensor | None], Tensor] | OwnLoss
"""From a model's output and the labels (None: there are none) to the sum of the samples' losses, a scalar."""
_IGNORED_LABEL = 255
_ROUNDING = 1e-3


def default_loss(output: Any, labels: Tensor | None) -> Tensor:
    """Cross-entropy, summed over samples; over positions of a dense prediction it is averaged.

    Without labels the model's own predictions stand in for them, so channels are ranked by what these depend on.
    Where the output is not a matrix of class scores, shape (samples, classes), half its sum of squares is taken.

    Args:
        output: The model's output; see `prunecli.inputs.logits`.
        labels: Class indices of shape (samples,), for dense predictions (samples, height, width), where 255 is left
            out, for scores of tokens (samples, length), where -100 is left out; or floating numbers of the output's
            shape: probabilities, or the values that it should have; or None.
    """
    scores = logits(output)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if labels is None:
        if scores.dim() != 2 or scores.shape[1] < 2:
            return scores.square().sum() / 2
        labels = scores.detach().argmax(dim=1)
    if labels.is_floating_point():
        return _distance(scores, labels)
    if scores.dim() == 2:
        return F.cross_entropy(scores, labels, reduction="sum")
    if scores.shape[:-1] == labels.shape and scores.shape[2:] != labels.shape[1:]:
        each = F.cross_entropy(scores.movedim(-1, 1), labels, ignore_index=IGNORED, reduction="none")
        return each.flatten(1).mean(dim=1).sum()
    if scores.shape[2:] != labels.shape[1:]:
        scores = F.interpolate(scores, size=tuple(labels.shape[1:]), mode="bilinear", align_corners=False)
    each = F.cross_entropy(scores, labels, ignore_index=_IGNORED_LABEL, reduction="none")
    return each.flatten(1).mean(dim=1).sum()


def token_loss(output: Any, labels: Tensor | None) -> Tensor:
    """Cross-entropy of scores (samples, length, classes), averaged over positions that count and summed over samples.

    It differs from `default_loss` in that the last dimension always is that of the classes, such as the vocabulary,
    even where sequences have as many tokens; in that a sample's loss does not depend on its padding; and in what stands
    in for labels that are None: the best class at every position.

    Args:
        output: The model's output.
        labels: The tokens, or their classes, shape (samples, length), where -100 is left out; or None.
    """
    scores = logits(output)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    labels = scores.detach().argmax(dim=-1) if labels is None else labels
    each = F.cross_entropy(scores.movedim(-1, 1), labels, ignore_index=IGNORED, reduction="none")
    counted = (labels != IGNORED).flatten(1).sum(dim=1)
    return (each.flatten(1).sum(dim=1) / counted.clamp(min=1)).sum()


def total_loss(network: nn.Module, inputs: Inputs, labels: Any, loss: Loss, remedy: str = "check the labels") -> Tensor:
    """Runs a network on a batch and takes a loss, the sum over its samples.

    Args:
        network: The network, in evaluation mode.
        inputs: The batch.
        labels: Its labels; None: there are none.
        loss: The loss.
        remedy: What to do where it cannot be computed, for the message.

    Raises:
        MethodError: The network does not run on it, or the loss cannot be computed.
    """
    labels = cast_inputs(labels, model_device(network))
    if isinstance(loss, OwnLoss):
        with explained("the network's own loss cannot be computed", MethodError, remedy):
            return loss.of(network, inputs, labels)
    output = run_batch(network, inputs)
    with explained("the loss cannot be computed", MethodError, remedy):
        return loss(output, labels)


def _distance(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy to the probabilities in `labels` if its rows add up to one, else half the sum of squares."""
    labels = labels.to(scores).reshape(scores.shape)
    if scores.dim() == 2 and scores.shape[1] > 1 and bool((labels.sum(dim=1) - 1).abs().max() < _ROUNDING):
        return F.cross_entropy(scores, labels, reduction="sum")
    return (scores - labels).square().sum() / 2


@dataclass(frozen=True)
class Calibration:
    """What a criterion may use besides the weights.

    Attributes:
        generator: Source of every random number.
        batches: Batches that can be iterated more than once, in any form that `prunecli.inputs.split_batch` takes:
            inputs, (inputs, labels, ...) or a mapping that may contain `labels`. A list of images comes with its
            labels, or as ([image, ...],). None if there is no data.
        loss: What gradients are taken of.
        options: The method's own parameters by name.
        example_inputs: Inputs the network accepts. Where they are a tuple, they tell a batch of several inputs from
            one with labels.
        found: What a criterion found out besides scores, as plain data by name: how many random vectors it took, how
            far its ranking can be relied on. It goes into the report.
    """

    generator: torch.Generator = field(default_factory=torch.Generator)
    batches: Iterable[Any] | None = None
    loss: Loss = default_loss
    options: Mapping[str, Any] = field(default_factory=dict)
    example_inputs: Inputs | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        """Yields (inputs, labels or None); labels that hold no tensor are None, for the default loss all but tensors.

        Raises:
            MethodError: There is no data, or it contains no batches.
        """
        if self.batches is None:
            raise MethodError(f"this method ranks channels by what they do on data: {give_data()}")
        empty = True
        for batch in counting(self.batches, "batch"):
            empty = False
            inputs, labels = split_batch(batch, self.example_inputs)
            known = isinstance(labels, Tensor) if self.loss is default_loss else bool(output_tensors(labels))
            labels = labels if known else None
            if not isinstance(self.loss, OwnLoss):
                yield inputs, labels
                continue
            for sample in range(sample_count(inputs)):
                yield take_samples(inputs, sample, sample + 1), take_samples(labels, sample, sample + 1)
        if empty:
            raise MethodError("the calibration data contains no batches; provide at least one")


class Paired(Protocol):
    """Data to run a network on."""

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        """Yields (inputs, labels or None), again every time."""
        ...


class OwnShare:
    """The batches that this process looks at, where several work together: every one in turn; alone, all of them.

    Whoever uses it has to add up what was found over processes. A criterion that does not, sees all batches in every
    process and finds the same in each.

    Args:
        data: All batches.
    """

    def __init__(self, data: Paired) -> None:
        self._data = data

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        """Yields (inputs, labels or None), the same ones every time."""
        return in_turn(self._data.pairs())

    def marked(self) -> Iterator[tuple[tuple[Inputs, Any], bool]]:
        """Yields all batches, and whether each is this process's."""
        size, own = world_size(), rank()
        return ((pair, number % size == own) for number, pair in enumerate(self._data.pairs()))


class Criterion(Protocol):
    """Scores every unit of every group; units with low scores are removed first.

    Where several processes work on one run, all of them call it with the same data, and it has to return the same in
    each; see `OwnShare` and `prunecli.ranks` for criteria that split the work.
    """

    def __call__(
        self, model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration
    ) -> dict[str, Tensor | str]:
        """Returns, by group name, scores of shape (units,), or the reason why the group cannot be ranked."""
        ...


def sum_by_unit(per_position: Tensor, member: Member) -> Tensor:
    """Adds up values along a member's dimension by unit: shape (..., size of that dimension) to (..., units)."""
    return per_position[..., member.index].sum(dim=-1)


def member_tensor(model: nn.Module, member: Member) -> Tensor:
    """The parameter or buffer that a member lies in."""
    tensor: Tensor = getattr(model.get_submodule(member.module), member.tensor)
    return tensor


def role_of(model: nn.Module, member: Member) -> Role:
    """What a member's own layer does with the channels.

    A weight that an embedding and the layer behind it share has one role in the trace, and two in fact.
    """
    module = model.get_submodule(member.module)
    if isinstance(module, nn.Embedding):
        return "producer"
    if isinstance(module, nn.Linear) and member.tensor == "weight":
        return "consumer" if member.dim == 1 else "producer"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and member.tensor.startswith("bias"):
        return "producer"
    return member.role


def member_values(model: nn.Module, member: Member) -> Tensor:
    """A member's tensor in float64 with its channel dimension first, shape (size of that dimension, rest)."""
    tensor = member_tensor(model, member).detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.double().cpu().movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1)


def matrices_of(model: nn.Module, group: ChannelGroup, *roles: Role) -> list[Member]:
    """The group's weights with one of `roles`: parameters of two or more dimensions, so no biases or scales."""
    return [
        member
        for member in group.members
        if role_of(model, member) in roles
        and isinstance(tensor := member_tensor(model, member), nn.Parameter)
        and tensor.dim() > 1
    ]
