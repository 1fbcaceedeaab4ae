"""Masks do not decay, whatever groups a framework makes of a model's parameters.

Weight decay is a choice for a network's weights. Frameworks make groups by a parameter's name or its number of axes,
and put masks among what decays; no name or shape keeps them out of all of them. So a step of an optimizer that would
decay a mask takes it apart from its group for the length of that step. Its groups, state and schedule stay as they are.
"""

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

_APART = "mast_ops: apart for one step"
_hooked: list[object] = []  # at the first module: who only imports us has no hook
_modules: WeakSet[nn.Module] = WeakSet()
_whole: WeakKeyDictionary[Optimizer, list[tuple[dict[str, Any], dict[str, Any]]]] = WeakKeyDictionary()


def keep_from_decay(module: nn.Module) -> None:
    """From now on no step of an optimizer of torch decays a parameter of this module.

    Args:
        module: Its parameters are looked up at every step, so that sharding or replacing them changes nothing.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> keep_from_decay(layer)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5)
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.zeros(1, 2)).sum().backward()  # no gradient for the weight
        >>> optimizer.step()
        >>> bool((layer.weight == before).all()), len(optimizer.param_groups), optimizer.param_groups[0]["weight_decay"]
        (True, 1, 0.5)
    """
    if not _hooked:
        _hooked.append(register_optimizer_step_pre_hook(_take_apart))
        _hooked.append(register_optimizer_step_post_hook(_put_together))
    _modules.add(module)


def _take_apart(optimizer: Optimizer, *_: Any) -> None:
    _put_together(optimizer)  # what a step that failed has left
    kept = {id(parameter) for module in _modules for parameter in module.parameters()}
    before = []
    for group in tuple(optimizer.param_groups):
        if not group.get("weight_decay"):
            continue
        masks = [parameter for parameter in group["params"] if id(parameter) in kept]
        if not masks:
            continue
        before.append((group, {"params": group["params"], "weight_decay": group["weight_decay"]}))
        if len(masks) == len(group["params"]):
            group["weight_decay"] = 0.0
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in kept]
        optimizer.param_groups.append(group | {"params": masks, "weight_decay": 0.0, _APART: True})
    if before:
        if optimizer not in _whole:
            optimizer.register_state_dict_pre_hook(_put_together)
        _whole[optimizer] = before


def _put_together(optimizer: Optimizer, *_: Any) -> None:
    if not _whole.get(optimizer):
        return
    for group, values in _whole[optimizer]:
        group.update(values)
    _whole[optimizer] = []
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if _APART not in group]
