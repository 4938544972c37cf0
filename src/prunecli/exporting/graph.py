"""The graph of a network, as `torch.export` records it, with a batch of any size; what has no graph is named."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from prunecli.copying import copied
from prunecli.errors import ModelError, first_line
from prunecli.exporting.base import ExportRequest, safe_name
from prunecli.exporting.quiet import without_words
from prunecli.inputs import Inputs, call, named_tensors, output_tensors, sample_count
from prunecli.measure.neurons import without_memory

BATCH = "batch"
_SIZES = {2: {1: "length"}, 4: {2: "height", 3: "width"}}
"""Dimensions that are sizes of images or texts, by the number of dimensions of an input."""
_SPECIALISED = re.compile(r"specialized it to be a constant \((\d+)\)|Not all values of (\w+)")
_OPERATOR = re.compile(r"OpOverload\(op='([\w.:]+)'|aten[.:]+([\w.]+)")


class FlatNetwork(nn.Module):
    """A network whose outputs are a tuple of tensors, and whose neurons begin every pass without memory.

    Args:
        network: The network.
        example: Inputs of the form that it takes; what of them is no tensor becomes part of the graph.
    """

    def __init__(self, network: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.network = network
        self._fixed = {k: v for k, v in example.items() if _no_tensor(v)} if isinstance(example, Mapping) else {}

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Runs it."""
        with without_memory(self.network):
            outputs = self.network(*args, **{**self._fixed, **kwargs})
        return tuple(tensor for _, tensor in named_tensors(outputs))


