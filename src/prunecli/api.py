"""The Python interface: prune a model, load a checkpoint."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, overload

from torch import Tensor, nn

from prunecli.arguments import check_types, checked_params, kept_patterns
from prunecli.checkpoint.header import read_manifest
from prunecli.checkpoint.manifest import Architecture, Manifest
from prunecli.copying import copied
from prunecli.criteria.base import Loss, default_loss
from prunecli.criteria.detection import DetectorLoss
from prunecli.engine.detectors.index import detector_of
from prunecli.errors import MethodError, ModelError, unknown, with_article
from prunecli.exporting.staging import WEIGHTS
from prunecli.inputs import Inputs, output_tensors
from prunecli.measure.neurons import leave_to_caller, reset, reset_itself, spiking_neurons
from prunecli.methods.outcome import PruneReport
from prunecli.methods.parts import PartReport, PartRequest
from prunecli.methods.registry import all_methods, get_method, get_structural
from prunecli.methods.request import PruneRequest, Recover, Transition
from prunecli.methods.spec import MethodSpec
from prunecli.models.called_from_python import load_foreign
from prunecli.models.loading import load_reference, restore
from prunecli.models.recognition import recognise
from prunecli.naming import give_data, option, python_names
from prunecli.pipeline.pruning import PartResult, PruneResult, prune_model, remove_parts
from prunecli.surgery.removal.compensate import Compensation
from prunecli.surgery.tracing.traced import Trace

_MANIFEST, _DENSE = "_prunecli_manifest", "_prunecli_dense"
_QUANTISED = ("nn.quantized", "nn.intrinsic.quantized")
"""Parts of the names of packages with quantised layers."""

_Result = TypeVar("_Result", PruneResult, PartResult)

__all__ = ["PartReport", "PartResult", "PruneReport", "PruneResult", "Transition", "load", "prune"]


@overload
def prune(
    model: nn.Module,
    method: Literal["depth", "experts"],
    *,
    example_inputs: Inputs,
    data: Iterable[Any] | None = None,
    recalibrate: bool | None = False,
    keep: str | Sequence[str] = (),
    seed: int = 0,
    loss: Loss = default_loss,
    **params: Any,
) -> PartResult: ...


@overload
def prune(
    model: nn.Module,
    method: str = "l1",
    *,
    example_inputs: Inputs,
    data: Iterable[Any] | None = None,
    compensate: Compensation = "none",
    recalibrate: bool | None = False,
    keep: str | Sequence[str] = (),
    seed: int = 0,
    loss: Loss = default_loss,
    recover: Recover | None = None,
    trace: Trace | None = None,
    **params: Any,
) -> PruneResult: ...


@python_names()
def prune(
    model: nn.Module,
    method: str = "l1",
    *,
    example_inputs: Inputs,
    data: Iterable[Any] | None = None,
    compensate: Compensation = "none",
    recalibrate: bool | None = False,
    keep: str | Sequence[str] = (),
    seed: int = 0,
    loss: Loss = default_loss,
    recover: Recover | None = None,
    trace: Trace | None = None,
    **params: Any,
) -> PruneResult | PartResult:
    """Removes channels, blocks or experts from a copy of `model` and proves that the result is the masked original.

    Args:
        model: Any module; it is not changed, but its spiking neurons are reset.
        method: A method of `prune methods` that removes channels, such as "l1", "taylor" or "fisher", or "depth" or
            "experts", for which `compensate`, `recover` and `trace` mean nothing.
        example_inputs: Inputs that the model accepts: a tensor such as (1, 3, 224, 224), a tuple of positional
            arguments, a mapping of keyword arguments, or a list of images.
        data: Calibration batches: x, (x, labels), (x, y, labels), ((x, y), labels), or a mapping, maybe with `labels`;
            without labels, gradients are taken at the model's own predictions.
        compensate: What makes up for them: "none", "bias", "ls", "reconstruct", or "auto" by held-out `data`.
        recalibrate: Whether batch normalisation statistics are measured again on `data`; None: if that is better.
        keep: Layer, module or shell pattern whose widths stay, such as "layer1" or "*.conv1", or a list of them.
        seed: Seed of everything random.
        loss: From outputs and labels to the sum of the samples' losses; detectors have their own.
        recover: Called with a `Transition` after every step of a schedule, to train `after` in place.
        trace: The `trace` of an earlier result for the same model, which is then not traced again.
        **params: The method's parameters, such as `ratio=0.5`, `layer_ratio={"layer1.*": 0.3}`, `schedule="cubic"`.

    Returns:
        The pruned model with its manifest and report; `.save(path)` writes a checkpoint.

    Raises:
        MethodError: The method or a parameter is wrong, or nothing can be removed.
        ModelError: The model cannot be traced.
        VerificationError: The result is not the masked original.
    """
    check_types(method=method, data=data, seed=seed, recalibrate=recalibrate, loss=loss, recover=recover, trace=trace)
    loss, kept = _loss_for(model, loss), kept_patterns(keep)
    if _removes_parts(method, compensate, recover, trace):
        return _without_parts(model, method, example_inputs, data, recalibrate is not False, kept, seed, loss, params)
    request = PruneRequest(
        method=method,
        params=checked_params(_checked_method(method, data, compensate, recalibrate), params),
        example_inputs=example_inputs,
        keep=kept,
        seed=seed,
        calibration=_Batches(data) if data is not None else None,
        compensation=compensate,
        recalibrate=recalibrate,
        loss=loss,
        recover=recover,
        trace=trace,
    )
    return _continued(model, partial(prune_model, request=request))


def _removes_parts(method: str, compensate: str, recover: Recover | None, trace: Trace | None) -> bool:
    """Whether a method removes blocks or experts.

    Raises:
        MethodError: It does, and something is asked for that is done with channels.
    """
    known = all_methods().get(method)
    removes = known is not None and known.family == "parts"
    if removes and (compensate != "none" or recover is not None or trace is not None):
        raise MethodError(f"method {method} takes neither compensate nor recover nor trace; leave them out")
    return removes


def _without_parts(
    model: nn.Module,
    method: str,
    example_inputs: Inputs,
    data: Iterable[Any] | None,
    recalibrate: bool,
    keep: Sequence[str],
    seed: int,
    loss: Loss,
    params: dict[str, Any],
) -> PartResult:
    spec = get_method(method)
    if data is None:
        if recalibrate:
            raise MethodError(f"{option('recalibrate', True)} needs data: {give_data()}")
        params = {**(spec.without_data or {}), **params}
    request = PartRequest(
        method=method,
        params=checked_params(spec, params),
        example_inputs=example_inputs,
        keep=keep,
        seed=seed,
        calibration=_Batches(data) if data is not None else None,
        recalibrate=recalibrate,
        loss=loss,
    )
    return _continued(model, partial(remove_parts, request=request))


def _continued(model: nn.Module, prune_it: Callable[..., _Result]) -> _Result:
    """Prunes a network, and lets the result remember what is needed to prune it again."""
    model = _without_state(_checked_network(model))
    result = prune_it(model, _manifest_of(model), dense=getattr(model, _DENSE, _Original()).model)
    leave_to_caller(result.model)
    _remember(result.model, result.manifest, result.dense)
    return result


def _loss_for(model: nn.Module, loss: Loss) -> Loss:
    """The loss asked for; a detector's own in place of the default, which knows nothing of boxes."""
    detector = detector_of(model)
    return DetectorLoss(detector) if detector is not None and loss is default_loss else loss


