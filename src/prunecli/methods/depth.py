"""Removing whole residual blocks: find them, score them, take them out, and prove that this is switching them off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pydantic import JsonValue
from torch import nn

from prunecli.checkpoint.manifest import RemovedBlock, Untouched
from prunecli.collective import agreed, first_decides
from prunecli.copying import copied, sharing_parameters
from prunecli.criteria.base import Calibration
from prunecli.criteria.blocks import BlockScore, at_random, block_influence, loss_increase
from prunecli.errors import MethodError, VerificationError, unknown
from prunecli.inputs import split_batch
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.methods.depth_params import DepthParams
from prunecli.methods.parts import PartReport, PartRequest, PartsRemoved
from prunecli.methods.repair import Clock
from prunecli.methods.selection import require_matches
from prunecli.naming import give_data, option
from prunecli.patterns import matches, matching_pattern, split_patterns
from prunecli.phases import counting, phase, step
from prunecli.surgery.blocks.records import adjust_records
from prunecli.surgery.blocks.residual import ResidualBlock, residual_blocks
from prunecli.surgery.blocks.taking_out import in_order, is_listed, take_out
from prunecli.surgery.configured.layers import rebuilt_with_fewer_layers
from prunecli.surgery.configured.rebuilt import NOT_CONFIGURED, owner
from prunecli.surgery.proof.without_blocks import verify_without_blocks
from prunecli.surgery.removal.rebuild import apply_attributes, attribute_differences
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm

_SCORES: Mapping[str, BlockScore] = {"cosine": block_influence, "loss": loss_increase, "random": at_random}
_REFERENCE = "original with the blocks switched off"


def prune_depth(model: nn.Module, request: PartRequest) -> PartsRemoved:
    """Removes residual blocks of a copy of `model`.

    Args:
        model: Any module; not changed.
        request: How many blocks, or which, and what chooses them.

    Raises:
        MethodError: A pattern matches no block, settings exclude each other, or nothing can be removed.
        ModelError: The network does not run.
        VerificationError: The result is not the original with the blocks switched off; nothing is returned.
    """
    return _Run(model, request).outcome()


def _check(params: DepthParams) -> None:
    """Refuses two ways of saying how many blocks go.

    Raises:
        MethodError: There are two.
    """
    ways = {
        "ratio": params.ratio != DepthParams.ratio,
        "blocks": params.blocks is not None,
        "drop": bool(params.drop),
    }
    given = [option(name) for name, is_given in ways.items() if is_given]
    if len(given) > 1:
        raise MethodError(f"{' and '.join(given)} both say which blocks go; give one of them")
    if params.drop and params.greedy:
        raise MethodError(
            f"{option('greedy', True)} chooses blocks one by one and {option('drop')} names them; leave one out"
        )


class _Taken:
    """A network without some blocks of another, whose parameters it shares, proven.

    Args:
        model: The network.
        blocks: The blocks.
        left: What stands in the place of each.
        request: With the example inputs.

    Raises:
        VerificationError: It is not the network with the blocks switched off.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[ResidualBlock],
        left: Mapping[str, Literal["nothing", "identity"]],
        request: PartRequest,
    ) -> None:
        names = in_order([block.name for block in blocks])
        self.removed = tuple(RemovedBlock(name=name, left=left[name]) for name in names)
        rebuilt = rebuilt_with_fewer_layers(model, self.removed) if "identity" not in left.values() else None
        for library in (rebuilt, None) if rebuilt is not None else (None,):
            self.model = sharing_parameters(model)
            self.former = take_out(self.model, self.removed)
            try:
                adjust_records(self.model, model, self.former)
                if library is not None:
                    apply_attributes(self.model, library.attributes)
                self.error = first_decides(
                    partial(verify_without_blocks, model, self.model, blocks, self.former, request.example_inputs)
                )
            except VerificationError:
                if library is None:
                    raise
                continue
            if library is None or library.computes_the_same(self.model, request.example_inputs):
                self.notes = [NOT_CONFIGURED] if library is None and owner(model, names) is not None else []
                return


