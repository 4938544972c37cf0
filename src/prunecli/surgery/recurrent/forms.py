"""Which recurrent layers and cells take another form before a network is traced, so that more of it can shrink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunecli.copying import converted, copied
from prunecli.inputs import Inputs, call, cast_inputs, output_tensors
from prunecli.surgery.recurrent.cell import wrap_cells, wrapped_cells
from prunecli.surgery.recurrent.plain import is_plain_cell, is_plain_layer
from prunecli.surgery.recurrent.stack import separate, separated_names
from prunecli.surgery.tracing.running import plain_kernels, seeded

Form = Literal["stack", "cell"]
"""What a recurrent layer, or a recurrent cell, becomes."""
_Network = TypeVar("_Network", bound=nn.Module)
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4}


def forms_of(model: nn.Module) -> dict[str, Form]:
    """The modules of a network that have another form than their original, by name."""
    stacks: dict[str, Form] = dict.fromkeys(separated_names(model), "stack")
    return {**stacks, **dict.fromkeys(wrapped_cells(model), "cell")}


def put_in_form(model: nn.Module, forms: Mapping[str, Form]) -> None:
    """Gives modules their other form, in place; what has it already stays.

    Raises:
        ModelError: The network has no such recurrent layer or cell.
    """
    present = forms_of(model)
    separate(model, [name for name, form in forms.items() if form == "stack" and name not in present])
    wrap_cells(model, [name for name, form in forms.items() if form == "cell" and name not in present])


def in_form(model: _Network, inputs: Inputs) -> _Network:
    """The network itself, or a copy in which recurrent layers can shrink one by one.

    Layers of several layers or directions are separated, and so are those with projections, those that take a state
    and those whose state the network returns; cells that are handed a state are wrapped. It is checked that the copy
    computes the same: networks whose code uses a layer in other ways than calling it are left as they are.

    Args:
        model: Not changed.
        inputs: Example inputs.
    """
    present = forms_of(model)
    candidates = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if name and (is_plain_layer(module) or is_plain_cell(module)) and not _inside(name, present)
    ]
    if not candidates or any(tensor.is_meta or is_lazy(tensor) for tensor in model.parameters()):
        return model  # without values there is nothing to compare; the trace says so
    wanted = _wanted(model, candidates, inputs)
    while wanted and not _computes_the_same(model, wanted, inputs):
        wanted = _without_faulty(model, wanted, inputs)
    if not wanted:
        return model
    changed = copied(model)
    put_in_form(changed, wanted)
    return changed


def _inside(name: str, stacks: Iterable[str]) -> bool:
    return any(name.startswith(f"{stack}.") for stack in stacks)


def _without_faulty(model: nn.Module, wanted: Mapping[str, Form], inputs: Inputs) -> dict[str, Form]:
    """Those that can take their form alone; none if they cannot do so together."""
    alone = {name: form for name, form in wanted.items() if _computes_the_same(model, {name: form}, inputs)}
    return alone if len(alone) < len(wanted) else {}


@dataclass
class _States:
    """Where the states of a network's recurrent layers come from and go.

    Attributes:
        given: Layers and cells that are handed a state that no layer has computed, or that a recurrent layer returned.
        stateful: Layers whose state another recurrent layer is handed, or that the network returns.
    """

    given: set[str] = field(default_factory=set)
    stateful: set[str] = field(default_factory=set)


def _wanted(model: nn.Module, candidates: Sequence[str], inputs: Inputs) -> dict[str, Form]:
    states = _observed(model, candidates, inputs)
    forms: dict[str, Form] = {}
    for name in candidates:
        module = model.get_submodule(name)
        if isinstance(module, nn.RNNBase):
            several = module.num_layers > 1 or module.bidirectional or module.proj_size
            if several or name in states.given or name in states.stateful:
                forms[name] = "stack"
        elif name in states.given:
            forms[name] = "cell"
    return forms


def _observed(model: nn.Module, names: Sequence[str], inputs: Inputs) -> _States:
    """What a run shows about states; nothing if the network does not run."""
    network, states = copied(model).eval(), _States()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    returned: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that their memory is not used again

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for state in output_tensors(args[1] if len(args) > 1 else kwargs.get("hx")):
                source = returned.get(state.untyped_storage().data_ptr())
                if source is not None:
                    states.stateful.add(source[0])
                if source is not None or not state.requires_grad:
                    states.given.add(name)

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            last = output[1] if isinstance(module, nn.RNNBase) else output
            for state in output_tensors(last):
                returned[state.untyped_storage().data_ptr()] = (name, state)

        return hook

    for name in names:
        network.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True)
        network.get_submodule(name).register_forward_hook(after(name))
    try:
        with plain_kernels(), torch.enable_grad(), seeded():
            output = call(network, inputs)
    except Exception:  # the trace says why
        return states
    for tensor in output_tensors(output):
        source = returned.get(tensor.untyped_storage().data_ptr())
        if source is not None:
            states.stateful.add(source[0])
    return states


def _computes_the_same(model: nn.Module, forms: Mapping[str, Form], inputs: Inputs) -> bool:
    """Whether the network returns the same with these forms, in evaluation mode and, without dropout, in training.

    A mode in which the network does not run on these inputs says nothing.
    """
    for dtype, agreement in _AGREEMENT.items():
        original = converted(model, dtype).eval()
        changed = copied(original)
        put_in_form(changed, forms)
        typed = cast_inputs(inputs, device="cpu", dtype=dtype)
        try:
            expected = _outputs(original, typed)
        except Exception:
            continue  # some networks cast to single precision inside
        try:
            same = _alike(expected, _outputs(changed, typed), agreement)
        except Exception:  # the network's code reads something that only the original layer has
            return False
        return same and _trains_the_same(original, changed, typed, agreement)
    return False


def _trains_the_same(original: nn.Module, changed: nn.Module, inputs: Inputs, agreement: float) -> bool:
    for module in (*original.modules(), *changed.modules()):
        for attribute in ("p", "dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    try:
        expected = _outputs(original.train(), inputs)
    except Exception:  # batch normalisation of one sample, missing targets
        return True
    try:
        return _alike(expected, _outputs(changed.train(), inputs), agreement)
    except Exception:
        return False


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with _unchanged_buffers(model), torch.no_grad(), plain_kernels(), seeded():
        return output_tensors(call(model, inputs))


@contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


def _alike(expected: Sequence[Tensor], actual: Sequence[Tensor], agreement: float) -> bool:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return False
    for one, other in zip(expected, actual, strict=True):
        if one.is_floating_point() and one.numel():
            scale = float(one.abs().max()) * agreement + torch.finfo(one.dtype).tiny
            if not float((one - other).abs().nan_to_num(0.0).max()) <= scale:
                return False
    return True