def _checked_network(model: Any) -> nn.Module:
    """The network, unless it is an object around one, such as a `YOLO(...)` or a pipeline.

    Raises:
        ModelError: It is not a module, trains by a method of its own, is quantised, or cannot be copied.
    """
    if isinstance(model, type):
        raise ModelError(f"{model.__name__} is a class; pass an instance, such as {model.__name__}()")
    kind = with_article(type(model).__name__)
    held = dict(model.named_children()) if isinstance(model, nn.Module) else getattr(model, "__dict__", {})
    inside = [name for name, value in held.items() if isinstance(value, nn.Module)]
    hint = f"prune the network inside, .{'model' if 'model' in inside else inside[0]}" if inside else "pass the network"
    if not isinstance(model, nn.Module):
        raise ModelError(f"{kind} is not a torch.nn.Module; {hint}")
    if not _takes_mode(type(model).train):
        raise ModelError(f"{kind} does not behave like a torch.nn.Module (its train() does something else); {hint}")
    quantised = next((name for name, module in model.named_modules() if _is_quantised(module)), None)
    if quantised is not None:
        raise ModelError(f"{quantised or 'the model'} is quantised; prune the network before it is quantised")
    tensors = [tensor for module in model.modules() for tensor in output_tensors(vars(module))]
    copied(model, {id(tensor): tensor for tensor in tensors})  # without the tensors, which takes no time
    return model


def _takes_mode(train: Callable[..., Any]) -> bool:
    """Whether a `train` method sets the mode as torch's does, whatever the argument's name."""
    first = next(itertools.islice(inspect.signature(train).parameters.values(), 1, None), None)
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return False
    return first.default is first.empty or isinstance(first.default, bool)


def _is_quantised(module: nn.Module) -> bool:
    """Whether its weights are no parameters, but packed for integer kernels."""
    return any(part in type(module).__module__ for part in _QUANTISED) or isinstance(
        getattr(module, "_packed_params", None), nn.Module
    )


