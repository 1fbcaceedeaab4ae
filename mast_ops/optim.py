"""Parameters of a model in the groups that an optimizer should treat apart."""

from typing import Any

from torch import nn

from mast_ops._checks import check_flag, check_is, check_non_negative, check_positive
from mast_ops.losses._base import SubspaceLoss
from mast_ops.masks import MaskParameterization


def param_groups(
    *modules: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    mask_lr: float | None = None,
    decay_vectors: bool = True,
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: masks, and a loss's learned temperature, without weight decay.

    Weight decay pulls a mask's weights to zero, which is no neutral place: it closes or evens out masks whatever the
    loss says. An optimizer of torch leaves masks out of decay in any group, see
    :class:`mast_ops.masks.MaskParameterization`; here they have a group of their own. Masks are few and shared by all
    samples, so that they may want another learning rate; ten times the model's did worse in `benchmarks/evidence`.

    Args:
        modules: The model, or its parts, and the loss if it learns something; wrapped by DDP, FSDP or
            ``torch.compile`` as well. A parameter that several of them hold counts once, one that is frozen not.
        lr: Learning rate of everything but the masks, > 0.
        weight_decay: Of everything but masks and temperatures, >= 0.
        mask_lr: Learning rate of the masks, > 0; by default ``lr``.
        decay_vectors: Whether parameters of one dimension, biases and normalisation, decay as well. False is usual
            with LARS and for ViTs.

    Returns:
        Dictionaries of ``params``, ``lr``, ``weight_decay`` and ``name``: "model", "vectors" (unless they decay),
        "masks" and "temperature", without those that are empty.

    Raises:
        ValueError: No module, nothing to train, or a rate out of range.
        TypeError: What is no module, no number or no bool in its place.

    Source: ours.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mast_ops import MaskedSubspaceHead, param_groups
        >>> model = nn.Sequential(nn.Linear(4, 8), MaskedSubspaceHead(nn.Linear(8, 8), subspaces=3))
        >>> groups = param_groups(model, lr=1e-3, weight_decay=0.05, mask_lr=1e-2)
        >>> [(g["name"], len(g["params"]), g["lr"], g["weight_decay"]) for g in groups]
        [('model', 4, 0.001, 0.05), ('masks', 1, 0.01, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    if not modules:
        raise ValueError("modules: got none, wanted a model")
    for module in modules:
        check_is("modules", module, nn.Module, "modules of torch.nn")
    lr, weight_decay = check_positive("lr", lr), check_non_negative("weight_decay", weight_decay)
    mask_lr = lr if mask_lr is None else check_positive("mask_lr", mask_lr)
    check_flag("decay_vectors", decay_vectors)
    everything = nn.ModuleList(modules)
    masks = _held_by(everything, MaskParameterization)
    temperatures = _held_by(everything, SubspaceLoss)
    groups: dict[str, list[nn.Parameter]] = {"model": [], "vectors": [], "masks": [], "temperature": []}
    for parameter in everything.parameters():
        if not parameter.requires_grad:
            continue
        if parameter in masks:
            name = "masks"
        elif parameter in temperatures:
            name = "temperature"
        else:
            name = "model" if decay_vectors or parameter.dim() > 1 else "vectors"
        groups[name].append(parameter)
    if not any(groups.values()):
        raise ValueError("modules: got no parameter that asks for a gradient, wanted at least one")
    rates = {"masks": mask_lr}
    return [
        {
            "params": parameters,
            "lr": rates.get(name, lr),
            "weight_decay": weight_decay if name == "model" else 0.0,
            "name": name,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def _held_by(module: nn.Module, kind: type[nn.Module]) -> set[nn.Parameter]:
    return {parameter for part in module.modules() if isinstance(part, kind) for parameter in part.parameters()}
