"""Running several networks on several batches turn by turn, so that all have reached the same layer at the same time.

Each pass has a thread of its own, which waits at every watched layer until it is told to go on; only one runs at a
time. What a pass holds while it waits is what a network holds at that point of an ordinary forward pass, so nothing is
stored, and a layer that is changed while all passes wait is changed for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.copying import copied
from prunecli.inputs import Inputs, run_batch
from prunecli.surgery.taps import layer_input


@dataclass(frozen=True)
class Arrival:
    """A pass that waits at a layer.

    Attributes:
        layer: The layer's name.
        values: What the layer is about to read (`before`), or what it has just given.
        operators: How many operators have run.
    """

    layer: str
    values: Tensor
    operators: int


class _Abandoned(BaseException):
    """Ends a pass that nobody waits for any more; no handler of a network's own may swallow it."""


class Noted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators and keeps the results of some.

    Args:
        wanted: The numbers of the operators whose first result is kept.

    Attributes:
        count: How many operators have run.
        kept: Results by number.
    """

    def __init__(self, wanted: frozenset[int] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.kept, self._wanted = 0, dict[int, Tensor](), wanted

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        number, self.count = self.count, self.count + 1
        result = func(*args, **(kwargs or {}))
        if number in self._wanted:
            self.kept[number] = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


class Pass:
    """One network on one batch, stopping at layers.

    It runs on a copy that shares parameters and statistics, so that what modules remember within a pass, such as
    membrane potentials, is each pass's own.

    Args:
        network: The network.
        batch: Inputs.
        layers: Names of the layers to stop at.
        before: Whether it stops before them, to see what they read, or behind, to see what they give.
        wanted: Operators whose results are kept.
    """

    def __init__(
        self,
        network: nn.Module,
        batch: Inputs,
        layers: Iterable[str],
        *,
        before: bool,
        wanted: frozenset[int] = frozenset(),
    ) -> None:
        self.noted = Noted(wanted)
        stored = network.state_dict(keep_vars=True).values()
        shared: dict[int, Any] = {id(tensor): tensor for tensor in stored if isinstance(tensor, Tensor)}
        self._network, self._batch = copied(network, shared).eval(), batch
        for name in layers:
            layer = self._network.get_submodule(name)
            if before:
                layer.register_forward_pre_hook(partial(self._entered, name), with_kwargs=True)
            else:
                layer.register_forward_hook(partial(self._left, name))
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._arrival: Arrival | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self) -> Arrival | None:
        """Runs to the next watched layer; None at the end.

        Raises:
            MethodError: The network does not run on the batch.
        """
        self._arrival = None
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error
        return self._arrival

    def close(self) -> None:
        """Ends the pass wherever it is."""
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def _entered(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = layer_input(args, kwargs)
        if values is not None:
            self._arrive(name, values)

    def _left(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._arrive(name, output)

    def _arrive(self, layer: str, values: Tensor) -> None:
        self._arrival = Arrival(layer, values, self.noted.count)
        self._stopped.release()
        self._go.acquire()
        self._arrival = None
        if self._abandoned:
            raise _Abandoned

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad(), self.noted:
                    run_batch(self._network, self._batch)
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._stopped.release()
