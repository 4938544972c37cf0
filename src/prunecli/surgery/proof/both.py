"""Running a network as if channels did not exist, and one without them, on the same inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.copying import sharing_parameters
from prunecli.errors import VerificationError, described
from prunecli.inputs import Inputs, call
from prunecli.surgery.groups import Keep
from prunecli.surgery.outputs import chosen_outputs
from prunecli.surgery.proof.comparing import NotComparableError, relative_difference
from prunecli.surgery.proof.masked import OtherOperatorsError, run_masked
from prunecli.surgery.proof.randomness import Draws, Replayed
from prunecli.surgery.tracing.running import plain_kernels, seeded
from prunecli.surgery.tracing.traced import Trace
from prunecli.surgery.tracing.trial import RUNTIME_ERRORS


class OtherBranchesError(NotComparableError):
    """With removed channels masked, the original calls other operators: a detector finds other boxes, for instance."""


def both(
    probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, inputs: Inputs
) -> tuple[list[Tensor], list[Tensor]]:
    """Like `run_both`, but the networks stay as they are; both run in the mode of `probe`."""
    pruned = sharing_parameters(sliced).train(probe.training)
    return run_both(sharing_parameters(probe), pruned, traced, keep, inputs)


def run_both(
    probe: nn.Module,
    sliced: nn.Module,
    traced: Trace,
    keep: Keep,
    inputs: Inputs,
    least: int | None = None,
    *,
    zeroed: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of the masked original and of the pruned network, which are in the same mode.

    Args:
        probe: The original; what is removed becomes zero in its tensors.
        sliced: The pruned network.
        traced: The trace of the original.
        keep: Kept unit indices by group name.
        inputs: Inputs both accept.
        least: See `run_masked`.
        zeroed: See `run_masked`.

    Raises:
        NotComparableError: The original gives nothing that the pruned network could be compared with.
        VerificationError: The pruned network does not run, or returns other shapes.
    """
    assert traced.followed is not None
    draws: Draws = []
    try:
        reference = run_masked(probe, traced.followed, traced.groups, keep, inputs, draws, least, zeroed=zeroed)
    except OtherOperatorsError as error:
        raise OtherBranchesError(str(error)) from error
    except RUNTIME_ERRORS as error:
        raise NotComparableError(str(error)) from error
    replayed = Replayed(draws)
    try:
        with torch.no_grad(), plain_kernels(), seeded(), replayed:
            output = call(sliced, inputs)
    except RUNTIME_ERRORS as error:
        raise VerificationError(f"the pruned network does not run: {described(error)}; nothing was saved") from error
    names = traced.followed.kept_outputs
    references, outputs = chosen_outputs(reference, names), chosen_outputs(output, names)
    if not replayed.aligned:
        raise VerificationError(
            "a random operator of the pruned network gets or draws other numbers; nothing was saved"
        )
    if not references or [tuple(t.shape) for t in references] != [tuple(t.shape) for t in outputs]:
        mode = "in training mode " if probe.training else ""
        before, after = ([tuple(t.shape) for t in tensors] for tensors in (references, outputs))
        raise VerificationError(
            f"the pruned network's output {mode}has another shape ({after}, not {before}); nothing was saved"
        )
    return references, outputs


def difference_between(references: list[Tensor], outputs: list[Tensor]) -> float | None:
    """The largest relative difference; None where both return nothing but zeros.

    Raises:
        NotComparableError: A reference holds no finite number.
    """
    if any(bool(reference.any()) for reference in references):
        return max(relative_difference(a, b) for a, b in zip(references, outputs, strict=True))
    return float("inf") if any(bool(output.any()) for output in outputs) else None
