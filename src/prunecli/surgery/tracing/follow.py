"""Following channels through the ATen operators of one forward pass.

The model runs once, for real, under a dispatch mode: every composite function arrives here as the primitive operators
`torch.export` would record after its decompositions, parameters arrive as themselves, and the modules on the stack are
known. Each rule in `prunecli.surgery.tracing.operators` says which dimensions of an operator's arguments and results are
the same channels. One plain run costs a fraction of an export and works on models that cannot be exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prunecli.errors import ModelError
from prunecli.inputs import Inputs, call, output_tensors
from prunecli.surgery.axes import Axis, Term, fixed, freeze
from prunecli.surgery.groups import Role

INPUT = "tied to the size of the model's input"
OUTPUT = "output layer: its width is the model's output"
_SHORT = (torch.float32, torch.float16, torch.bfloat16)
CONSTANT = "tied to a tensor that is neither a parameter nor a buffer"


@dataclass(eq=False)
class Label:
    """What is known about one tensor.

    Attributes:
        dims: A term for every dimension.
        from_input: Whether its values depend on the model's input.
        source: For a parameter seen through transpositions: its name and the parameter's dimension behind each of its
        own.
        origins: Names of the parameters and buffers it was computed from, if nothing else went in.
    """

    dims: tuple[Term, ...]
    from_input: bool = False
    source: tuple[str, tuple[int, ...]] | None = None
    origins: frozenset[str] = frozenset()


@dataclass(eq=False)
class Record:
    """One operator call: what it was, where, and the labels that went in and came out."""

    operator: str
    func: Any
    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Label, ...]
    outputs: tuple[Label, ...]
    numbers: tuple[float, ...] = ()


@dataclass
class Followed:
    """Everything one run has shown.

    Attributes:
        parameters: Label of each parameter and buffer by state dict name; tied names share one label.
        records: All operator calls in order.
        roles: (name, dimension) of weights to "producer" or "consumer".
        heads: Terms of dimensions that run in parallel in a product of activations: attention heads.
        contracted: Terms of dimensions over which such a product sums: head dimensions, or tokens.
        modules: For each module the terms of dimensions it sees: in operators it calls itself, in what it is given and
            gives back, and in what its children give back.
        outputs: For each module the label of the last tensor it gave back.
        blocks: For each grouped convolution or normalisation the term of its groups.
        splits: For each module the sizes it splits dimensions into, with the terms of the pieces.
        single: Whether something that depends on the input is computed in less than float64.
        order: Names of modules that own tensors, in the order they were first called.
    """

    parameters: dict[str, Label]
    records: list[Record] = field(default_factory=list)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    heads: list[Term] = field(default_factory=list)
    contracted: list[Term] = field(default_factory=list)
    modules: dict[str, list[Term]] = field(default_factory=dict)
    outputs: dict[str, Label] = field(default_factory=dict)
    blocks: dict[str, Term] = field(default_factory=dict)
    splits: dict[str, dict[tuple[int, ...], tuple[Term, ...]]] = field(default_factory=dict)
    single: bool = False
    order: list[str] = field(default_factory=list)


def follow(model: nn.Module, inputs: Inputs) -> Followed:
    """Runs `model` once and labels every dimension of every tensor.

    Args:
        model: In evaluation mode, on the CPU; not changed.
        inputs: Inputs of the model's dtype.

    Raises:
        ModelError: The model does not run on the inputs, or what it does depends on their values.
    """
    follower = Follower(model)
    with plain_attention(), torch.no_grad(), stack_names(model, follower.stack, follower):
        try:
            with follower:
                for tensor in tree_leaves(inputs if not isinstance(inputs, Mapping) else dict(inputs)):
                    follower.label(tensor, [fixed(size, INPUT) for size in tensor.shape], from_input=True)
                output = call(model, inputs)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the model does not run on the example inputs: {one_line(error)}") from error
    for tensor in output_tensors(output):
        for term in follower.labels[tensor].dims if tensor in follower.labels else ():
            freeze(term, OUTPUT)
    return follower.followed


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatch mode behind `follow`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels: Any = WeakTensorKeyDictionary()
        self.stack: list[str] = [""]
        self.order: list[str] = []
        parameters: dict[str, Label] = {}
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ):
            if tensor not in self.labels:
                dims = tuple(Axis(size) for size in tensor.shape)
                self.labels[tensor] = Label(dims, source=(name, tuple(range(tensor.dim()))), origins=frozenset((name,)))
            parameters[name] = self.labels[tensor]
        self.followed = Followed(parameters, order=self.order)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        from prunecli.surgery.tracing.operators import Call, apply_rule  # here, because rules name this class

        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        labels = tuple(self.of(tensor) for tensor in tensors)
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        current = Call(self, func, name, args, kwargs, tensors, labels, out, results)
        apply_rule(current)
        outputs = tuple(self.of(result) for result in results)
        from_input = any(label.from_input for label in labels)
        origins = frozenset().union(*(label.origins for label in labels)) if not from_input else frozenset()
        for label in outputs:
            label.from_input = label.from_input or from_input
            label.origins = label.origins or origins
        if from_input and any(result.dtype in _SHORT for result in results):
            self.followed.single = True
        place = self.stack[-1]
        # Tensors are not kept: only their labels are.
        plain_args, plain_kwargs = _without_tensors(args), {k: _without_tensors(v) for k, v in kwargs.items()}
        numbers = tuple(_numbers(args, tensors, labels))
        self.followed.records.append(Record(name, func, place, plain_args, plain_kwargs, labels, outputs, numbers))
        seen = self.followed.modules.setdefault(place, [])
        for label in (*labels, *outputs):
            seen.extend(label.dims)
        return out

    def of(self, tensor: Tensor) -> Label:
        """The label of a tensor; one that came from nowhere is a constant that cannot be resized."""
        found = self.labels.get(tensor)
        if found is None:
            found = Label(tuple(fixed(size, CONSTANT) for size in tensor.shape))
            self.labels[tensor] = found
        label: Label = found
        return label

    def label(
        self,
        tensor: Tensor,
        dims: Sequence[Term],
        *,
        from_input: bool = False,
        source: tuple[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Describes a new tensor."""
        assert [term.size for term in dims] == list(tensor.shape), (dims, tensor.shape)
        self.labels[tensor] = Label(tuple(dims), from_input, source)

    def entered(self, name: str, args: Any) -> None:
        """A module begins with these arguments."""
        if name not in self.followed.modules:
            self.order.append(name)
        self._see((name,), args)

    def left(self, name: str, output: Any) -> None:
        """A module gives back `output` to the one below it on the stack."""
        self._see((name, self.place), output)
        for tensor in output_tensors(output)[-1:]:
            self.followed.outputs[name] = self.of(tensor)

    def _see(self, names: Sequence[str], value: Any) -> None:
        for name in names:
            seen = self.followed.modules.setdefault(name, [])
            for tensor in output_tensors(value):
                seen.extend(self.of(tensor).dims)

    @property
    def place(self) -> str:
        """The module that is running."""
        return self.stack[-1]