@dataclass
class _Known:
    """What trying blocks one by one has shown.

    Attributes:
        left: What stands in the place of a block.
        reasons: Why a block cannot be removed.
    """

    left: dict[str, Literal["nothing", "identity"]]
    reasons: dict[str, str] = field(default_factory=dict)


class _Run:
    def __init__(self, model: nn.Module, request: PartRequest) -> None:
        self._model, self._request, self._clock = model, request, Clock()
        self._params: DepthParams = request.params
        _check(self._params)
        if self._params.score == "loss" and request.calibration is None and not self._params.drop:
            raise MethodError(
                f"{option('score', 'loss')} is measured on data: {give_data()}, or choose {option('score', 'cosine')}"
            )
        require_matches(model, request.keep)
        with phase("trace"):
            self._blocks = residual_blocks(model, request.example_inputs)
        if not self._blocks:
            raise MethodError(
                "the network has no residual blocks: no module adds something to its input and returns the same shape; "
                "a method that removes channels, such as l1, suits it"
            )
        self._clock.lap("find")
        self._known = _Known(
            {block.name: "nothing" if is_listed(model, block.name) else "identity" for block in self._blocks}
        )
        self._scores: dict[str, float] = {}
        self._tried: dict[str, bool] = {}

    def outcome(self) -> PartsRemoved:
        """The result.

        Raises:
            MethodError: Nothing can be removed.
            VerificationError: The result is wrong whatever block is blamed.
        """
        while True:
            chosen = self._chosen()
            self._clock.lap("score")
            try:
                taken = _Taken(self._model, chosen, self._known.left, self._request)
            except VerificationError as error:
                if not self._blame(chosen):
                    raise error
                self._clock.lap("verify")
                continue
            self._clock.lap("verify")
            return self._finished(chosen, taken)

    def _chosen(self) -> list[ResidualBlock]:
        """The blocks to remove."""
        params, names = self._params, [block.name for block in self._blocks]
        free = [b for b in self._blocks if self._reason(b.name) is None]
        if params.drop:
            for pattern in split_patterns(params.drop):
                if not any(matches(name, pattern) for name in names):
                    raise MethodError(f"{option('drop', pattern)}: {unknown('block', pattern, names)}")
            wanted = [block for block in self._blocks if matching_pattern(block.name, params.drop)]
            stuck = next((block.name for block in wanted if block not in free), None)
            if stuck is not None:
                raise MethodError(f"{stuck} cannot be removed: {self._reason(stuck)}")
            if len(wanted) == len(names):
                raise MethodError(f"{option('drop')} names all {len(names)} blocks of the network; leave at least one")
            return wanted
        count = params.blocks if params.blocks is not None else max(1, round(params.ratio * len(names)))
        most = min(len(free), len(names) - 1)
        if count > most and (params.blocks is not None or not most):
            held = [f"{name}: {self._reason(name)}" for name in names if self._reason(name) is not None]
            why = f"; {held[0]}{f' and {len(held) - 1} more' if len(held) > 1 else ''}" if held else ""
            raise MethodError(f"{count} blocks cannot be removed: {most} of the network's {len(names)} can be{why}")
        return self._lowest(free, min(count, most))

    def _reason(self, name: str) -> str | None:
        """Why a block stays; None if it need not."""
        pattern = matching_pattern(name, self._request.keep)
        return f"kept by pattern {pattern!r}" if pattern is not None else self._known.reasons.get(name)

    @phase("score")
    def _lowest(self, free: Sequence[ResidualBlock], count: int) -> list[ResidualBlock]:
        score = _SCORES[self._params.score]
        calibration = self._request.calibrated()
        if not self._params.greedy:
            missing = [block for block in free if block.name not in self._scores]
            if missing:
                self._scores |= agreed("the scores", score(self._model, free, [], calibration))
            chosen = sorted(free, key=lambda block: self._scores[block.name])[:count]
            return [block for block in self._blocks if block in chosen]
        return self._one_by_one(free, count, score, calibration)

    def _one_by_one(
        self, free: Sequence[ResidualBlock], count: int, score: BlockScore, calibration: Calibration
    ) -> list[ResidualBlock]:
        off: list[ResidualBlock] = []
        for number in range(count):
            rest = [block for block in free if block not in off]
            with step(number, count, "block"):
                scores = agreed("the scores", score(self._model, rest, off, calibration))
            lowest = min(rest, key=lambda block: scores[block.name])
            self._scores |= scores
            off.append(lowest)
        return [block for block in self._blocks if block in off]

    def _blame(self, chosen: Sequence[ResidualBlock]) -> bool:
        """Tries blocks one by one; whether that showed something new."""
        news = False
        for block in chosen:
            if block.name not in self._tried:
                before = self._known.left[block.name]
                self._try(block)
                news |= block.name in self._known.reasons or self._known.left[block.name] != before
        return news

    def _try(self, block: ResidualBlock) -> None:
        """Finds out what may stand in the place of a block, if anything."""
        self._tried[block.name] = True
        first = self._known.left[block.name]
        forms: tuple[Literal["nothing", "identity"], ...] = (
            ("nothing", "identity") if first == "nothing" else ("identity",)
        )
        reason = ""
        for form in forms:
            if form == "identity" and not (block.bare and block.tensor == 0):
                reason = reason or "something in its place would have to return more than one tensor"
                continue
            try:
                _Taken(self._model, [block], {block.name: form}, self._request)
            except VerificationError as error:
                reason = reason or str(error).removesuffix("; nothing was saved")
                continue
            self._known.left[block.name] = form
            return
        self._known.reasons[block.name] = reason

    def _finished(self, chosen: Sequence[ResidualBlock], taken: _Taken) -> PartsRemoved:
        request, before, after = self._request, self._model, copied(taken.model)
        inputs = request.example_inputs
        recalibrated = 0
        if request.recalibrate and request.calibration is not None:
            with phase("repair"):
                batches = [split_batch(batch, inputs)[0] for batch in request.calibration]
                recalibrated = recalibrate_batchnorm(after, counting(batches, "batch"))
            self._clock.lap("recalibrate")
        present = len(self._blocks)
        report = PartReport(
            method=request.method,
            parts="blocks",
            reference=_REFERENCE,
            present=present,
            removed=tuple(block.name for block in chosen),
            requested=self._asked(present),
            scores={name: float(f"{score:.6g}") for name, score in self._scores.items()},
            params_before=parameter_count(before),
            params_after=parameter_count(after),
            macs_before=count_macs(before, inputs),
            macs_after=count_macs(after, inputs),
            verify_error=taken.error,
            recalibrated=recalibrated,
            seconds=self._clock.laps,
            untouched=tuple(
                Untouched(name=block.name, channels=0, reason=reason)
                for block in self._blocks
                if (reason := self._reason(block.name)) is not None
            ),
            attributes=_changed_attributes(before, taken),
            notes=tuple(taken.notes),
        )
        return PartsRemoved(after, report, taken.removed, taken.former)

    def _asked(self, present: int) -> float:
        params = self._params
        if params.drop:
            return round(sum(bool(matching_pattern(b.name, params.drop)) for b in self._blocks) / present, 6)
        return params.ratio if params.blocks is None else round(params.blocks / present, 6)


def _changed_attributes(before: nn.Module, taken: _Taken) -> dict[str, JsonValue]:
    """What was set beside taking blocks out, by module and attribute."""
    bare = sharing_parameters(before)
    take_out(bare, taken.removed)
    found = attribute_differences(bare, taken.model)
    return {f"{name}.{key}".lstrip("."): value for name, values in found.items() for key, value in values.items()}
