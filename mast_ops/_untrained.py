"""What no optimizer steps, or no DDP or FSDP averages over ranks, is named: nothing else would tell.

An optimizer that was made before a head wrapped its projector trains the projector and never the masks. Whether masks
have moved says little: they rest at a learning rate of 0, while gradients are accumulated, and in a target that is
averaged. So this asks which optimizers take steps, and what is in them: it looks at no value, and waits for no device.

A DDP averages the gradients of those parameters that it was made of. A head that wraps its projector afterwards trains
on every rank with masks of that rank's own.
"""

import sys
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from mast_ops._checks import warn_user

STEPS = 10
"""Of an optimizer, before something that is in none is named: another optimizer may take its steps less often."""

_hooked: list[object] = []  # at the first module: who only imports us has no hook
_watched: WeakKeyDictionary[nn.Module, "_Watch"] = WeakKeyDictionary()
_averaged: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()  # by which DDP
_looked_at: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()  # after a first backward pass of DDP
_told: WeakSet[nn.Module] = WeakSet()


class _Watch:
    def __init__(self, beside: str, wanted: str) -> None:
        self.beside, self.wanted = f"{beside}.", wanted
        self.held: set[str] = set()
        self.is_in_fsdp = False
        self.steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()


def watch(module: nn.Module, *, beside: str = "", wanted: str) -> None:
    """From now on a parameter of ``module`` that has gradients, and is in no optimizer that takes steps, is named.

    Args:
        module: Its parameters are looked up at every step, until each has been seen in an optimizer.
        beside: A part of it that is not asked for, but says which optimizers count: those that train it. Others, such
            as a probe's, say nothing.
        wanted: What the warning ends with.

    Example:
        >>> import torch, warnings
        >>> layer = torch.nn.Linear(2, 2)
        >>> watch(layer, wanted="one of all")
        >>> optimizer = torch.optim.SGD([layer.weight], lr=0.1)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> with warnings.catch_warnings(record=True) as told:
        ...     for _ in range(STEPS + 1):
        ...         optimizer.step()
        >>> print(told[0].message)
        Linear: got gradients for bias in 10 steps of SGD, and no optimizer with it; wanted one of all
    """
    if torch.compiler.is_compiling():  # a loss that is made where it is called, new in each step
        return
    if not _hooked:
        _hooked.append(register_optimizer_step_post_hook(_look))
    _watched[module] = _Watch(beside, wanted)


def check_averaged(module: nn.Module) -> None:
    """Refuses a module, in its forward, that has parameters whose gradients the DDP around it will not average."""
    if not torch.is_grad_enabled():
        return
    if watched := _watched.get(module):
        watched.is_in_fsdp = _gathers(module.get_submodule(watched.beside.removesuffix(".")))
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if ddp is None or module in (known := _averaged.setdefault(ddp, WeakSet())):
        return
    inside = {id(p) for p in ddp._module_parameters}
    inside |= {id(p) for name, p in ddp.module.named_parameters() if name in ddp.parameters_to_ignore}  # knowingly
    missing = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in inside]
    if missing:
        raise ValueError(
            f"{type(module).__name__}: got {', '.join(missing)}, which the DistributedDataParallel around it does not "
            "know, so that each rank would train its own; wanted DistributedDataParallel(model) made after "
            "MaskedSubspaceHead(projector, views)"
        )
    known.add(module)


