"""What has gradients and is in no optimizer is named, once: it would never be trained, and nothing else would tell.

An optimizer that was made before a head wrapped its projector trains the projector and never the masks. Whether masks
have moved says little: they rest at a learning rate of 0, while gradients are accumulated, and in a target that is
averaged. So this asks which optimizers take steps, and what is in them: it looks at no value, and waits for no device.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from mast_ops._checks import warn_user

STEPS = 10
"""Of an optimizer, before something that is in none is named: another optimizer may take its steps less often."""

_hooked: list[object] = []  # at the first module: who only imports us has no hook
_watched: WeakKeyDictionary[nn.Module, "_Watch"] = WeakKeyDictionary()


class _Watch:
    def __init__(self, beside: str, wanted: str) -> None:
        self.beside, self.wanted = f"{beside}.", wanted
        self.held: set[str] = set()
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
        watched.held |= {name for name, p in own.items() if id(p) in inside}
        if watched.held >= own.keys():
            del _watched[module]
            continue
        missing = sorted(waiting - watched.held)
        beside = [p for name, p in parameters.items() if name.startswith(watched.beside)]
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
