"""Prune stages of methods that prune while the network trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.durable import crash_point
from prunecli.checkpoint.manifest import Masks
from prunecli.checkpoint.runstate import StateStore
from prunecli.copying import copied
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.holding import holding
from prunecli.engine.hooks import Hook, State
from prunecli.engine.optimizer import check_schedule
from prunecli.engine.resources import resource_errors
from prunecli.engine.tracking import MetricsLog
from prunecli.errors import Interrupted, MethodError, ModelError, RecipeError
from prunecli.inputs import Inputs
from prunecli.measure.counts import count_macs, nonzero_count
from prunecli.measure.effective import effective_macs
from prunecli.methods.params import StructuralParams, TrainedParams
from prunecli.methods.ranking import Selection, select
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.trained import PruningHook, Removal, TrainedContext, TrainedMethod, remove_kept
from prunecli.models.loading import LoadedModel
from prunecli.patterns import matching_pattern
from prunecli.pipeline.fit_progress import FitProgress
from prunecli.pipeline.pruning import continued_manifest
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.stages.structural import PruneOutcome, calibration_of, finished, refuse_unprunable, repairs
from prunecli.pipeline.tracked import training_log
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.sparse_tables import DENSE_KERNELS
from prunecli.sparsity.spike_masks import install
from prunecli.surgery.removal.rebuild import state_tensors

_FINETUNE_SHARE = 0.1
"""Learning rate of finetuning, as a share of the rate before."""


def trained_stage(space: Workspace, stage: PruneStage, out: Path) -> PruneOutcome:
    """Trains the current network with the method's hook, removes what the hook does not keep, and saves the result.

    Raises:
        MethodError: The method cannot do what was asked.
        RecipeError: There are no epochs, or no data set.
        VerificationError: The result is not the masked network; nothing is saved.
    """
    loaded = space.model()
    refuse_unprunable(space)
    if not stage.epochs or space.data_name() is None:
        missing = "say for how long with --epochs" if space.data_name() is not None else "name a data set with --data"
        raise RecipeError(f"method {stage.method} prunes while the network trains: {missing}")
    space.judging.check()
    recalibrate, compensation = repairs(space, stage)
    split = space.data().training_split()
    step = space.lineage.step(
        "prune", {"epochs": stage.epochs, "lr": stage.lr, "optimizer": stage.optimizer}, split=split
    )
    room_for(space, out, states=True)
    with (
        resource_errors(space.recipe.data.batch_size),
        saved_states(space, out, identity_of(space, stage)) as states,
        training_log(space, stage, out, continued=states.exists()) as log,
    ):
        run = _Run(space, stage, states, log)
        searched = run.search()
        crash_point("stage:trained")
        if searched.masks is not None:
            compensation = "none"  # folding removed channels into others would fill masked weights
        pruned = remove_kept(
            searched.network,
            searched.keep,
            Removal(
                method=stage.method,
                selection=run.selection(searched),
                example_inputs=run.example,
                calibration=calibration_of(space, stage, split),
                compensation=compensation,
                recalibrate=recalibrate,
                dead=searched.dead,
            ),
        )
        run.finetune(pruned.model, searched)
        if searched.dead:
            searched.figures |= _without_zeros(pruned.model, run.example)
            space.sink.note(DENSE_KERNELS)
        space.report_bad()
        settings = {"params": stage.params, "keep": list(stage.keep), "compensate": compensation}
        manifest = continued_manifest(loaded.manifest, pruned, settings, seed=space.recipe.seed, step=step)
        manifest.history[-1].figures |= searched.figures
        manifest.masks = searched.masks
        crash_point("stage:pruned")
        network = LoadedModel(pruned.model, manifest, loaded.fixed_size)
        return finished(space, stage, network, pruned.report, out, searched.figures)


@dataclass
class _Searched:
    """What training with the hook came to.

    Attributes:
        network: The trained network.
        keep: See `PruningHook.keep`.
        masks: See `PruningHook.masks`.
        figures: See `PruningHook.figures`.
        dead: Whether the method masks, so that what it does not keep is dead already.
    """

    network: nn.Module
    keep: Mapping[str, torch.Tensor]
    masks: Masks | None
    figures: dict[str, Any]
    dead: bool

    def state(self) -> State:
        """Plain data and tensors."""
        masks = self.masks.model_dump() if self.masks is not None else None
        return {
            "tensors": state_tensors(self.network),
            "keep": dict(self.keep),
            "masks": masks,
            "figures": self.figures,
            "dead": self.dead,
        }


def _without_zeros(network: nn.Module, example: Inputs) -> dict[str, int]:
    network = network.cpu()
    macs = effective_macs(network, example, count_macs(network, example).total)
    return {"parameters_not_zero": nonzero_count(network), "macs_without_zeros": macs}


class _Run:
    """Training with the method's hook, and finetuning afterwards; either is resumed."""

    def __init__(self, space: Workspace, stage: PruneStage, states: StateStore, log: MetricsLog) -> None:
        self._space, self._stage, self._states, self._log = space, stage, states, log
        self._params: Any = get_method(stage.method).params_class(**stage.params)
        self._split = space.data().training_split()
        self._saved = states.load()
        self.example = space.inputs.example()
        self._network = copied(space.model().model).to(space.device)  # the original is what the result is compared with
        bounds = self._params
        if not isinstance(bounds, StructuralParams):
            bounds = StructuralParams(prune_stem=getattr(bounds, "prune_stem", False))
        self._request = PruneRequest(
            method=stage.method, params=bounds, example_inputs=self.example, keep=stage.keep, seed=space.recipe.seed
        )
        self._finetuning = self._finetune_config()
        self._selection = select(self._network, self._request)

    def selection(self, searched: _Searched) -> Selection:
        """What may shrink; traced again where masks of spikes have to shrink too."""
        again = searched.keep and searched.dead
        return select(searched.network, self._request) if again else self._selection

    def search(self) -> _Searched:
        """Trains with the hook, or takes what an earlier run trained."""
        if self._saved is not None and "searched" in self._saved:
            return self._trained_before(self._saved["searched"])
        space, stage, network = self._space, self._stage, self._network
        before = space.model().manifest.masks
        held = holding(network, before)
        hook = self._hook(get_method(stage.method).load())
        if hook.masks() is not None and stage.compensate not in (None, "none"):
            raise RecipeError(f"--compensate {stage.compensate} would fill masked weights; leave it out")
        config = FitConfig(epochs=stage.epochs, lr=stage.lr, optimizer=stage.optimizer, **self._training())
        self._fit(network, config, [*held, hook], stage.method, self._states)
        masks = hook.masks()
        joined = masks.joined(before) if masks is not None else before
        return _Searched(network, hook.keep(), joined, dict(hook.figures()), dead=masks is not None)

    def finetune(self, network: nn.Module, searched: _Searched) -> None:
        """Trains the pruned network in place, if that was asked for."""
        if self._finetuning is None:
            return
        training = self._saved["training"] if self._saved is not None and "searched" in self._saved else None
        keeper = _FinetuneKeeper(self._states, searched.state(), training)
        held, title = holding(network, searched.masks), f"{self._stage.method}, finetuning"
        self._fit(network, self._finetuning, held, title, keeper, self._params.finetuned, self._stage.epochs)

    def _fit(
        self,
        network: nn.Module,
        config: FitConfig,
        hooks: list[Hook],
        title: str,
        keeper: Any,
        chosen: str = "best",
        before: int = 0,
    ) -> None:
        space = self._space
        batches, validation = space.inputs.training(self._split), space.data().validation
        choose = validation is not None and chosen == "best"
        with space.sink.progress(title, config.epochs * len(batches)) as advance:
            fit(
                space.judging.classifier(network),
                batches,
                space.inputs.batches(validation) if choose and validation is not None else None,
                config,
                space.device,
                task=space.judging.training_task(),
                seed=space.recipe.seed,
                hooks=hooks,
                progress=FitProgress(space.sink, advance, title, config.epochs, self._log, before, samples=space.batch),
                keeper=keeper,
                tell=space.sink.note,
            )

    def _finetune_config(self) -> FitConfig | None:
        """Settings of finetuning; None where there is none.

        Raises:
            RecipeError: timm does not know a name in them, which is better said before the search.
        """
        params, stage = self._params, self._stage
        if not getattr(params, "finetune_epochs", 0):
            return None
        config = FitConfig(
            epochs=params.finetune_epochs,
            lr=params.finetune_lr or stage.lr * _FINETUNE_SHARE,
            optimizer=stage.optimizer,
            **self._training() | {"schedule": params.finetune_schedule},
        )
        check_schedule(config)
        return config

    def _training(self) -> dict[str, Any]:
        """Fields of `FitConfig` that the method's parameters set."""
        params = self._params
        if not isinstance(params, TrainedParams):
            return {}
        names = ("momentum", "weight_decay", "decay_epochs", "clip_grad", "accumulate")
        return {name: getattr(params, name) for name in names} | {"schedule": params.lr_schedule}

    def _hook(self, method: TrainedMethod) -> PruningHook:
        generator = torch.Generator().manual_seed(self._space.recipe.seed)
        context = TrainedContext(
            self._selection,
            self.example,
            generator,
            self._stage.epochs,
            self._validation_score,
            lambda name: matching_pattern(name, self._stage.keep),
        )
        hook = method(self._network, self._params, context)
        if not isinstance(hook, PruningHook):
            raise MethodError(
                f"method {self._stage.method}: its entry has to make a PruningHook, not a {type(hook).__name__}"
            )
        return hook

    def _validation_score(self) -> float | None:
        space, validation = self._space, self._space.data().validation
        if validation is None:
            return None
        network, batches = space.judging.classifier(self._network), space.inputs.batches(validation)
        return float(evaluate(network, batches, space.device, task=space.judging.training_task()).score)

    def _trained_before(self, state: State) -> _Searched:
        masks = Masks.model_validate(state["masks"]) if state["masks"] is not None else None
        if masks is not None:
            install(self._network, masks)
        own = state_tensors(self._network)
        if set(own) != set(state["tensors"]):
            raise ModelError(f"{self._states.folder}: the state does not fit this network; start again with --force")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state["tensors"][name])
        return _Searched(self._network.eval(), state["keep"], masks, state["figures"], state["dead"])


class _FinetuneKeeper:
    """Adds what was trained before to the state of finetuning."""

    def __init__(self, states: StateStore, searched: State, training: State | None) -> None:
        self._states, self._searched, self._training = states, searched, training

    def load(self) -> State | None:
        return self._training

    def due(self) -> bool:
        return self._states.due()

    def save(self, content: State, position: str) -> bool:
        return self._states.save(self._both(content), f"finetuning, {position}")

    def interrupted(self, signal: int, content: State, position: str) -> Interrupted:
        return self._states.interrupted(signal, self._both(content), f"finetuning, {position}")

    def _both(self, training: State) -> State:
        return {"searched": self._searched, "training": training}