def _numbers(args: tuple[Any, ...], tensors: Sequence[Tensor], labels: Sequence[Label]) -> Iterator[float]:
    """Plain numbers among the arguments, constants wrapped in a tensor of no dimensions included."""
    yield from (float(value) for value in args if isinstance(value, float))
    for tensor, label in zip(tensors, labels, strict=True):
        if tensor.dim() == 0 and not label.from_input and label.source is None and tensor.is_floating_point():
            yield float(tensor)


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (list, tuple)):
        return tuple(_without_tensors(item) for item in value)
    return value


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as matrix products and a softmax instead of fused kernels whose insides cannot be seen."""
    with without_fastpath(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def without_fastpath() -> Iterator[None]:
    """Switches off the fused transformer kernels, which call no submodules and so run no hooks."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def stack_names(model: nn.Module, stack: list[str], follower: Follower | None = None) -> Iterator[None]:
    """Keeps the names of running modules on `stack`, innermost last; after an error the culprit is still on top."""

    def entered(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append(name)
            if follower is not None:
                follower.entered(name, args)

        return hook

    def left(module: nn.Module, args: Any, output: Any) -> None:
        name = stack.pop()
        if follower is not None:
            follower.left(name, output)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(entered(name)).remove)
                hooks.callback(module.register_forward_hook(left).remove)
        yield


def one_line(error: BaseException) -> str:
    """The first line of an error with its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
