"""Widths of a projector, read off its own layers where they leave no doubt."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
_KEEP_WIDTH = (
    nn.Identity, nn.Dropout, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Softplus, nn.Sigmoid, nn.Tanh,
)  # fmt: skip


def infer_width(module: nn.Module, end: Literal["input", "output"]) -> int | None:
    """The number of features that a module takes or gives; None where that is open to doubt.

    Sure are linear and normalisation layers, a plain ``nn.Sequential`` up to the first layer that is sure,
    past layers that keep the width, and a module with one child, which then does the work. Any other module is
    tried out on the meta device.
    """
    if isinstance(module, nn.Linear):
        return (module.in_features if end == "input" else module.out_features) or None  # 0: lazy, not yet known
    if isinstance(module, _NORMS):
        return module.num_features or None
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0] if len(module.normalized_shape) == 1 else None
    children = list(module.children())
    if type(module).forward is nn.Sequential.forward:
        for child in children if end == "input" else reversed(children):
            if not isinstance(child, _KEEP_WIDTH):
                return infer_width(child, end)
        return None
    return infer_width(children[0], end) if len(children) == 1 else _tried_width(module, end)


def _tried_width(module: nn.Module, end: Literal["input", "output"]) -> int | None:
    """What a module of several children, such as timm's ``Mlp``, takes or gives: its layers stand in no known order.

    A copy without storage is run on the width of each of its layers, as (N, D) and as a feature map of either
    layout; the module is sure when it takes one of them alone. Nothing of the module itself changes.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.LayerNorm, *_NORMS))]
    candidates = [width for width in {infer_width(layer, "input") for layer in layers} if width is not None]
    memo: dict[int, Tensor] = {}
    try:
        memo |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
        memo |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
        twin = copy.deepcopy(module, memo).eval()
    except Exception:  # of any kind: the module is the user's
        return None
    taken: set[tuple[int, int]] = set()
    for width in candidates:
        shapes: list[tuple[int, ...]] = [(2, width), (2, width, 2, 2), (2, 2, 2, width)]
        for shape in shapes:
            try:
                with torch.no_grad():
                    out = twin(torch.empty(shape, device="meta"))
            except Exception:
                continue
            if isinstance(out, Tensor) and out.dim() == 2 and len(out) == 2:
                taken.add((width, out.shape[1]))
    if len(taken) != 1:
        return None
    return taken.pop()[0 if end == "input" else 1]