def _checked_method(method: str, data: Iterable[Any] | None, compensate: str, recalibrate: bool | None) -> MethodSpec:
    """The method, if the data is there that it and the repairs need.

    Raises:
        MethodError: It is not, or there is no such method or compensation.
    """
    spec = get_structural(method)
    if compensate not in get_args(Compensation):
        wrong = unknown("compensation", str(compensate), get_args(Compensation))
        raise MethodError(f"{option('compensate', compensate)}: {wrong}")
    if (recalibrate is not False or compensate != "none") and data is None:
        needing = option("compensate", compensate) if compensate != "none" else option("recalibrate", recalibrate)
        raise MethodError(f"{needing} needs data: {give_data()}")
    if spec.needs_data and data is None:
        raise MethodError(f"{spec.name} ranks channels by what they do on data: {give_data()}")
    return spec


def _without_state(model: nn.Module) -> nn.Module:
    """A copy whose spiking neurons reset themselves: state from earlier inputs must not leak into later ones."""
    if not spiking_neurons(model):
        return model
    reset(model)
    model = copied(model)
    reset_itself(model)
    return model


@python_names()
def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    arch: str | None = None,
    weights_key: str | None = None,
    strip_prefix: str | None = None,
    allow_nonfinite: bool = False,
) -> nn.Module:
    """Restores the network of a checkpoint bit by bit, in evaluation mode, or reads somebody else's weights.

    Of somebody else's file, what was recognised, chosen and left out is said in warnings.

    Args:
        path: A file written by `PruneResult.save` or `prune ... -o`, a folder that `prune export --to hf` wrote, or
            somebody else's file of weights.
        model: For a network of your own, not in the catalogue: a freshly built dense one. It is not changed.
        arch: "source:name" of somebody else's weights; None: it is recognised.
        weights_key: Which set of somebody else's weights in the file, by its keys joined by dots.
        strip_prefix: Take only those of somebody else's tensors whose names begin with this, without it.
        allow_nonfinite: Whether weights may be NaN or infinite.

    Raises:
        ModelError: The file is damaged, belongs to another architecture, or it is not clear to which.
    """

    def dense(architecture: Architecture) -> nn.Module:
        if model is None:
            raise ModelError(
                f"{path}: holds a model of your own ({architecture.class_name}); give load() a freshly built one"
            )
        return copied(model)

    file = Path(path)
    if file.is_dir():
        folder, file = file, file / WEIGHTS
        if not file.is_file() or read_manifest(file) is None:  # transformers has saved it
            return load_reference(f"hf:{folder}", allow_nonfinite=allow_nonfinite).model
    if not file.is_file():
        raise ModelError(f"{path}: no such file")
    if read_manifest(file) is None:
        if model is not None:
            raise ModelError(f"{path}: holds no pruning manifest; give its tensors to the network by load_state_dict()")
        loaded = load_foreign(file, arch, weights_key, strip_prefix, allow_nonfinite)
        leave_to_caller(loaded.model)
        _remember(loaded.model, loaded.manifest, None)
        return loaded.model
    if (arch, weights_key, strip_prefix) != (None, None, None):
        raise ModelError(
            f"{path}: arch, weights_key and strip_prefix are for weights of other programs; leave them out"
        )
    build = dense if model is not None else _catalogued_or(dense)
    restored, manifest = restore(file, build, allow_nonfinite=allow_nonfinite)
    leave_to_caller(restored)
    _remember(restored, manifest, model)
    return restored


def _manifest_of(model: nn.Module) -> Manifest:
    """Of the result of an earlier `prune` or `load`, else a new one."""
    return getattr(model, _MANIFEST, None) or Manifest(architecture=recognise(model))


def _remember(model: nn.Module, manifest: Manifest, dense: nn.Module | None) -> None:
    """Stores what is needed to prune the model again, as plain attributes, which survive a copy."""
    object.__setattr__(model, _MANIFEST, manifest)
    if dense is not None:
        object.__setattr__(model, _DENSE, _Original(dense))


def _catalogued_or(own: Callable[[Architecture], nn.Module]) -> Callable[[Architecture], nn.Module]:
    """Builds networks of the catalogue; all others are left to `own`."""
    from prunecli.models.catalog import rebuild_dense

    return lambda architecture: rebuild_dense(architecture) if architecture.ref else own(architecture)


@dataclass(frozen=True)
class _Original:
    """The network that another was pruned from; all copies of the pruned one share it."""

    model: nn.Module | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Original:
        return self


class _Batches:
    """The batches in `data`, made iterable more than once."""

    def __init__(self, data: Iterable[Any]) -> None:
        # A generator is used up after one pass, so its batches have to be kept.
        self._data = (
            [data] if isinstance(data, (Tensor, Mapping)) else list(data) if isinstance(data, Iterator) else data
        )
        if isinstance(self._data, Sized) and not len(self._data):
            raise MethodError("data= holds no batches; a generator that was read before is empty")

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            if not output_tensors(batch):
                raise MethodError(
                    "data: each batch has to hold tensors: inputs alone, a pair of inputs and labels, or a mapping"
                )
            yield batch