def flat(network: nn.Module, example: Inputs, names: Sequence[str]) -> nn.Module:
    """A `FlatNetwork` whose arguments have names: the checks that torch.export records have no others."""

    def forward(self: FlatNetwork, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return FlatNetwork.forward(self, *args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    named: type[FlatNetwork] = type("NamedFlatNetwork", (FlatNetwork,), {"forward": forward})
    return named(network, example)


@dataclass(frozen=True)
class Graph:
    """A graph.

    Attributes:
        program: What torch.export recorded.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        axes: Names of the dimensions that may differ, in the form that torch.onnx takes them.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Any


def graph_of(request: ExportRequest) -> Graph:
    """Records the graph of a network.

    Raises:
        ModelError: It has none, its batch is fixed, or its inputs are no tensors; the message names the module.
    """
    example, name = request.example, request.loaded.name
    _check_form(example, name)
    network = copied(request.loaded.model).cpu().eval().requires_grad_(False)
    with torch.no_grad(), without_memory(network):
        outputs = output_names(call(network, example))
    inputs = input_names(network, example)
    args, kwargs = _arguments(example)
    axes = _Axes(request, sample_count(example)).of
    names = list(kwargs) or [f"input_{index}" for index in range(len(args))]
    named = dict(zip(names, map(axes, kwargs.values() or args), strict=True))
    with without_words(), _watched(network) as running:
        try:
            program = torch.export.export(
                flat(network, example, names), args, kwargs, dynamic_shapes=_dimensions(named), strict=False
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of many types, most of them private
            raise ModelError(_refusal(error, name, request, running)) from error
    _check_dynamic(program, request, name)
    return Graph(program, inputs, outputs, named)


def input_names(network: nn.Module, example: Inputs) -> tuple[str, ...]:
    """Names of a network's inputs: its arguments', or "input" where there is one."""
    if isinstance(example, Tensor):
        return ("input",)
    if isinstance(example, Mapping):
        return tuple(safe_name(key) for key, value in example.items() if isinstance(value, Tensor))
    parameters = [p.name for p in inspect.signature(network.forward).parameters.values()]
    named = [*parameters, *(f"input_{index}" for index in range(len(parameters), len(example)))]
    return tuple(safe_name(name) for name, value in zip(named, example, strict=False) if isinstance(value, Tensor))


def output_names(outputs: Any) -> tuple[str, ...]:
    """Names of a network's outputs: "output", or what they are called where there are several."""
    named = named_tensors(outputs)
    if len(named) == 1:
        return (safe_name(named[0][0]) or "output",)
    return tuple(f"output_{name}" if name[:1].isdigit() else safe_name(name) for name, _ in named)


def operator_and_module(error: BaseException, graph: Graph, network: nn.Module) -> str:
    """The operator that an exporter has no translation for, and the module that runs it: "OPERATOR in MODULE (CLASS)".

    Args:
        error: What the exporter raised.
        graph: The graph that it was given.
        network: The network.
    """
    text = _whole_text(error)
    found = _OPERATOR.search(text)
    operator = next((part for part in found.groups() if part), "") if found else ""
    for node in graph.program.graph.nodes:
        if operator and node.op == "call_function" and operator.partition(".")[2] in str(node.target):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            where = str(stack[-1][0]).removeprefix("network").lstrip(".") if stack else ""
            where = "" if where.startswith("_empty") else where  # torch's own word for none
            return f"{operator} in {_named(network, where)}"
    return operator or f"the whole: {first_line(_root(error), 120)}"


def _root(error: BaseException) -> BaseException:
    """The first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _whole_text(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _named(network: nn.Module, name: str) -> str:
    try:
        kind = type(network.get_submodule(name)).__name__
    except AttributeError:
        return name or "the network itself"
    return f"{name} ({kind})" if name else f"the {kind} itself"


def _check_form(example: Inputs, name: str) -> None:
    values = list(example.values()) if isinstance(example, Mapping) else example
    parts = list(values) if isinstance(values, (tuple, list)) else [values]
    nested = [value for value in parts if not isinstance(value, Tensor) and not _no_tensor(value)]
    if isinstance(example, list) or nested:
        raise ModelError(
            f"{name}: takes a list of images, or other containers of tensors, and a graph takes tensors alone; "
            "safetensors-plain and hf write its weights"
        )


def _no_tensor(value: Any) -> bool:
    return not isinstance(value, Tensor) and not output_tensors(value)


def _arguments(example: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), {key: value for key, value in example.items() if isinstance(value, Tensor)}
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


class _Axes:
    """Names of the dimensions of inputs that are not fixed."""

    def __init__(self, request: ExportRequest, count: int) -> None:
        self._request, self._count = request, count

    def of(self, value: Any) -> dict[int, str] | None:
        if not isinstance(value, Tensor):
            return None
        batched = self._request.batch is None and value.dim() > 0 and len(value) == self._count
        names = {0: BATCH} if batched else {}
        return names | (_SIZES.get(value.dim(), {}) if self._request.dynamic_size else {})


def _dimensions(named: Any) -> Any:
    """The same for `torch.export`: the batch is one dimension of all inputs, sizes are what the code allows."""
    if isinstance(named, str):
        return torch.export.Dim(BATCH) if named == BATCH else torch.export.Dim.AUTO
    return {key: _dimensions(value) for key, value in named.items()} if isinstance(named, dict) else None


def _check_dynamic(program: torch.export.ExportedProgram, request: ExportRequest, name: str) -> None:
    """Checks that sizes that were to be free are.

    Raises:
        ModelError: The network's code fixes them.
    """
    if not request.dynamic_size:
        return
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.name in inputs and isinstance(node.meta.get("val"), Tensor):
            shape = node.meta["val"].shape
            fixed = [shape[dim] for dim in _SIZES.get(len(shape), {}) if str(shape[dim]).isdigit()]
            if fixed:
                raise ModelError(
                    f"{name}: its code fixes the size of its inputs ({'x'.join(map(str, fixed))}); leave out "
                    "--dynamic-size, and export it for each size that you need"
                )


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are running, outermost first; where something fails, those that were."""
    names = {id(module): name for name, module in network.named_modules()}
    running: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            running.append(names[id(module)])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in names and running:
            running.pop()

    handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _refusal(error: Exception, name: str, request: ExportRequest, running: list[str]) -> str:
    text = _whole_text(error)
    if request.batch is None and _SPECIALISED.search(text) and BATCH in text:
        return f"{name}: its code fixes the number of samples in a batch; export it for one number with --batch 1"
    where = _named(request.loaded.model, running[-1]) if running else "the network"
    found = _OPERATOR.search(text)
    operator = next((part for part in found.groups() if part), "") if found else ""
    cause = f"operator {operator}: " if operator else ""
    return (
        f"{name}: has no graph that torch.export can record: {where}: {cause}{type(error).__name__}: "
        f"{first_line(error)}; safetensors-plain and hf write its weights"
    )
