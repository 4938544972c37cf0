"""Labels of tensors and records of operator calls, collected while a network is followed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunecli.errors import ModelError
from prunecli.surgery.axes import Axis, Term, fixed
from prunecli.surgery.groups import Role
from prunecli.surgery.recurrent.cell import wrapped_cells
from prunecli.surgery.tracing.branches import Reads
from prunecli.surgery.tracing.equations import Held
from prunecli.surgery.tracing.watched import Read, Uses

INPUT = "tied to the size of the model's input"
OUTPUT = "output layer: its width is the model's output"
PICKED = "single positions of it are picked out"
_CONSTANT = "tied to a tensor that is neither a parameter nor a buffer"


class ValuesNeededError(ModelError):
    """What the network does depends on what it computes, so it has to compute."""


@dataclass(eq=False)
class Label:
    """Knowledge about one tensor.

    Attributes:
        dims: A term for every dimension.
        from_input: Whether its values depend on the model's input.
        source: For a parameter, or a transposition or slice of one: its name, and the parameter's dimension for each
            dimension of this tensor.
        origins: Names of the parameters and buffers it was computed from, if from nothing else.
        learned: Whether its values depend on a parameter or a floating buffer.
        starts: For a slice of a parameter the first position, by the parameter's dimension.
    """

    dims: tuple[Term, ...]
    from_input: bool = False
    source: tuple[str, tuple[int, ...]] | None = None
    origins: frozenset[str] = frozenset()
    learned: bool = False
    starts: Mapping[int, int] = field(default_factory=dict)


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
    """Everything learned from running a network.

    Attributes:
        parameters: Label of each parameter and buffer by state dict name; tied names share one label.
        records: All operator calls in evaluation mode, in order.
        training: All operator calls in training mode; None if the network does not run there on these inputs.
        training_samples: 1 if it trains on the inputs as they are, 2 if it needs them twice.
        roles: (name, dimension) of weights to "producer" or "consumer".
        heads: Terms of dimensions that run in parallel in a product of activations: attention heads.
        contracted: Terms of dimensions over which such a product sums: head dimensions, or tokens.
        outputs: For each module the labels of the tensors in its output, the first time it ran.
        blocks: For each grouped convolution or normalisation the term of its groups.
        uses: Numbers that were used as sizes.
        held: Attributes that hold a width, known from an adapter.
        results: Labels of the tensors that the network returned, in either mode.
        kept_outputs: Names of the outputs whose widths stay; None for all.
        free_outputs: Names of the outputs whose widths may change.
        met: Names of the parameters and buffers that were used.
        single: Whether something that depends on the input is computed in less than float64.
        conditions: Dimensions that cannot shrink if a tensor is read later: its label, the terms and why.
        order: Names of modules, in the order they were first called.
        entries: Names of buffers that say which units of a state a recurrent cell has.
    """

    parameters: dict[str, Label]
    records: list[Record] = field(default_factory=list)
    training: list[Record] | None = None
    training_samples: int = 1
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    heads: list[Term] = field(default_factory=list)
    contracted: list[Term] = field(default_factory=list)
    outputs: dict[str, tuple[Label, ...]] = field(default_factory=dict)
    blocks: dict[str, Term] = field(default_factory=dict)
    uses: Uses = field(default_factory=Uses)
    held: dict[Read, Held] = field(default_factory=dict)
    results: list[Label] = field(default_factory=list)
    kept_outputs: tuple[str, ...] | None = None
    free_outputs: tuple[str, ...] = ()
    met: set[str] = field(default_factory=set)
    single: bool = False
    conditions: list[tuple[Label, tuple[Term, ...], str]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    entries: frozenset[str] = frozenset()


class Labels:
    """The labels of all tensors of one run, and everything learned from it.

    Args:
        model: The network that is run; its parameters and buffers are labelled.
        originals: Names of the tensors of the network that `model` is a copy of, by id: the copy must not use them.
        values: Whether what the network computes is right; without, tensors that depend on both weights and input
            have the right shapes alone.

    Attributes:
        followed: What was learned so far.
        stack: Names of the running modules, innermost last.
        records: The operator calls of the present pass.
        read: Labels of all tensors that an operator has read.
        reads: Where values that depend on weights and input were read.
        values_needed: What read values that were not computed; empty as long as nothing has.
    """

    def __init__(self, model: nn.Module, originals: Mapping[int, str], *, values: bool = True) -> None:
        self.values = values
        self.values_needed = ""
        self._labels: Any = WeakTensorKeyDictionary()
        self._originals = originals
        self.records: list[Record] = []
        self.read: set[Label] = set()
        self.reads = Reads()
        self.stack: list[str] = [""]
        parameters: dict[str, Label] = {}
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ):
            if tensor not in self._labels:
                dims = tuple(Axis(size) for size in tensor.shape)
                self._labels[tensor] = Label(
                    dims,
                    source=(name, tuple(range(tensor.dim()))),
                    origins=frozenset((name,)),
                    learned=tensor.is_floating_point() or tensor.is_complex(),
                )
            parameters[name] = self._labels[tensor]
        entries = frozenset(f"{name}.units".lstrip(".") for name in wrapped_cells(model))
        self.followed = Followed(parameters, entries=entries)

    def start(self) -> None:
        """Begins a pass."""
        self.records = []
        self.stack[:] = [""]

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._labels

    @property
    def module(self) -> str:
        """Name of the module that is running; empty for the model itself."""
        return self.stack[-1]

    def of(self, tensor: Tensor) -> Label:
        """The label of a tensor; an unknown tensor is a constant that cannot be resized."""
        label: Label | None = self._labels.get(tensor)
        if label is None:
            self._refuse_foreign(tensor)
            label = self._labels[tensor] = Label(tuple(fixed(size, _CONSTANT) for size in tensor.shape))
        return label

    def need_values(self, what: str) -> None:
        """Ends a run without values.

        Raises:
            ValuesNeededError: Always.
        """
        self.values_needed = what
        raise ValuesNeededError(what)

    def _refuse_foreign(self, tensor: Tensor) -> None:
        """Refuses tensors that the network does not own and that removal would therefore miss.

        Raises:
            ModelError: The network computes with a tensor of the network it was copied from, or with a parameter that
                none of its modules has.
        """
        where = f"the forward pass of {self.module or 'the model'}"
        if id(tensor) in self._originals:
            raise ModelError(
                f"{where} uses {self._originals[id(tensor)]} through a function or closure that holds the original "
                "network, so that a copy would still compute with it; let forward reach it through self"
            )
        if isinstance(tensor, nn.Parameter):
            raise ModelError(
                f"{where} uses a parameter of shape {tuple(tensor.shape)} that belongs to no module of the network; "
                "register it, for instance as an attribute of a module or in nn.ParameterList"
            )

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

    def if_read(self, tensor: Tensor, dims: Iterable[Term], reason: str) -> None:
        """States that `dims` cannot shrink if an operator reads `tensor`, or the model returns it."""
        self.followed.conditions.append((self.of(tensor), tuple(dims), reason))
