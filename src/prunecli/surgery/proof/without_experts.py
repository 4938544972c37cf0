"""Proof that removing experts equals setting their logits in the router to minus infinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.copying import converted, sharing_parameters
from prunecli.errors import VerificationError, described
from prunecli.inputs import Inputs, call, cast_inputs, named_tensors
from prunecli.phases import phase, reached
from prunecli.surgery.experts.finding import ExpertLayer
from prunecli.surgery.experts.removing import added, remove_experts
from prunecli.surgery.experts.routing import Routers, Routing
from prunecli.surgery.groups import Keep
from prunecli.surgery.proof.cached import check_cache
from prunecli.surgery.proof.comparing import (
    SINGLE_TOLERANCE,
    TOLERANCE,
    NotComparableError,
    consisting_of,
    in_turn,
    randomise,
    relative_difference,
)
from prunecli.surgery.proof.randomness import Draws, Replayed, given_to, is_random, noting
from prunecli.surgery.proof.trial_inputs import drawn_like, drawn_samples, reversed_tokens
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.surgery.tracing.running import plain_kernels, seeded
from prunecli.surgery.tracing.trial import RUNTIME_ERRORS

_OF_ROUTERS = ("router_logits", "router_probs", "aux_loss", "z_loss")
"""Parts of the names of outputs that have an entry for every expert, or are made of them."""


@phase("verify")
def verify_without_experts(
    original: nn.Module, pruned: nn.Module, layers: Sequence[ExpertLayer], keep: Keep, inputs: Inputs
) -> float:
    """Checks that `pruned` computes what `original` computes while tokens are never sent to removed experts.

    In the original their logits, and what is added to their scores, are minus infinity. Both run in float64, on the
    inputs, on others drawn from their values and in training mode with equal random numbers. Tensors with equal entries
    are random in both. A network that keeps keys and values has to give the same scores with them as without.

    Args:
        original: The network with all experts.
        pruned: The network without some.
        layers: The mixtures of experts of the original.
        keep: By the name of a layer, the experts that stay.
        inputs: Inputs that both accept.

    Returns:
        Largest absolute difference divided by the largest absolute reference output.

    Raises:
        VerificationError: They differ by more than `TOLERANCE`, or by `SINGLE_TOLERANCE` for a network that computes in
            float32 inside.
    """
    problem: NotComparableError | None = None
    for dtype in (torch.float64, torch.float32):
        probe, result = _probes(original, pruned, layers, keep, dtype)
        exact = cast_inputs(inputs, device="cpu", dtype=dtype)
        comparison = _Comparison(probe, result, [layer for layer in layers if layer.name in keep], keep)
        try:
            difference = comparison.difference(exact)
        except NotComparableError as error:
            problem = problem or error
            continue
        tolerance = SINGLE_TOLERANCE if comparison.single else TOLERANCE
        if difference > tolerance:
            raise VerificationError(
                f"the network without its experts differs from the original that does not choose them by "
                f"{difference:.2e} (relative); nothing was saved"
            )
        check_cache(probe, result, exact, tolerance)
        return difference
    assert problem is not None
    raise problem


def _probes(
    original: nn.Module, pruned: nn.Module, layers: Sequence[ExpertLayer], keep: Keep, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """The two networks to compare, without constant tensors.

    Raises:
        VerificationError: A tensor of the pruned network is not that of the experts that stay.
    """
    probe = converted(original, dtype).eval()
    random = randomise(probe)
    expected = sharing_parameters(probe)
    removed = remove_experts(expected, layers, keep)
    former = {name: f"{removed.former.get(module, module)}.{leaf}".lstrip(".") for name in state_tensors(pruned)
              for module, _, leaf in [name.rpartition(".")]}  # fmt: skip
    undecided = {name for name, own in former.items() if own in random}
    result = consisting_of(pruned, state_tensors(expected), undecided)
    for network in (probe, result):
        in_turn(network)
        for layer in layers:
            _without_dropout(network.get_submodule(layer.name))
    return probe, result.double() if dtype == torch.float64 else result.float()


def _without_dropout(layer: nn.Module) -> None:
    """Some layers draw dropout for every expert, whether tokens are sent to it or not."""
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


class _Comparison:
    """Runs the original without removed experts, and the pruned network.

    Attributes:
        single: Whether the original computes in single precision inside.
    """

    def __init__(self, probe: nn.Module, result: nn.Module, layers: Sequence[ExpertLayer], keep: Keep) -> None:
        self.single = False
        self._probe, self._result, self._layers, self._keep = probe, result, layers, keep
        self._off = {}
        for layer in layers:
            off = torch.ones(layer.experts, dtype=torch.bool)
            off[keep[layer.name]] = False
            self._off[layer.router] = off

    def difference(self, inputs: Inputs) -> float:
        """The largest difference over all trials with outputs that are not all zero.

        Raises:
            NotComparableError: The original does not run on the inputs, or all its outputs are zero.
            VerificationError: The pruned network does not run, or returns other tensors.
        """
        others = [*drawn_like(inputs, least=1), reversed_tokens(inputs)]
        trials: list[tuple[Any, bool]] = [(inputs, False), *((other, False) for other in others if other is not None)]
        trials += [(samples, True) for count in (2, 1) if (samples := _samples(inputs, count)) is not None]
        differences = []
        for number, (trial, training) in enumerate(trials):
            reached(number, len(trials), "probe")
            draws: Draws = []
            try:
                reference = self._reference(trial, training, draws)
            except RUNTIME_ERRORS as error:
                if trial is inputs:
                    raise NotComparableError(f"the network does not run: {described(error)}") from error
                continue
            if any(bool(tensor.any()) for _, tensor in reference):
                differences.append(_compared(reference, self._outputs(trial, training, draws)))
        if not differences:
            raise NotComparableError("the network's output is zero for every input tried, so nothing can be compared")
        return max(differences)

    def _reference(self, inputs: Inputs, training: bool, draws: Draws) -> list[tuple[str, Tensor]]:
        running = sharing_parameters(self._probe).train(training)
        for layer in self._layers:
            off = self._off[layer.router]
            for member in added(running, layer):
                module = running.get_submodule(member.module)
                tensor = getattr(module, member.tensor).detach().clone()
                tensor.movedim(member.dim, 0)[off] = float("-inf")
                owner = module._parameters if member.tensor in module._parameters else module._buffers
                owner[member.tensor] = nn.Parameter(tensor) if owner is module._parameters else tensor
        routing = Routing(running, [Routers(layer.name, layer.router, layer.experts) for layer in self._layers],
                          off=self._off)  # fmt: skip
        with torch.no_grad(), plain_kernels(), seeded(), _Noting(routing, self._keep, draws), routing:
            outputs = named_tensors(call(running, inputs))
        self.single |= routing.single
        return outputs

    def _outputs(self, inputs: Inputs, training: bool, draws: Draws) -> list[tuple[str, Tensor]]:
        running, replayed = sharing_parameters(self._result).train(training), Replayed(draws)
        try:
            with torch.no_grad(), plain_kernels(), seeded(), replayed:
                outputs = named_tensors(call(running, inputs))
        except RUNTIME_ERRORS as error:
            raise VerificationError(
                f"the network does not run without the experts: {described(error)}; nothing was saved"
            ) from error
        if not replayed.aligned:
            raise VerificationError("a random operator of the pruned network gets or draws other numbers")
        return outputs


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes random numbers, without those of removed experts."""

    def __init__(self, routing: Routing, keep: Keep, draws: Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._routing, self._keep, self._draws = routing, keep, draws

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if not is_random(func):
            return func(*args, **(kwargs or {}))
        given = given_to(func, args, self._kept)
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        noting(self._draws, func, given, results, lambda _, tensor: self._kept(tensor))
        return out

    def _kept(self, tensor: Tensor) -> Tensor:
        layer = self._routing.deciding(tensor)
        return tensor if layer is None else tensor[..., self._keep[layer]]


def _samples(inputs: Inputs, count: int) -> Any:
    try:
        return drawn_samples(inputs, count)
    except RUNTIME_ERRORS:  # inputs of unlike lengths
        return None


def _compared(reference: list[tuple[str, Tensor]], outputs: list[tuple[str, Tensor]]) -> float:
    """The largest difference between outputs other than those that have an entry for every expert.

    Raises:
        VerificationError: There are others, or they have other shapes.
    """
    expected, found = (
        {name: tensor for name, tensor in one if not any(part in name for part in _OF_ROUTERS)}
        for one in (reference, outputs)
    )
    if not expected or list(expected) != list(found):
        raise VerificationError("without its experts the network returns other tensors")
    differences = []
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise VerificationError(f"without its experts the network returns another shape ({name or 'its output'})")
        differences.append(relative_difference(tensor, found[name]))
    return max(differences)