def look_after_backward(module: nn.Module, *outputs: Tensor | None) -> None:
    """Names what got no gradient in the first backward pass under a DDP: its own words, in the second step, do not.

    Where DDP looks for what is unused itself, or gradients are accumulated first, there is nothing to say.
    """
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if ddp is None or not torch.is_grad_enabled() or module in (seen := _looked_at.setdefault(ddp, WeakSet())):
        return
    if ddp.find_unused_parameters or ddp.static_graph or not ddp.require_backward_grad_sync:
        return
    inside = {id(p) for p in ddp._module_parameters}

    def look() -> None:
        if module in seen:
            return
        seen.add(module)
        learned = [(name, p) for name, p in module.named_parameters() if id(p) in inside and p.requires_grad]
        missing = [name for name, p in learned if p.grad is None]
        if missing:
            warn_user(
                f"{type(module).__name__}: got no gradient for {', '.join(missing)} in the first backward pass under "
                "DistributedDataParallel, whose next step fails for that; wanted a loss that has a use for them, as "
                "those of mast-ops have for a head's output that is not detached, requires_grad_(False) before "
                "DistributedDataParallel, or its find_unused_parameters=True"
            )

    for output in outputs:
        if output is not None and output.requires_grad:  # whichever has a gradient, at the end of that pass
            output.register_hook(lambda _: Variable._execution_engine.queue_callback(look))  # type: ignore[no-untyped-call]


def warn_alone(loss: nn.Module) -> None:
    """Of a loss that learns on each of several ranks, whose batches it does not share, with no DDP around it."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1) or loss in _told:
        return
    learned = [name for name, p in loss.named_parameters() if p.requires_grad]
    if not learned or not torch.is_grad_enabled():
        return
    if getattr(DistributedDataParallel, "_active_ddp_module", None) is None:
        _told.add(loss)
        warn_user(
            f"{type(loss).__name__}: got {', '.join(learned)} to learn on each of {dist.get_world_size()} ranks, which "
            "would each train its own; wanted gather_distributed=True, or DistributedDataParallel(loss)"
        )


def _gathers(module: nn.Module) -> bool:
    """Whether FSDP has put the module's parameters together for a forward, or will. Under TP they stay shards."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return False
    return any(isinstance(one, fsdp.FSDPModule) for one in module.modules()) or not any(
        map(_is_shard, module.parameters())
    )


def _is_shard(parameter: nn.Parameter) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # which who has no shards need not import
    return module is not None and isinstance(parameter, module.DTensor)


def _look(optimizer: Optimizer, *_: Any) -> None:
    """After a step: closures have then computed what gradients it took."""
    if torch.compiler.is_compiling():  # a step that is compiled whole
        return
    inside: set[int] | None = None
    for module, watched in tuple(_watched.items()):
        parameters = dict(module.named_parameters())
        own = {name: p for name, p in parameters.items() if not name.startswith(watched.beside)}
        waiting = {
            name for name, p in own.items() if name not in watched.held and p.requires_grad and p.grad is not None
        }
        if not waiting:
            continue
        inside = {id(p) for group in optimizer.param_groups for p in group["params"]} if inside is None else inside
        beside = [p for name, p in parameters.items() if name.startswith(watched.beside)]
        whole = sorted(name for name in waiting if not _is_shard(own[name]))
        if whole and watched.is_in_fsdp and beside and all(map(_is_shard, beside)):  # in a step: whole in a forward
            watched.held |= waiting
            warn_user(
                f"{type(module).__name__}: got {', '.join(whole)} whole beside shards of FSDP, so that each rank would "
                "train its own; wanted fully_shard(model) after MaskedSubspaceHead(projector, views)"
            )
        watched.held |= {name for name, p in own.items() if id(p) in inside}
        if watched.held >= own.keys():
            del _watched[module]
            continue
        missing = sorted(waiting - watched.held)
        if not missing or (beside and not any(id(p) in inside for p in beside)):
            continue
        watched.steps[optimizer] = watched.steps.get(optimizer, 0) + 1
        if watched.steps[optimizer] == STEPS:
            watched.held |= waiting
            warn_user(
                f"{type(module).__name__}: got gradients for {', '.join(missing)} in {STEPS} steps of "
                f"{type(optimizer).__name__}, and no optimizer with {'it' if len(missing) == 1 else 'them'}; "
                f"wanted {watched.wanted}"
            )
