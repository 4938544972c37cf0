"""Proof that a pruned language model of transformers computes the same from cached keys and values as without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import sharing_parameters
from prunecli.errors import VerificationError, described
from prunecli.inputs import Inputs, output_tensors
from prunecli.surgery.proof.comparing import relative_difference
from prunecli.surgery.tracing.running import plain_kernels, seeded
from prunecli.surgery.tracing.trial import RUNTIME_ERRORS

_TOKENS = ("decoder_input_ids", "input_ids")
_PROMPT = 8
"""The most tokens after which others are generated."""
_GENERATED = 3
"""Tokens that are generated."""


def check_cache(original: nn.Module, pruned: nn.Module, inputs: Inputs, tolerance: float) -> None:
    """Checks that a network which keeps keys and values computes the same from them, if the original does.

    Args:
        original: The network before.
        pruned: The network after, in the same precision.
        inputs: Inputs that both accept.
        tolerance: The largest relative difference.

    Raises:
        VerificationError: It does not.
    """
    given = _by_name(inputs)
    for difference in (_continued, _generated):
        if not _holds(original, given, difference, tolerance):
            continue  # the original keeps none, or means something else by it
        try:
            found = difference(pruned, given)
        except RUNTIME_ERRORS as error:
            raise VerificationError(
                f"the pruned network does not run with cached keys and values: {described(error)}; nothing was saved"
            ) from error
        if found is None or found > tolerance:
            raise VerificationError(
                "the pruned network computes something else with cached keys and values than without them; nothing "
                "was saved"
            )


def _by_name(inputs: Inputs) -> Mapping[str, Any]:
    if isinstance(inputs, Mapping):
        return inputs
    alone = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    return {"input_ids": alone} if isinstance(alone, Tensor) and not alone.is_floating_point() else {}


def _holds(
    network: nn.Module,
    inputs: Mapping[str, Any],
    difference: Callable[[nn.Module, Mapping[str, Any]], float | None],
    tolerance: float,
) -> bool:
    try:
        found = difference(network, inputs)
    except Exception:  # whatever a network says to arguments that it may not take
        return False
    return found is not None and found <= tolerance


def _continued(network: nn.Module, inputs: Mapping[str, Any]) -> float | None:
    """How much the last outputs depend on whether what comes before is in a cache; None without one."""
    name = next((name for name in _TOKENS if name in inputs), None)
    if name is None or inputs[name].dim() != 2 or inputs[name].shape[1] < 2:
        return None
    rest = {key: value for key, value in inputs.items() if key != name and not key.endswith("attention_mask")}
    tokens, half = inputs[name], inputs[name].shape[1] // 2
    running: Any = sharing_parameters(network).eval()
    with torch.no_grad(), plain_kernels(), seeded():
        whole = running(**rest, **{name: tokens}, use_cache=False)
        first = running(**rest, **{name: tokens[:, :half]}, use_cache=True)
        cache = getattr(first, "past_key_values", None)
        if cache is None:
            return None
        second = running(**rest, **{name: tokens[:, half:]}, past_key_values=cache, use_cache=True)
    expected, found = (output_tensors(output)[0] for output in (whole, second))
    return relative_difference(expected[:, half:], found)


def _generated(network: nn.Module, inputs: Mapping[str, Any]) -> float | None:
    """How much the scores of generated tokens depend on the cache; None if the network generates none."""
    running: Any = sharing_parameters(network).eval()
    if not callable(getattr(running, "can_generate", None)) or not running.can_generate():
        return None
    given = {key: value for key, value in inputs.items() if not key.startswith("decoder_")}
    given |= {key: given[key][:, :_PROMPT] for key in ("input_ids", "attention_mask") if key in given}
    scores = []
    with plain_kernels(), seeded():
        for cached in (True, False):
            made = running.generate(
                **given,
                use_cache=cached,
                do_sample=False,
                num_beams=1,
                min_new_tokens=_GENERATED,
                max_new_tokens=_GENERATED,
                return_dict_in_generate=True,
                output_logits=True,
            )
            scores.append(torch.stack(tuple(made.logits)))
    return relative_difference(*scores)
