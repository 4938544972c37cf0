"""The same proof on smaller images, where these prove the same.

Which channels an operator reads and writes has nothing to do with how large images are. So most networks are compared
on smaller ones, and on more of them: that costs a fraction, and layers that see a whole image at once, behind
pooling, see more images than before. It counts only if the original then calls the same operators with the same
parameters as when it was followed, no size that is tied to channels changes, and no map gets too small to show
anything. Otherwise, and whenever the two differ, they are compared on the inputs as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from prunecli.copying import sharing_parameters
from prunecli.errors import PruneError
from prunecli.inputs import Inputs, map_tensors, output_tensors
from prunecli.measure.neurons import spiking_neurons
from prunecli.surgery.groups import Keep
from prunecli.surgery.proof.both import difference_between, run_both
from prunecli.surgery.proof.trial_inputs import drawn_samples
from prunecli.surgery.tracing.traced import Trace
from prunecli.surgery.tracing.trial import RUNTIME_ERRORS

_SIZES = (64, 96, 128)
"""Heights and widths to try."""
_LEAST = 2
"""Positions along a dimension that a map has to have, if it had more."""
_WORTH = 2
"""How many times fewer values there have to be in the smaller images."""


def difference_on_less(probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> float | None:
    """The largest difference on smaller images, in evaluation and in training mode; None if they prove less.

    Args:
        probe: The original.
        sliced: The pruned network.
        traced: The trace of the original.
        keep: Kept unit indices by group name.
        inputs: Inputs that both accept.
    """
    assert traced.followed is not None
    if spiking_neurons(probe):  # thresholds belong to the inputs
        return None
    for smaller in _smaller(inputs):
        try:
            return _difference(probe, sliced, traced, keep, smaller)
        except (PruneError, *RUNTIME_ERRORS):  # the network does something else with it, or nothing
            continue
    return None


def _difference(probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> float | None:
    """None where all outputs are zero."""
    assert traced.followed is not None
    original, pruned = sharing_parameters(probe), sharing_parameters(sliced)
    differences = []
    for training in (False, True) if traced.followed.training is not None else (False,):
        samples = drawn_samples(inputs, 2, seed=2 if training else 1)
        pair = original.train(training), pruned.train(training)
        differences.append(difference_between(*run_both(*pair, traced, keep, samples, _LEAST, zeroed=training)))
    return max((found for found in differences if found is not None), default=None)


def _smaller(inputs: Inputs) -> Iterator[Inputs]:
    """The middle of the only tensor, if that is a batch of images, from small to large."""
    tensors = output_tensors(inputs)
    if len(tensors) != 1 or tensors[0].dim() != 4 or not tensors[0].is_floating_point():
        return
    height, width = tensors[0].shape[2:]
    for size in _SIZES:
        if 2 * size * size * _WORTH <= height * width and size <= min(height, width):
            yield map_tensors(inputs, partial(_middle, size=size))


def _middle(image: Tensor, size: int) -> Tensor:
    top, left = ((length - size) // 2 for length in image.shape[2:])
    return image[:1, :, top : top + size, left : left + size].contiguous()
