"""Labels of tensors and records of operator calls, collected while a network is followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunecli.surgery.axes import Axis, Term, fixed
from prunecli.surgery.groups import Role

INPUT = "tied to the size of the model's input"
OUTPUT = "output layer: its width is the model's output"
HIDDEN = "hidden units of a recurrent layer: all its gates and time steps share them"
_CONSTANT = "tied to a tensor that is neither a parameter nor a buffer"


@dataclass(eq=False)
class Label:
    """Knowledge about one tensor.

    Attributes:
        dims: A term for every dimension.
        from_input: Whether its values depend on the model's input.
        source: For a parameter, or a transposition of one: its name, and the parameter's dimension for each dimension
            of this tensor.
        origins: Names of the parameters and buffers it was computed from, if from nothing else.
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
    """Everything learned from one run.

    Attributes:
        parameters: Label of each parameter and buffer by state dict name; tied names share one label.
        records: All operator calls in order.
        roles: (name, dimension) of weights to "producer" or "consumer".
        heads: Terms of dimensions that run in parallel in a product of activations: attention heads.
        contracted: Terms of dimensions over which such a product sums: head dimensions, or tokens.
        modules: For each module the terms of dimensions it handles: in operators it calls itself, in its arguments and
            outputs, and in the outputs of its children.
        outputs: For each module the label of the last tensor in its output.
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


class Labels:
    """The labels of all tensors of one run, and everything learned from it.

    Args:
        model: The network that is run; its parameters and buffers are labelled.

    Attributes:
        followed: What was learned so far.
        stack: Names of the running modules, innermost last.
    """

    def __init__(self, model: nn.Module) -> None:
        self._labels: Any = WeakTensorKeyDictionary()
        self.stack: list[str] = [""]
        parameters: dict[str, Label] = {}
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ):
            if tensor not in self._labels:
                dims = tuple(Axis(size) for size in tensor.shape)
                self._labels[tensor] = Label(
                    dims, source=(name, tuple(range(tensor.dim()))), origins=frozenset((name,))
                )
            parameters[name] = self._labels[tensor]
        self.followed = Followed(parameters)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._labels

    @property
    def module(self) -> str:
        """Name of the module that is running; empty for the model itself."""
        return self.stack[-1]

    def of(self, tensor: Tensor) -> Label:
        """The label of a tensor; an unknown tensor is a constant that cannot be resized."""
        if tensor not in self._labels:
            self._labels[tensor] = Label(tuple(fixed(size, _CONSTANT) for size in tensor.shape))
        label: Label = self._labels[tensor]
        return label

    def set(
        self,
        tensor: Tensor,
        dims: Sequence[Term],
        *,
        from_input: bool = False,
        source: tuple[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Labels a new tensor."""
        assert [term.size for term in dims] == list(tensor.shape), (dims, tensor.shape)
        self._labels[tensor] = Label(tuple(dims), from_input, source)
