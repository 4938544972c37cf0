"""Pruning many architectures end to end: which are right, which are refused and why, and which are wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from prunecli.copying import copied
from prunecli.errors import MethodError, ModelError, VerificationError, described, first_line
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.pipeline.pruning import PruneResult, prune_model
from prunecli.studies.candidates import Candidate, candidate, parameters_of
from prunecli.studies.independent_checks import Check, independent_checks
from prunecli.studies.peer import LIMIT_S, Peer, try_torch_pruning
from prunecli.studies.shares import held_share, implied_share, kinds_of_reasons, most_common_reason
from prunecli.surgery.proof.comparing import NotComparableError
from prunecli.surgery.recurrent.forms import forms_of, put_in_form

Status = Literal["right", "refused", "wrong", "too large", "too slow"]
_RATIO = 0.5


@dataclass(frozen=True)
class Coverage:
    """The result of pruning half of the channels of one architecture.

    Attributes:
        ref: "source:name".
        status: "right": verified, and every check is passed. "refused": nothing was pruned, and `reason`
            says why. "wrong": something failed that should not have. "too large": not tried. "too slow": ended
            by whoever set a limit.
        kept: Share of the parameters that is left.
        implied: The share that ratio 0.5 implies if every group loses exactly half of its channels.
        groups: Number of channel groups.
        held: Share of the parameters in layers that kept their width, not counting the first and the last layer.
        error: Largest relative difference from the masked original in float64.
        seconds: Wall time of tracing, pruning and verifying.
        processor_s: Processor time of the same.
        reason: Why it was refused or is wrong; if it is right, the most common reason why layers were held.
        held_by: Share of the parameters in layers that kept their width, by kind of reason; the first and the last
            layer are among them.
        checks: Outcomes of the independent checks that were finished, by name.
        peer: torch-pruning's result on the same architecture; None if it was not tried.
    """

    ref: str
    status: Status
    kept: float = 1.0
    implied: float = 1.0
    groups: int = 0
    held: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    processor_s: float = 0.0
    reason: str = ""
    held_by: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, Check] = field(default_factory=dict)
    peer: Peer | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; without `peer` if torch-pruning was not tried."""
        plain = asdict(self)
        if self.peer is None:
            del plain["peer"]
        return plain


def cover(
    refs: Iterable[str],
    *,
    max_params: float | None = None,
    seed: int = 0,
    export: bool = False,
    peer: bool = False,
    peer_limit_s: float = LIMIT_S,
) -> Iterator[Coverage]:
    """Tries each architecture with new weights.

    Args:
        refs: References.
        max_params: Architectures with more parameters than this, in millions, are skipped.
        seed: Seed of the weights and the inputs.
        export: Whether `torch.export` has to work too where it works for the original.
        peer: Whether torch-pruning is tried too.
        peer_limit_s: Seconds that torch-pruning has for each architecture.
    """
    for ref in refs:
        *_, entry = attempt(ref, max_params=max_params, seed=seed, export=export)
        if peer and entry.status != "too large":
            implied = max(entry.kept, entry.implied) if entry.status == "right" else None
            entry = replace(entry, peer=try_torch_pruning(ref, implied, limit_s=peer_limit_s))
        yield entry


def attempt(ref: str, *, max_params: float | None = None, seed: int = 0, export: bool = False) -> Iterator[Coverage]:
    """Tries one architecture; see `cover`.

    Yields:
        What is known so far: after pruning, and again after each check. The last one is the result.
    """
    try:
        if max_params is not None and (count := parameters_of(ref)) > max_params * 1e6:
            yield Coverage(ref, "too large", reason=f"{count / 1e6:.0f}M parameters")
            return
        tried = candidate(ref, seed)
    except Exception as error:  # timm lists models that it cannot build without more packages
        yield Coverage(ref, "refused", reason=f"cannot be built: {first_line(error)}")
        return
    torch.manual_seed(seed)
    params = StructuralParams(ratio=_RATIO, scope="local", round_to=1, min_width=1, max_ratio=1.0)
    request = PruneRequest(method="l1", params=params, example_inputs=tried.network.inputs(), seed=seed)
    wall, processor = time.perf_counter(), time.process_time()
    outcome = _pruned(tried, request)
    seconds = round(time.perf_counter() - wall, 2)
    processor_s = round(time.process_time() - processor, 2)
    if isinstance(outcome, Coverage):
        yield replace(outcome, seconds=seconds, processor_s=processor_s)
        return
    entry = replace(_described(tried, outcome), seconds=seconds, processor_s=processor_s)
    yield entry
    for name, check in independent_checks(tried.network, tried.model, outcome, export=export):
        entry = replace(entry, checks={**entry.checks, name: check})
        if check.passed is False:
            entry = replace(entry, status="wrong", reason=entry.reason if entry.status == "wrong" else "")
            entry = replace(entry, reason=entry.reason or f"{name}: {check.detail}")
        yield entry


def _pruned(tried: Candidate, request: PruneRequest) -> PruneResult | Coverage:
    ref = tried.network.name
    try:
        return prune_model(tried.model, tried.manifest, request)
    except NotComparableError as error:
        return Coverage(ref, "refused", reason=first_line(error, 400))
    except VerificationError as error:
        return Coverage(ref, "wrong", reason=first_line(error, 400))
    except (ModelError, MethodError) as error:
        return Coverage(ref, "refused", reason=first_line(error, 400))
    except Exception as error:
        return Coverage(ref, "wrong", reason=described(error))


def _described(tried: Candidate, result: PruneResult) -> Coverage:
    report, traced, model = result.report, result.trace, copied(tried.model)
    put_in_form(model, forms_of(result.model))  # whose names the trace has
    return Coverage(
        tried.network.name,
        "right",
        kept=round(report.params_after / report.params_before, 4),
        implied=round(implied_share(model, traced, _RATIO), 4),
        groups=len(traced.groups),
        held=round(held_share(model, traced), 4),
        error=report.verify_error,
        reason=most_common_reason(traced),
        held_by=kinds_of_reasons(model, traced),
    )
