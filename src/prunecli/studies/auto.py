"""`prune auto`: the smallest network within a drop, found by trying; its checkpoint, its recipe and a report."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint.durable import write_atomically, write_text_atomically
from prunecli.checkpoint.manifest import as_json
from prunecli.engine.optimizer import check_schedule
from prunecli.errors import MethodError, ModelError, RecipeError
from prunecli.measure.environment import describe_environment
from prunecli.measure.intervals import accuracy_interval
from prunecli.phases import shown_by
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.stages.train import learning_rate
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.resolve import Plan
from prunecli.recipe.schema import EvalStage, FinetuneStage, PruneStage
from prunecli.recipe.writing import written_recipe
from prunecli.report.auto import COST_NAMES, AutoReport, Claim, Objective, Trial, read_auto
from prunecli.report.contest import Figure
from prunecli.report.numbers import fixed
from prunecli.report.schema import DataInfo
from prunecli.studies.auto_bench import Bench
from prunecli.studies.auto_budget import Budget
from prunecli.studies.auto_candidates import choices_for
from prunecli.studies.auto_finalists import seconds_of_finetuning, stages_of
from prunecli.studies.auto_search import Attempt, Search
from prunecli.studies.auto_workshop import Shop, Stages
from prunecli.studies.entrants import shared_params
from prunecli.studies.finished import refuse_other, settings_of

_FEWEST_TRIALS = 2


@dataclass(frozen=True)
class AutoSettings:
    """What is looked for, and within which bounds.

    Attributes:
        objective: What is to be small.
        max_drop: How much worse the score may be after finetuning.
        methods: Criteria with commas; None: those that suit the network.
        budget: Minutes; None: as long as it takes.
        trials: How many networks are judged or finetuned; None: as many as there is time for.
        split: Name of the split on which finetuned networks are judged.
        images: Training samples on which networks are judged before they are finetuned, at most.
    """

    objective: Objective
    max_drop: float
    methods: str | None = None
    budget: float | None = None
    trials: int | None = None
    split: str = "validation"
    images: int = 1000

    def check(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            RecipeError: A setting is out of bounds.
        """
        if not 0 <= self.max_drop < float("inf"):
            raise RecipeError(f"--max-drop says how much worse the score may be, at least 0 (got {self.max_drop:g})")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise RecipeError(f"--budget counts minutes, more than 0 (got {self.budget:g})")
        if self.trials is not None and self.trials < _FEWEST_TRIALS:
            raise RecipeError(
                f"--trials {self.trials}: one network is judged and one finetuned, so at least {_FEWEST_TRIALS} are "
                "needed, and 30 are better"
            )
        if self.images < 1:
            raise RecipeError(f"--images has to be at least 1 (got {self.images})")


def run_auto(space: Workspace, settings: AutoSettings, plan: Plan, prune: PruneStage, out: Path) -> AutoReport:
    """Searches, and writes the network, its recipe and a report; nothing but the report's return if none is found.

    Args:
        space: The network and data.
        settings: What is looked for.
        plan: What was typed, for the recipe; its second stage says how networks are finetuned.
        prune: What all candidates share: patterns, samples and parameters that were written.
        out: The checkpoint; recipe and report get its name with .yaml and .json.

    Raises:
        RecipeError: The budget is shorter than one network takes, or settings are wrong.
        MethodError: Nothing can be removed, or no criterion can rank the network.
        DataError: There is nothing to train on, or no labels to judge by.
        ModelError: The network guesses.
    """
    settings.check()
    budget = Budget(60 * settings.budget if settings.budget is not None else None, settings.trials)
    loaded = space.model()
    shared = shared_params(prune)
    prune = dataclasses.replace(prune, params=shared)
    finetune = plan.recipe.stages[1]
    assert isinstance(finetune, FinetuneStage)
    check_schedule(dataclasses.replace(finetune, lr=learning_rate(finetune, loaded.manifest)))
    room_for(space, out, states=True)
    folder = out.with_name(f"{out.name}.trials")
    with saved_states(space, out, _identity(space, settings, prune, finetune)) as states:
        if not space.resume:
            shutil.rmtree(folder, ignore_errors=True)
        choices = choices_for(loaded, settings.methods, shared, prune)
        bench = Bench(space, prune, settings.objective, settings.images)
        total = settings.trials if settings.trials is not None else int(budget.seconds or 1)
        with space.sink.progress("auto", total) as advance, shown_by(space.sink.phase):
            stages = Stages(prune, finetune, settings.split, settings.objective)
            shop = Shop(space, bench, stages, budget, states, folder, advance)
            _require_knowledge(space, bench, shop)
            _say_what_is_done(space, settings, bench)
            _plan_time(space, settings, finetune, budget, shop)
            search = Search(choices, settings.objective, settings.max_drop, shop)
            best = search.run()
            if not search.attempts:
                raise MethodError(f"no criterion can rank the network; {next(iter(shop.left_out.values()), '')}")
            claims = _claims(space, settings, shop, best, search.nearest)
        report = _report(space, settings, bench, shop, search, best, claims, finetune)
        if best is not None:
            report = _written(space, report, plan, shop, best, out)
        shop.clean()
    return report


