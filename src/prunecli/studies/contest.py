"""Methods that prune the same networks to equally many parameters, at several seeds, before and after training."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from prunecli.bounds import percentage_meant
from prunecli.checkpoint.durable import write_text_atomically
from prunecli.checkpoint.manifest import as_json
from prunecli.checkpoint.runstate import StateStore
from prunecli.errors import MethodError, ModelError, RecipeError, TargetError
from prunecli.measure.environment import describe_environment
from prunecli.methods.targets import Target
from prunecli.pipeline.resumption import identity_of, saved_states
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import FinetuneStage, PruneStage
from prunecli.report.contest import Contest, read_contest
from prunecli.report.numbers import fixed
from prunecli.studies.bout_jobs import BoutSettings, folder_of, job_of, read_bout, run_jobs
from prunecli.studies.bouts import Outcome, Ring, outcome_of, outcome_state
from prunecli.studies.contest_figures import contenders, contest_verdict, kept_alike, pair_tests
from prunecli.studies.entrants import REFERENCES, Entrant, entrants, shared_params
from prunecli.studies.executors.base import Executor, Job
from prunecli.studies.finished import network_of, refuse_other, settings_of

_FEWEST_SEEDS, _RATIO = 2, 0.5
MakesJob = Callable[[Workspace, int, dict[str, Path]], Job]
"""Makes the job of a network at a seed, with the file that it is to write for each method."""


@dataclass(frozen=True)
class ContestSettings:
    """What is compared, and how.

    Attributes:
        methods: Methods with commas; see `prunecli.studies.entrants.entrants`.
        ratio: Share of the channels. Every method leaves as many parameters as removing it from all layers alike does.
        params: Instead of a ratio: the share of the parameters that every method leaves.
        macs: Instead of both: the share of the multiply-accumulates that every method leaves.
        seeds: How many; with several networks each has one of its own.
        recover: Training steps after pruning; 0: none.
        split: Name of the split to evaluate on.
        images: At most so many samples of it; None: all.
    """

    methods: str
    ratio: float | None = None
    params: float | None = None
    macs: float | None = None
    seeds: int = 5
    recover: int = 0
    split: str = "validation"
    images: int | None = None

    def check(self, networks: int) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            RecipeError: There are too few seeds, or two settings exclude each other.
        """
        given = {name: value for name in ("ratio", "params", "macs") if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            names = " and ".join(f"--{name}" for name in given)
            raise RecipeError(f"{names} say how much to remove each in its own way; give one of them")
        for name, value in given.items():
            if not 0 < value < 1:
                raise RecipeError(f"--{name} has to be between 0 and 1 (got {value:g}){percentage_meant(value)}")
        if self.seeds < _FEWEST_SEEDS:
            raise RecipeError(
                f"--seeds {self.seeds}: differences are tested against how much they vary between seeds, so at least "
                f"{_FEWEST_SEEDS} are needed, and 5 are better"
            )
        if networks not in (1, self.seeds):
            raise RecipeError(f"--seeds {self.seeds} and {networks} networks: give one network, or one for each seed")
        if self.recover < 0:
            raise RecipeError(f"--recover counts training steps, 0 for none (got {self.recover})")
        if self.images is not None and self.images < 1:
            raise RecipeError(f"--images has to be at least 1 (got {self.images})")


def run_contest(
    spaces: Sequence[Workspace],
    settings: ContestSettings,
    prune: PruneStage,
    finetune: FinetuneStage,
    out: Path,
    executor: Executor | None = None,
) -> Contest:
    """Prunes with every method at every seed, evaluates before and after training, and writes the report.

    What is finished of it is saved, so that a run that was stopped continues with the next method or seed.

    Args:
        spaces: One network, or one for each seed, all of one architecture.
        settings: What is compared.
        prune: Parameters that all methods share, patterns and repairs.
        finetune: How networks are trained after pruning; its epochs are not used.
        out: The report (JSON).
        executor: What runs the bouts, several at once; None: this process, one after the other.

    Raises:
        RecipeError: There are too few seeds, or settings exclude each other.
        MethodError: A method does not exist, or cannot remove as much.
        ResourceError: A process of the executor dies again and again.
        DataError: There is no data set with labels to judge on.
        ModelError: The networks are not alike.
    """
    settings.check(len(spaces))
    first = spaces[0]
    taking_part = entrants(settings.methods, shared_params(prune))
    rings = [Ring(space, prune, finetune, settings.recover, settings.split, settings.images) for space in spaces]
    _check_alike(rings, spaces)
    target = _target(settings, rings[0])
    identity = _identity(spaces, settings, prune, finetune)
    with saved_states(first, out, identity) as states:
        bouts = _Bouts(rings, taking_part, settings.seeds, target, first, states)
        if executor is None:
            outcomes = bouts.all()
        else:
            outcomes = bouts.elsewhere(executor, folder_of(out, identity), _job(settings, target, prune, finetune))
        taking_part = tuple(entrant for entrant in taking_part if entrant.label not in bouts.left_out)
        own = settings_of(first, settings, prune=prune, finetune=finetune)
        contest = _report(rings, taking_part, outcomes, target, own, settings.recover, bouts.left_out)
        write_text_atomically(out, contest.to_json(), replace=first.may_replace)
    shutil.rmtree(out.with_name(f"{out.name}.bouts"), ignore_errors=True)
    return contest


def finished_contest(
    spaces: Sequence[Workspace], settings: ContestSettings, prune: PruneStage, finetune: FinetuneStage, out: Path
) -> Contest:
    """The report of a comparison that is finished; for the arguments see `run_contest`.

    Raises:
        RecipeError: It is no report, or that of another comparison than the one asked for.
    """
    contest = read_contest(out)
    networks = [model.sha256 or model.ref for model in contest.models]
    stored = {**contest.settings, "seed": contest.seed, "networks": networks}
    asked = settings_of(spaces[0], settings, prune=prune, finetune=finetune)
    asked |= {"seed": spaces[0].recipe.seed, "networks": [network_of(space) for space in spaces]}
    refuse_other(out, stored, asked)
    return contest


def _report(
    rings: Sequence[Ring],
    taking_part: Sequence[Entrant],
    outcomes: Sequence[Outcome],
    target: Target,
    settings: dict[str, JsonValue],
    recover: int,
    left_out: dict[str, str],
) -> Contest:
    """What all bouts come to."""
    first = rings[0]
    methods = contenders(taking_part, outcomes, first.dense.params, first.dense.macs, one_network=len(rings) == 1)
    tests = pair_tests(methods)
    return Contest(
        models=tuple(ring.model_info() for ring in rings),
        data=first.data_info(),
        settings=settings,
        figure=first.figure,
        target=target.kind,
        target_share=target.requested,
        dense=tuple(ring.dense for ring in rings),
        methods=methods,
        tests=tests,
        kept_alike=kept_alike(taking_part, outcomes),
        left_out=left_out,
        verdict=contest_verdict(methods, tests, first.figure, recover, target.kind),
        environment=describe_environment(first.space.device),
        seed=first.space.recipe.seed,
        command=first.space.command,
    )


def _identity(
    spaces: Sequence[Workspace], settings: ContestSettings, prune: PruneStage, finetune: FinetuneStage
) -> dict[str, JsonValue]:
    """Everything that determines a contest, by names for messages."""
    stages = {"prune": as_json(dataclasses.asdict(prune)), "finetune": as_json(dataclasses.asdict(finetune))}
    others = {f"network {number}": space.model().sha256 for number, space in enumerate(spaces[1:], start=2)}
    return identity_of(spaces[0], settings, **others) | stages


def _job(settings: ContestSettings, target: Target, prune: PruneStage, finetune: FinetuneStage) -> MakesJob:
    """What makes the job that runs bouts of a network at a seed."""
    left = (target.kind, target.requested)
    own = BoutSettings(settings.methods, settings.recover, settings.split, settings.images, left)
    return lambda space, seed, files: job_of(space, prune, finetune, own, seed, files)


def _check_alike(rings: Sequence[Ring], spaces: Sequence[Workspace]) -> None:
    """Checks that networks are of one size.

    Raises:
        ModelError: One is not.
    """
    for ring, space in zip(rings, spaces, strict=True):
        if ring.dense.params != rings[0].dense.params:
            raise ModelError(
                f"{space.model().name}: has {ring.dense.params:,} parameters and {spaces[0].model().name} "
                f"{rings[0].dense.params:,}; give networks of one architecture"
            )


def _target(settings: ContestSettings, ring: Ring) -> Target:
    """What every method is to leave."""
    if settings.macs is not None:
        return Target("macs", settings.macs)
    return Target("params", settings.params or ring.share_left(settings.ratio or _RATIO))


class _Bouts:
    """All methods at all seeds, seed by seed.

    Attributes:
        left_out: Methods that cannot remove as much, and why.
    """

    def __init__(
        self,
        rings: Sequence[Ring],
        entrants: Sequence[Entrant],
        seeds: int,
        target: Target,
        space: Workspace,
        states: StateStore,
    ) -> None:
        self._rings, self._entrants, self._seeds, self._target = rings, entrants, seeds, target
        self._space, self._states = space, states
        self.left_out: dict[str, str] = {}

    def all(self) -> list[Outcome]:
        """What every one of them comes to; those that a saved state has are not run again.

        Raises:
            TargetError: l2 or random cannot remove as much, so nobody can.
        """
        saved = self._states.load() or {}
        done: dict[str, Any] = saved.get("outcomes", {})
        self.left_out = saved.get("left_out", {})
        total = self._seeds * len(self._entrants)
        with self._space.sink.progress("compare", total) as advance:
            for number in range(self._seeds):
                for entrant in self._entrants:
                    seed = self._space.recipe.seed + number
                    key = f"{entrant.label}, seed {seed}"
                    if key not in done and entrant.label not in self.left_out:
                        bout = self._bout(self._rings[number % len(self._rings)], entrant, seed)
                        done |= {key: outcome_state(bout)} if bout is not None else {}
                        self._states.save({"outcomes": done, "left_out": self.left_out}, key)
                        if bout is not None:
                            self._tell(f"{len(done)}/{total} {key}", bout)
                    advance(len(done), key)
        return [outcome for outcome in map(outcome_of, done.values()) if outcome.label not in self.left_out]

    def elsewhere(self, executor: Executor, folder: Path, job: MakesJob) -> list[Outcome]:
        """The same, with the methods of each seed in a process of their own.

        Args:
            executor: What runs them.
            folder: For a file of each bout.
            job: Makes the job of a network at a seed, with the files that it is to write.

        Raises:
            TargetError: l2 or random cannot remove as much.
            MethodError: What a method leaves has no score.
        """
        saved = self._states.load() or {}
        done: dict[str, Any] = saved.get("outcomes", {})
        self.left_out = saved.get("left_out", {})
        files: dict[str, Path] = {}
        jobs = []
        for number in range(self._seeds):
            seed = self._space.recipe.seed + number
            own = {e.label: folder / f"seed-{seed}-{index}.json" for index, e in enumerate(self._entrants)}
            missing = {label: path for label, path in own.items() if f"{label}, seed {seed}" not in done}
            files |= {f"{label}, seed {seed}": path for label, path in own.items()}
            if missing:
                jobs.append(job(self._rings[number % len(self._rings)].space, seed, missing))
        with self._space.sink.progress("compare", len(files)) as advance:

            def look() -> None:
                for key, path in files.items():
                    if key not in done and (document := read_bout(path)) is not None:
                        self._take(key, document, done)
                        advance(len(done), key)

            look()
            run_jobs(executor, jobs, look)
        ordered = [done[key] for key in files if key in done]
        return [outcome for outcome in map(outcome_of, ordered) if outcome.label not in self.left_out]

    def _take(self, key: str, document: dict[str, Any], done: dict[str, Any]) -> None:
        """What another process has found out about one method at one seed."""
        label = key.rpartition(", seed ")[0]
        entrant = next(entrant for entrant in self._entrants if entrant.label == label)
        if "error" in document:
            raise MethodError(document["error"])
        if "left_out" in document:
            if entrant.method.name in REFERENCES:
                raise TargetError(document["left_out"])
            if label not in self.left_out:
                self.left_out[label] = document["left_out"]
                self._space.sink.warn(f"{label} is left out: {document['left_out']}")
            return
        done[key] = document
        self._states.save({"outcomes": done, "left_out": self.left_out}, key)
        self._tell(f"{len(done)}/{self._seeds * len(self._entrants)} {key}", outcome_of(document))

    def _bout(self, ring: Ring, entrant: Entrant, seed: int) -> Outcome | None:
        """One method at one seed; None, and a warning, if it cannot remove as much, having ranked too few layers."""
        try:
            return ring.bout(entrant, seed, self._target)
        except TargetError as error:
            if entrant.method.name in REFERENCES:
                raise
            self.left_out[entrant.label] = str(error)
            self._space.sink.warn(f"{entrant.label} is left out: {error}")
            return None

    def _tell(self, key: str, bout: Outcome) -> None:
        figure, cell = self._rings[0].figure, bout.cell
        after = "" if cell.after is None else f", {fixed(cell.after, figure.digits, figure.unit)} after training"
        self._space.sink.note(f"{key}: {figure.label} {fixed(cell.before, figure.digits, figure.unit)}{after}")
