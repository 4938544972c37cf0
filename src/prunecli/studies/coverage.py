"""Pruning many architectures end to end: which are right, which are refused and why, and which are wrong."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Architecture
from prunecli.errors import MethodError, ModelError, PruneError, VerificationError
from prunecli.inputs import call, doubled_batch, output_tensors
from prunecli.measure.counts import parameter_count
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.models.catalog import added_references, input_spec, rebuild_dense
from prunecli.models.index import known_references, matching_references
from prunecli.models.loading import LoadedModel, input_channels, load_reference, restore
from prunecli.pipeline.pruning import PruneResult, prune_model
from prunecli.studies.peer import LIMIT_S, Peer, try_torch_pruning
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.surgery.tracing.labels import OUTPUT
from prunecli.surgery.tracing.reasons import STEM
from prunecli.surgery.tracing.traced import Trace

_Status = Literal["right", "refused", "wrong", "too large"]
_RATIO = 0.5
_ANY_SIZE = (64, 64)


@dataclass(frozen=True)
class Coverage:
    """The result of pruning half of the channels of one architecture.

    Attributes:
        ref: "source:name".
        status: "right": verified, restored bit by bit, trains and runs. "refused": nothing was pruned, and `reason`
            says why. "wrong": something failed that should not have. "too large": not tried.
        kept: Share of the parameters that is left.
        implied: The share that ratio 0.5 implies if every group loses exactly half of its channels.
        groups: Number of channel groups.
        held: Share of the parameters in layers that kept their width, not counting the first and the last layer.
        error: Largest relative difference from the masked original in float64.
        seconds: Wall time of tracing, pruning and verifying.
        reason: Why it was refused or is wrong; if it is right, the most common reason why layers were held.
        peer: torch-pruning's result on the same architecture; None if it was not tried.
    """

    ref: str
    status: _Status
    kept: float = 1.0
    implied: float = 1.0
    groups: int = 0
    held: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    peer: Peer | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; without `peer` if torch-pruning was not tried."""
        plain = asdict(self)
        if self.peer is None:
            del plain["peer"]
        return plain


def matching(pattern: str) -> list[str]:
    """The references that a pattern means; see `prunecli.models.index.matching_references`.

    Raises:
        ModelError: There are none.
    """
    return matching_references(pattern, [*known_references(), *added_references()])


def cover(
    refs: Iterable[str],
    *,
    max_params: float | None = None,
    seed: int = 0,
    peer: bool = False,
    peer_limit_s: float = LIMIT_S,
) -> Iterator[Coverage]:
    """Tries each architecture with new weights.

    Args:
        refs: References.
        max_params: Architectures with more parameters than this, in millions, are skipped.
        seed: Seed of the weights and the inputs.
        peer: Whether torch-pruning is tried too.
        peer_limit_s: Seconds that torch-pruning has for each architecture.
    """
    for ref in refs:
        torch.manual_seed(seed)
        entry = _cover(ref, max_params, seed)
        if peer and entry.status != "too large":
            implied = max(entry.kept, entry.implied) if entry.status == "right" else None
            entry = replace(entry, peer=try_torch_pruning(ref, implied, limit_s=peer_limit_s))
        yield entry


def _cover(ref: str, max_params: float | None, seed: int) -> Coverage:
    start = time.perf_counter()
    try:
        if max_params is not None:
            count = parameter_count(rebuild_dense(Architecture(ref=ref)))
            if count > max_params * 1e6:
                return Coverage(ref, "too large", reason=f"{count / 1e6:.0f}M parameters")
        loaded = load_reference(ref)
    except Exception as error:  # timm lists models that it cannot build without more packages
        return Coverage(ref, "refused", reason=f"cannot be built: {_first_line(error)}")
    size = input_spec(ref, loaded.model)[0] or loaded.fixed_size or _ANY_SIZE
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1, input_channels(loaded.model), *size, generator=generator)
    try:
        params = StructuralParams(ratio=_RATIO, scope="local", round_to=1, min_width=1, max_ratio=1.0)
        request = PruneRequest(method="l1", params=params, example_inputs=inputs, seed=seed)
        result = prune_model(loaded.model, loaded.manifest, request)
    except VerificationError as error:
        return Coverage(ref, "wrong", reason=_first_line(error))
    except (ModelError, MethodError) as error:
        return Coverage(ref, "refused", reason=_first_line(error), seconds=time.perf_counter() - start)
    except Exception as error:
        return Coverage(ref, "wrong", reason=f"{type(error).__name__}: {_first_line(error)}")
    seconds = time.perf_counter() - start
    problem = _check(loaded, result, inputs)
    return Coverage(
        ref,
        "wrong" if problem else "right",
        kept=round(result.report.params_after / result.report.params_before, 4),
        implied=round(_implied(loaded.model, result.trace), 4),
        groups=len(result.trace.groups),
        held=round(_held(loaded.model, result.trace), 4),
        error=result.report.verify_error,
        seconds=round(seconds, 2),
        reason=problem or _most_common(result.trace),
    )


def _check(loaded: LoadedModel, result: PruneResult, inputs: Tensor) -> str:
    """Saves, restores, runs and trains the result; returns the first problem, or an empty string."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pruned.safetensors"
            result.save(path)
            restored, _ = restore(path)
        before, after = state_tensors(result.model), state_tensors(restored)
        changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        if changed:
            return f"{changed[0]} is not restored bit by bit"
        batch = doubled_batch(inputs)
        with torch.no_grad():
            expected, actual = (output_tensors(call(network.eval(), batch)) for network in (result.model, restored))
            if not all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True)):
                return "the restored network computes something else"
        if not _trains(restored, batch) and _trains(loaded.model, batch):
            return "it cannot be trained"
    except PruneError as error:
        return _first_line(error)
    except Exception as error:
        return f"{type(error).__name__}: {_first_line(error)}"
    return ""


def _trains(model: nn.Module, batch: Any) -> bool:
    """Whether one step of gradient descent works, with finite gradients."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    try:
        sum(tensor.float().square().mean() for tensor in output_tensors(call(model, batch))).backward()  # type: ignore[union-attr]
        optimizer.step()
    except (RuntimeError, ValueError, AssertionError, TypeError):
        return False
    finally:
        model.eval()
    return all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def _implied(model: nn.Module, traced: Trace) -> float:
    """Parameters that stay if every group loses `_RATIO` of its channels, as a share of all."""
    shares: dict[str, dict[int, float]] = {}
    for group in traced.groups:
        removed = (group.units - max(1, round(group.units * (1 - _RATIO)))) / group.units
        for member in group.members:
            tensor = getattr(model.get_submodule(member.module), member.tensor)
            lost = member.index.numel() / tensor.shape[member.dim] * removed
            by_dim = shares.setdefault(member.name, {})
            by_dim[member.dim] = by_dim.get(member.dim, 0.0) + lost
    total = kept = 0.0
    for name, parameter in model.named_parameters():
        share = 1.0
        for removed in shares.get(name, {}).values():
            share *= 1 - removed
        total += parameter.numel()
        kept += parameter.numel() * share
    return kept / total if total else 1.0


def _held(model: nn.Module, traced: Trace) -> float:
    held = {entry.name for entry in traced.frozen if entry.reason not in (STEM, OUTPUT)}
    count = sum(p.numel() for name in held for p in model.get_submodule(name).parameters(recurse=False))
    return count / max(1, sum(p.numel() for p in model.parameters()))


def _most_common(traced: Trace) -> str:
    reasons = Counter(entry.reason for entry in traced.frozen if entry.reason not in (STEM, OUTPUT))
    return reasons.most_common(1)[0][0] if reasons else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
