"""A network whose parameters, gradients and optimizer states are divided among processes while it is trained (FSDP2).

torch's `fully_shard` (Zhao et al., PyTorch FSDP, VLDB 2023; Rajbhandari et al., ZeRO, SC 2020) changes the classes of
modules, hooks them, and puts DTensors in the place of parameters. `Sharded` does that to the blocks of a network and to
the network around them, and takes it back: afterwards modules are what they were, and hold the parameters that they
held before, with the values that training gave them.

torch averages gradients over processes, as `prunecli.engine.replicas` does, so losses are weighted in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunecli import ranks
from prunecli.copying import freed_at_once
from prunecli.engine.config import FitConfig
from prunecli.engine.divided import in_full, is_divided, sharded_now
from prunecli.engine.hooks import Hook
from prunecli.engine.optimizer import DIVISIBLE
from prunecli.engine.repeated_blocks import innermost, repeated_blocks
from prunecli.engine.replicas import Replicas, not_finite, tensors_of
from prunecli.engine.tasks.base import Task
from prunecli.errors import DivergedError, ModelError, RanksDiffer, RecipeError, first_line
from prunecli.inputs import map_tensors, output_tensors

_OPTION = "sharding fsdp2"
_DEVICES = ("cpu", "cuda")


def replicas_of(
    network: nn.Module,
    config: FitConfig,
    device: torch.device,
    task: Task,
    batches: object,
    hooks: Sequence[Hook],
    optimizer: torch.optim.Optimizer | None,
    tell: Callable[[str], None],
) -> Replicas:
    """Moves a network to where it is trained: divided among processes if that is asked for, else a copy in each.

    Args:
        network: What is trained.
        config: Hyperparameters.
        device: Where.
        task: What for.
        batches: Training batches.
        hooks: What takes part.
        optimizer: An optimizer of the whole network that goes on, if there is one.
        tell: Told how the network is divided, or why it is not.

    Raises:
        RecipeError: Something of these cannot be used with a divided network; the message names it.
        ModelError: See `Sharded`.
    """
    if config.sharding == "none" or not ranks.together():
        if config.sharding != "none":
            tell(f"{_OPTION}: there is one process, so nothing is divided")
        return Replicas(network.to(device))
    whole = next((hook.name for hook in hooks if not hook.works_sharded), None)
    if whole is not None:
        raise RecipeError(f"{_OPTION}: {whole} needs whole weights while it trains; leave one of them out")
    if task.finds_boxes:
        raise RecipeError(
            f"{_OPTION} is not for detectors, whose packages call parts of them by themselves; leave it out"
        )
    if getattr(batches, "contiguous", False):
        raise RecipeError(f"{_OPTION} is not for networks that read a text from end to end; leave it out")
    if optimizer is not None:
        raise RecipeError(f"{_OPTION} cannot go on with an optimizer of the whole network; leave it out")
    if config.optimizer.lower() not in DIVISIBLE:
        raise RecipeError(
            f"{_OPTION} is for optimizers that are known to be right for parts of weights, and {config.optimizer} is "
            "not; use for instance adamw, sgd, lamb or lion"
        )
    if config.amp and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise RecipeError(f"{_OPTION}: this GPU has no bfloat16, and losses are not scaled then; give amp: false")
    sharded = Sharded(network, device)
    parts = (
        f"{len(sharded.blocks)} blocks" if sharded.blocks else "no repeated blocks, so weights are whole in each pass"
    )
    tell(f"{_OPTION}: weights, gradients and optimizer states divided among {ranks.world_size()} processes; {parts}")
    return sharded


class _Place(NamedTuple):
    """Where a parameter is: its module, its name there, and itself before it was divided."""

    module: nn.Module
    name: str
    parameter: nn.Parameter


class Sharded(Replicas):
    """A network that is divided among all processes, in place, until `end`.

    Its parameters are DTensors, of which each process holds a part, except in the `forward` of their block.

    Args:
        network: What is trained. A block at a time is moved to `device` and cut up.
        device: Where to train.

    Raises:
        RecipeError: A parameter cannot be divided, or the device cannot be used.
        ModelError: torch cannot divide the network; the message says why.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        _check(network, device)
        super().__init__(network)
        self._memory = ExitStack()
        if device.type == "cpu":  # else the system keeps what blocks let go, and nothing is saved
            self._memory.enter_context(freed_at_once())
        self.blocks = repeated_blocks(network)
        self._places = _places(network)
        self._plain = {module: _Plain(module) for module in network.modules()}
        self._used, self._calls = set[str](), hashlib.sha256()
        self._handles = [handle for name in (*self.blocks, "") for handle in self._watch(name)]
        try:
            self._divide(device)
        except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # torch refuses what it cannot divide in each of these ways.
            raise ModelError(f"{_OPTION}: torch cannot divide this network ({first_line(error)})") from error
        for module, plain in self._plain.items():
            plain.note_added(module)
        sharded_now(network)

    def _divide(self, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (ranks.world_size(),))
        for name in (*reversed(self.blocks), ""):  # what is inside another one comes before it
            fully_shard(self._network.get_submodule(name), mesh=mesh, reshard_after_forward=True)
            for own, place in self._places.items():
                if innermost(own, self.blocks) == name and is_divided(getattr(place.module, place.name)):
                    place.parameter.data = place.parameter.data.new_empty(0)
        # Where one process has no gradient of a parameter, it sends zeros.
        self._network.set_reduce_scatter_unused_params(True)  # type: ignore[operator]

    def _watch(self, block: str) -> Iterator[RemovableHandle]:
        """Hooks of a block, inside those of `fully_shard`: parameters are whole when they run."""
        module = self._network.get_submodule(block)
        own = {name: place for name, place in self._places.items() if innermost(name, self.blocks) == block}
        watched: set[str] = set()

        def before(module: nn.Module, args: Any) -> None:
            if not torch.is_grad_enabled():
                return
            self._calls.update(f"{block};".encode())
            for name, place in own.items():
                parameter = getattr(place.module, place.name)
                if name not in watched and parameter.requires_grad:
                    watched.add(name)
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._used.add(name))

        yield module.register_forward_pre_hook(before)
        yield module.register_forward_hook(_whole_again)

    def start(self) -> None:
        """Call before the steps of an epoch."""
        if self._statistics is not None:
            self._statistics.look_again()

    def see(self, samples: int, *, closing: bool) -> None:
        """Call before a backward pass."""
        if self._statistics is not None:
            self._statistics.see(samples)

    def join(self) -> None:
        """Call when a step's gradients have been computed: agrees on which parameters have one, and joins buffers.

        Raises:
            RanksDiffer: Blocks ran in another order in two processes, so that they have exchanged the wrong weights.
            RankLost: Another process is gone.
        """
        everywhere = ranks.gathered((self._calls.hexdigest(), self._used))
        if len({calls for calls, _ in everywhere}) > 1:
            raise RanksDiffer(
                f"{_OPTION}: blocks of the network did not run in the same order in all processes, because "
                "that depends on the samples or on random numbers; leave it out"
            )
        used = set().union(*(names for _, names in everywhere))
        for name, parameter in self._network.named_parameters():
            if name not in used:
                parameter.grad = None  # no process has one: the optimizer has to leave it alone
        self._used.clear()
        self._calls = hashlib.sha256()
        if self._statistics is not None:
            self._statistics.join()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Explains what it means when an operator meets a part of a weight, or a weight that is not there.

        Raises:
            ModelError: A weight was read outside `forward` of the block, or the network, that it belongs to.
        """
        try:
            yield
        except RuntimeError as error:
            if "DTensor" in str(error):
                raise ModelError(
                    f"{_OPTION}: the network reads weights of a block without calling the block "
                    f"({first_line(error)}); leave it out"
                ) from error
            raise

    def saved(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state with whole tensors on the CPU, for rank 0, which saves it; others get empty ones."""
        whole: dict[str, Any] = map_tensors(state, in_full)
        return whole

    def require_finite(self, position: object) -> None:
        """Checks the weights and buffers of the network, in all processes together.

        Raises:
            DivergedError: One is NaN or infinite.
        """
        own = next((name for name, tensor in self._local_tensors() if not bool(tensor.isfinite().all())), None)
        name = next((found for found in ranks.gathered(own) if found is not None), None)
        if name is not None:
            raise DivergedError(not_finite(name, position))

    def _local_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors_of(self._network).items():
            yield name, tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]

    def require_same(self, what: str) -> None:
        """Checks what every process has in full: the buffers."""
        ranks.require_same(what, {name: buffer.detach() for name, buffer in self._network.named_buffers()})

    def end(self) -> None:
        """Puts the network together again, in every process and on the CPU, where it has to fit."""
        done: set[nn.Parameter] = set()
        for place in self._places.values():
            if place.parameter not in done:
                divided = getattr(place.module, place.name)
                place.parameter.data = divided.detach().full_tensor().cpu()
                done.add(place.parameter)
            setattr(place.module, place.name, place.parameter)
        for handle in self._handles:
            handle.remove()
        for module, plain in self._plain.items():
            plain.restore(module)
        sharded_now(self._network, False)
        self._network.cpu()
        self._memory.close()