def _identity(space: Workspace, settings: AutoSettings, prune: PruneStage, finetune: FinetuneStage) -> dict[str, Any]:
    """What decides which network is found, but for how long it is looked for."""
    stages = dict(zip(("prune", "finetune"), map(as_json, stages_of(prune, finetune)), strict=True))
    return identity_of(space, dataclasses.replace(settings, budget=None)) | stages


def _require_knowledge(space: Workspace, bench: Bench, shop: Shop) -> None:
    """Refuses a network that guesses: nothing can be lost of that.

    Raises:
        ModelError: Its accuracy is that of chance.
    """
    dense, chance = shop.dense, 100 / max(space.data().num_classes, 1)
    if bench.score.name == "top1" and accuracy_interval(dense.score, dense.images)[0] <= chance:
        raise ModelError(
            f"{space.model().name}: {bench.score.label} is {bench.score.text(dense.score)}, as good as guessing, so no "
            f"drop means anything; train it first, or give the data that it was trained on"
        )


def _plan_time(space: Workspace, settings: AutoSettings, finetune: FinetuneStage, budget: Budget, shop: Shop) -> None:
    """Measures how long finetuning and the end take, where time is limited."""
    if budget.seconds is None:
        return
    validation, data = space.data().validation, space.data()
    judged = len(space.split(settings.split).labels)
    each = shop.judging / max(judged, 1)
    epoch = each * len(validation.labels) if validation is not None else 0.0
    budget.training = 1.1 * seconds_of_finetuning(space, finetune, epoch) + shop.judging
    budget.closing = 0.0 if settings.split == "test" else 2 * each * len(data.test.labels)


def _say_what_is_done(space: Workspace, settings: AutoSettings, bench: Bench) -> None:
    noun, name = space.inputs.noun, space.data().name
    space.sink.note(
        f"{bench.groups} groups of layers may shrink; criteria and repairs see {bench.calibration_images} training "
        f"{noun} of {name}, networks are judged on {bench.images} others before they are finetuned, and on "
        f"{len(space.split(settings.split).labels)} ({settings.split}) afterwards; as it is, {bench.score.label} "
        f"{bench.score.text(bench.dense_score)} on the former"
    )
    if settings.split == "validation" and not space.model().manifest.history:
        space.sink.note(
            "these weights may have been trained on the validation samples; drops then look larger (--split test)"
        )


def _claims(
    space: Workspace, settings: AutoSettings, shop: Shop, best: Attempt | None, nearest: Attempt | None
) -> tuple[Claim, ...]:
    """How the result does: on the samples that it was chosen on, and on those that nothing was decided on."""
    shown = best or nearest
    if shown is None:
        return ()
    claims = [shop.claims[shown.number]]
    if best is not None and settings.split != "test":
        space.sink.note("judging the result on the test split, which nothing was decided on")
        claims.append(shop.closing_claim(best.number, "test"))
    return tuple(claims)


def _report(
    space: Workspace,
    settings: AutoSettings,
    bench: Bench,
    shop: Shop,
    search: Search,
    best: Attempt | None,
    claims: tuple[Claim, ...],
    finetune: FinetuneStage,
) -> AutoReport:
    score, nearest = bench.score, search.nearest
    split = space.split(settings.split)
    data = {"name": space.data().name, "task": space.judging.task_name()}
    return AutoReport(
        model=space.lineage.model_info(),
        searched=DataInfo(split="train", images=bench.images, fingerprint=bench.searched.fingerprint(), **data),
        calibrated=bench.calibration_images,
        data=DataInfo(split=settings.split, images=shop.dense.images, fingerprint=split.fingerprint(), **data),
        settings={name: value for name, value in settings_of(space, settings).items() if name != "budget"}
        | {"finetune": as_json(dataclasses.asdict(finetune))},
        figure=Figure(
            name=score.name,
            label=score.label,
            unit=score.unit,
            digits=score.digits,
            lower_is_better=score.less_is_better,
        ),
        objective=settings.objective,
        max_drop=settings.max_drop,
        dense_params=bench.params,
        dense_macs=bench.macs,
        trials=tuple(_trial(attempt, settings, best) for attempt in search.attempts),
        winner=best.number if best is not None else None,
        nearest=nearest.number if nearest is not None else None,
        claims=claims,
        why=_why(settings, bench, search, best),
        left_out=shop.left_out,
        environment=describe_environment(space.device),
        seed=space.recipe.seed,
        command=space.command,
    )


