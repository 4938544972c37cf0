"""Bouts of a contest as jobs: each process takes the methods at one seed, and notes what each comes to in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from prunecli.checkpoint.durable import crash_point, write_text_atomically
from prunecli.errors import MethodError, ResourceError, TargetError
from prunecli.measure.environment import library_versions
from prunecli.methods.targets import Target
from prunecli.own_code import allow, allowed_modules
from prunecli.phases import Reached
from prunecli.pipeline.log_progress import LogProgress
from prunecli.pipeline.run import plan_text
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.loader import parse_yaml
from prunecli.recipe.resolve import Plan, resolve
from prunecli.recipe.schema import FinetuneStage, PruneStage
from prunecli.report.table import Table
from prunecli.studies.bouts import Ring, outcome_state
from prunecli.studies.entrants import entrants, shared_params
from prunecli.studies.executors.base import Executor, Job

_TRIES = 3
_GLANCE = 0.2
_FUNCTION = "prunecli.studies.bout_jobs:run_bouts"


@dataclasses.dataclass(frozen=True)
class BoutSettings:
    """What a process has to know to make the ring of a network again.

    Attributes:
        methods: As they were typed.
        steps: Training steps after pruning.
        split: Name of the split to evaluate on.
        images: At most so many of it.
        target: The kind, and the share that is to be left.
    """

    methods: str
    steps: int
    split: str
    images: int | None
    target: tuple[str, float]


class _Quiet:
    """Notes go to standard error, which is the log of the job."""

    def __init__(self) -> None:
        self._progress = LogProgress(self.note)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    def aside(self, table: Table) -> None:
        pass

    def live(self, table: Table) -> None:
        pass

    def progress(self, title: str, total: int) -> AbstractContextManager[Advance]:
        return self._progress.progress(title, total)

    def phase(self, name: str, *, undisturbed: bool = False) -> AbstractContextManager[Reached]:
        return self._progress.phase(name, undisturbed=undisturbed)


def run_bouts(
    *,
    plan: str,
    prune: Mapping[str, Any],
    finetune: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int,
    files: Mapping[str, str],
    allowed: Sequence[str] = (),
) -> None:
    """Runs bouts at one seed, and writes a file for each; those whose file is there are not run again.

    Args:
        plan: The recipe of the network, as YAML.
        prune: What all methods share.
        finetune: How networks are trained after pruning.
        settings: Of `BoutSettings`.
        seed: The seed.
        files: For each method's label, the file.
        allowed: Modules of the user's own that may run.
    """
    for module in allowed:
        allow(module)
    own = TypeAdapter(BoutSettings).validate_python(settings)
    shared = TypeAdapter(PruneStage).validate_python(prune)
    training = TypeAdapter(FinetuneStage).validate_python(finetune)
    space = Workspace(resolve(parse_yaml(plan, "plan"), confined=False).recipe, _Quiet())
    ring = Ring(space, shared, training, own.steps, own.split, own.images)
    kind, requested = own.target
    for entrant in entrants(own.methods, shared_params(shared)):
        path = Path(files.get(entrant.label, ""))
        if entrant.label not in files or path.exists():
            continue
        try:
            state = outcome_state(ring.bout(entrant, seed, Target(kind, requested)))  # type: ignore[arg-type]
            kept = {name: keep.int().tolist() for name, keep in state["kept"].items()}
            document: dict[str, Any] = {**state, "kept": kept}
        except TargetError as error:
            document = {"left_out": str(error)}
        except MethodError as error:
            document = {"error": str(error)}
        crash_point("bout:done")
        write_text_atomically(path, json.dumps(document) + "\n")


def read_bout(path: Path) -> dict[str, Any] | None:
    """What a bout came to: a state of an outcome, or why it has none under "left_out" or "error"; None: not yet."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if "kept" in document:
        document["kept"] = {name: torch.tensor(keep, dtype=torch.bool) for name, keep in document["kept"].items()}
    return document


def folder_of(out: Path, identity: Mapping[str, Any]) -> Path:
    """Where the files of a contest are while it is unfinished: another one has another folder.

    Args:
        out: The report.
        identity: Everything that determines the contest.
    """
    text = json.dumps([identity, library_versions()], sort_keys=True, default=str)
    return out.with_name(f"{out.name}.bouts") / hashlib.sha256(text.encode()).hexdigest()[:16]


def job_of(
    space: Workspace,
    prune: PruneStage,
    finetune: FinetuneStage,
    settings: BoutSettings,
    seed: int,
    files: Mapping[str, Path],
) -> Job:
    """The job that runs bouts of one network at one seed.

    Args:
        space: Of the network.
        prune: What all methods share.
        finetune: How networks are trained after pruning.
        settings: The rest.
        seed: The seed.
        files: For each method's label, the file that is to be written.
    """
    recipe = dataclasses.replace(space.recipe, stages=())
    arguments = {
        "plan": plan_text(Plan(recipe, {})),
        "prune": dataclasses.asdict(prune),
        "finetune": dataclasses.asdict(finetune),
        "settings": dataclasses.asdict(settings),
        "seed": seed,
        "files": {label: str(path.resolve()) for label, path in files.items()},
        "allowed": list(allowed_modules()),
    }
    folder = next(iter(files.values())).parent
    return Job(f"seed {seed}", _FUNCTION, arguments, str(Path.cwd()), str((folder / f"seed-{seed}.log").resolve()))


def run_jobs(executor: Executor, jobs: Sequence[Job], look: Callable[[], object]) -> None:
    """Runs jobs until all have ended; one whose process dies is started again.

    Args:
        executor: What runs them.
        jobs: The jobs.
        look: Called again and again meanwhile, to take in what has been written.

    Raises:
        ResourceError: A process has died again and again.
    """
    running: dict[str, Job] = {}
    waiting, deaths = list(jobs), dict.fromkeys((job.name for job in jobs), 0)
    while waiting or running:
        while waiting and len(running) < executor.slots:
            job = waiting.pop(0)
            running[job.name] = job
            executor.submit(job)
        for ended in executor.wait(_GLANCE):
            job = running.pop(ended.name)
            if ended.died is None:
                continue
            deaths[job.name] += 1
            if deaths[job.name] == _TRIES:
                raise ResourceError(
                    f"{job.name}: its process {ended.died} {_TRIES} times (see {job.log}); what is finished is saved, "
                    "--resume continues"
                )
            waiting.append(job)
        look()