class _Plain:
    """What a module was before it was divided: its class, and the names of what it held."""

    def __init__(self, module: nn.Module) -> None:
        self._kind, self._names, self._hooks = type(module), set(vars(module)), _hooks(module)
        self._added: set[str] = set()
        self._added_hooks: dict[str, set[int]] = {}

    def note_added(self, module: nn.Module) -> None:
        """Call when it has been divided: what is there now and was not before came from that."""
        self._added = set(vars(module)) - self._names
        self._added_hooks = {name: known - self._hooks[name] for name, known in _hooks(module).items()}

    def restore(self, module: nn.Module) -> None:
        """Takes off what was added; what training has changed stays."""
        module.__class__ = self._kind
        for name in self._added & set(vars(module)):
            delattr(module, name)
        for name, known in _hooks(module).items():
            # Those of state dicts are added in the first forward pass, and by nobody else.
            late = known - self._hooks[name] if "state_dict" in name else set()
            for key in self._added_hooks[name] | late:
                vars(module)[name].pop(key, None)


def _hooks(module: nn.Module) -> dict[str, set[int]]:
    """The keys of a module's hooks, by kind."""
    return {name: set(known) for name, known in vars(module).items() if "_hooks" in name and isinstance(known, Mapping)}


def _whole_again(module: nn.Module, args: Any, output: Any) -> Any:
    """Copies outputs that are views: a change in place would take torch's hooks off them."""
    if any(tensor.requires_grad and tensor._is_view() for tensor in output_tensors(output)):
        return map_tensors(output, lambda tensor: tensor.clone() if tensor._is_view() else tensor)
    return None


def _check(network: nn.Module, device: torch.device) -> None:
    if device.type not in _DEVICES:
        raise RecipeError(f"{_OPTION} is for CPUs and CUDA devices, not for {device.type}; leave it out")
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise RecipeError(f"{_OPTION} needs torch 2.15 or newer, and {torch.__version__} is installed; leave it out")
    for name, parameter in network.named_parameters():
        if parameter.dim() == 0:
            raise RecipeError(f"{_OPTION}: {name} is a single number, which torch does not divide; leave it out")


def _places(network: nn.Module) -> dict[str, _Place]:
    """Where each parameter is; of shared ones, all places."""
    found = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        found[name] = _Place(network.get_submodule(owner), own, parameter)
    return found