def _trial(attempt: Attempt, settings: AutoSettings, best: Attempt | None) -> Trial:
    candidate, judged = attempt.candidate, attempt.judged
    finite = abs(judged.score) < float("inf")
    return Trial(
        number=attempt.number,
        criterion=candidate.entrant.label,
        scope=candidate.scope,
        shares=candidate.shares,
        compensate=candidate.compensate,
        recalibrate=candidate.recalibrate,
        asked=attempt.asked,
        params=as_json(judged.params),
        score=judged.score if finite else None,
        drop=attempt.drop if finite else None,
        params_share=judged.params_share,
        macs_share=judged.macs_share,
        latency_share=judged.latency_share,
        after=attempt.after,
        after_drop=attempt.after_drop,
        fate=_fate(attempt, settings, best),
    )


def _fate(attempt: Attempt, settings: AutoSettings, best: Attempt | None) -> str:
    """What became of a network."""
    if attempt is best:
        return "the result"
    if attempt.after_drop is not None:
        if attempt.after_drop > settings.max_drop:
            return "lost too much after finetuning"
        return f"within the drop, and network {best.number} is smaller" if best is not None else ""
    if attempt.fate:
        return attempt.fate
    if best is None:
        return "not finetuned"
    if attempt.cost(settings.objective) >= best.cost(settings.objective):
        return f"larger than network {best.number}"
    return "lost too much before finetuning"


def check_finished(report: Path, settings: AutoSettings) -> None:
    """Checks that a search that may be finished is the one that is asked for; of another budget it may be.

    Args:
        report: Its report, if it is there.
        settings: What is asked for.

    Raises:
        RecipeError: It is another one, or no report.
    """
    if not report.is_file():
        return
    asked = {name: as_json(value) for name, value in dataclasses.asdict(settings).items() if name != "budget"}
    stored = read_auto(report).settings
    refuse_other(report, {name: stored.get(name) for name in asked}, asked)


def _why(settings: AutoSettings, bench: Bench, search: Search, best: Attempt | None) -> str:
    """The result in words."""
    score, cost = bench.score, COST_NAMES[settings.objective]
    allowed = f"{settings.max_drop:g}"
    if best is None:
        nearest = search.nearest
        if nearest is None or nearest.after_drop is None:
            return "nothing was finetuned within the budget; give more, or fewer --epochs"
        return (
            f"no network is within a drop of {allowed}: network {nearest.number}, with "
            f"{_percent(nearest.cost(settings.objective))} of the {cost}, came nearest with a drop of "
            f"{fixed(nearest.after_drop, score.digits)}"
        )
    assert best.after_drop is not None, "it was finetuned"
    own = best.candidate
    text = (
        f"network {best.number} has {_percent(best.cost(settings.objective))} of the {cost} and, after finetuning, a "
        f"drop of {fixed(best.after_drop, score.digits)} in {score.label} (allowed: {allowed}): "
        f"{own.entrant.label}, {own.shares}, repair {own.repair}"
    )
    smaller = [
        attempt
        for attempt in search.attempts
        if attempt.after_drop is not None and attempt.cost(settings.objective) < best.cost(settings.objective)
    ]
    if not smaller:
        return f"{text}; nothing smaller was finetuned within the budget"
    other = max(smaller, key=lambda attempt: attempt.cost(settings.objective))
    return (
        f"{text}; the next smaller one that was finetuned, network {other.number} with "
        f"{_percent(other.cost(settings.objective))}, has one of {fixed(other.after_drop, score.digits)}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _written(space: Workspace, report: AutoReport, plan: Plan, shop: Shop, best: Attempt, out: Path) -> AutoReport:
    """Writes recipe, report and, last, the network."""
    recipe, document = out.with_suffix(".yaml"), out.with_suffix(".json")
    report = report.model_copy(update={"checkpoint": out.name, "recipe": recipe.name})
    stages = (shop.prune_stage(best), plan.recipe.stages[1], EvalStage())
    origins = {path: origin for path, origin in plan.origins.items() if path[:1] != ("stages",)}
    found = Plan(dataclasses.replace(plan.recipe, stages=stages), origins)
    text = written_recipe(found, recipe, f"{space.command} -o {shlex.quote(str(out))}")  # the recipe lies beside it
    write_text_atomically(recipe, text, replace=space.may_replace)
    write_text_atomically(document, report.to_json(), replace=space.may_replace)
    path = shop.path(best.number)
    write_atomically(out, lambda temporary: shutil.copyfile(path, temporary), replace=space.may_replace)
    return report
