"""The same proof on smaller images and shorter texts, where these prove the same.

Which channels an operator reads and writes has nothing to do with how large images are, or how long texts. So most
networks are compared on less of them, and on more samples: that costs a fraction, and layers that see a whole image
at once, behind pooling, see more images than before. It counts only if the original then calls the same operators with
the same parameters as when it was followed, no size that is tied to channels changes, and no map gets too small to
show anything. Otherwise, and whenever the two differ, they are compared on the inputs as they are.
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
_TOKENS = (16, 32)
"""The fewest and the most tokens of a shorter text."""
_LEAST = 2
"""Positions along a dimension that a map has to have, if it had more."""
_WORTH = 2
"""How many times less the input has to be."""


def difference_on_less(probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> float | None:
    """The largest difference on less input, in evaluation and in training mode; None if that proves less.

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
    for samples in (*_smaller(inputs), *_shorter(inputs)):
        try:
            return _difference(probe, sliced, traced, keep, samples)
        except (PruneError, *RUNTIME_ERRORS):  # the network does something else with it, or nothing
            continue
    return None


def _difference(
    probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, samples: tuple[Inputs, Inputs]
) -> float | None:
    """None where all outputs are zero.

    Args:
        probe: The original.
        sliced: The pruned network.
        traced: The trace of the original.
        keep: Kept unit indices by group name.
        samples: Inputs in evaluation and in training mode.
    """
    assert traced.followed is not None
    original, pruned = sharing_parameters(probe), sharing_parameters(sliced)
    differences = []
    for training in (False, True) if traced.followed.training is not None else (False,):
        pair = original.train(training), pruned.train(training)
        differences.append(
            difference_between(*run_both(*pair, traced, keep, samples[training], _LEAST, zeroed=training))
        )
    return max((found for found in differences if found is not None), default=None)


def _smaller(inputs: Inputs) -> Iterator[tuple[Inputs, Inputs]]:
    """The middle of the only tensor, if that is a batch of images, and others drawn like it; from small to large."""
    tensors = output_tensors(inputs)
    if len(tensors) != 1 or tensors[0].dim() != 4 or not tensors[0].is_floating_point():
        return
    height, width = tensors[0].shape[2:]
    for size in _SIZES:
        if 2 * size * size * _WORTH <= height * width and size <= min(height, width):
            middle: Inputs = map_tensors(inputs, partial(_middle, size=size))
            yield drawn_samples(middle, 2, seed=1), drawn_samples(middle, 2, seed=2)


def _middle(image: Tensor, size: int) -> Tensor:
    top, left = ((length - size) // 2 for length in image.shape[2:])
    return image[:1, :, top : top + size, left : left + size].contiguous()


def _shorter(inputs: Inputs) -> Iterator[tuple[Inputs, Inputs]]:
    """The beginning of a text and what follows it, with whatever goes with the tokens.

    One sample each: of more, other operators make contiguous tensors.
    """
    tensors = output_tensors(inputs)
    if not tensors or any(_is_no_text(tensor) or tensor.shape != tensors[0].shape for tensor in tensors):
        return
    length = min(tensors[0].shape[1] // _WORTH, _TOKENS[1])
    if length >= _TOKENS[0]:
        first, second = (map_tensors(inputs, partial(_piece, start=start, length=length)) for start in (0, length))
        yield first, second


def _is_no_text(tensor: Tensor) -> bool:
    return tensor.dim() != 2 or tensor.is_floating_point() or tensor.is_complex()


def _piece(tokens: Tensor, start: int, length: int) -> Tensor:
    return tokens[:1, start : start + length]
