"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the fused operators: the products of the plain formula.

A count belongs to the formula, and not to what a kernel saves of it (half of a symmetric matrix, closed dimensions) or
does twice. As in torch's own counts, only matrix products are, a multiplication and an addition each.
"""

from collections.abc import Callable
from typing import Any

import torch

from mast_ops.ops.collectives import ranks

Shapes = dict[str, Any]
"""Of the arguments of an operator by name: shapes of tensors, None, and constants."""


def _pooled(x: Shapes) -> int:
    """(N, D) times (D, R); where each sample reads a row of its own, nothing is multiplied as a matrix."""
    (n, d), (r, _) = x["z0"], x["masks"]
    return 0 if x["row"] is not None else int(2 * n * d * r)


def _gathered(x: Shapes) -> int:
    n, d = x["z0"]
    return 0 if x["row"] is None else int(2 * n * d * x["num_rows"])


def _scored(x: Shapes) -> int:
    """All anchors with all candidates, under R masks, or under each anchor's own, whose norms are a product too."""
    (n, d), (c, _) = x["z0"], x["z0"] if x["z1"] is None else x["z1"]
    return int(2 * n * c * d * (x["masks"][0] if x["row"] is None else 2))


def _scored_by_ranks(x: Shapes) -> int:
    """As if all ranks had as many samples."""
    return _scored(x) * ranks(True)


def _squared(x: Shapes) -> int:
    (n, d), (k, _) = x["x"], x["squared"]
    return int(2 * n * d * d + 2 * k * d * d)


# Of each operator, and how many products of that size it and its gradient take.
_FORMULAS: dict[str, tuple[Callable[[Shapes], int], int, int]] = {
    "distance": (_pooled, 1, 2),
    "gap_sums": (_gathered, 1, 1),
    "products": (_pooled, 3, 6),
    "contrast": (_scored, 1, 2),
    "contrast_over_ranks": (_scored_by_ranks, 1, 2),
    "contrast_mean": (_scored, 3, 0),  # its gradients are made on the way
    "sigmoid": (_scored, 1, 2),
    "sigmoid_over_ranks": (_scored_by_ranks, 1, 2),
    "sigmoid_mean": (_scored, 3, 0),
    "off_diagonal": (_squared, 1, 2),
    "off_diagonal_over_ranks": (_squared, 1, 2),
}


def count_flops() -> None:
    """Lets torch's counter know the formulas: call it before ``FlopCounterMode()``.

    It happens by itself where the counter was imported before this library. Not otherwise: it imports Triton, which
    takes longer than all of this library does.

    Example:
        >>> import torch
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> from mast_ops import SubspaceNTXentLoss, ops
        >>> ops.count_flops()
        >>> with FlopCounterMode(display=False) as counter:
        ...     loss = SubspaceNTXentLoss(backend="chunked")(*torch.randn(2, 4, 8), masks=torch.ones(3, 8))
        >>> counter.get_total_flops() == 2 * 8 * 8 * 8 * 3
        True
    """
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for operator, (formula, times, back) in _FORMULAS.items():
        for name, factor in ((operator, times), (f"{operator}_backward", back)):
            packet = getattr(torch.ops.mast_ops, name)
            if packet not in flop_registry:
                names = [argument.name for argument in packet.default._schema.arguments]
                register_flop_formula(packet)(_counter(names, formula, factor))


def _counter(names: list[str], formula: Callable[[Shapes], int], factor: int) -> Callable[..., int]:
    def count(*args: Any, out_shape: Any = None) -> int:
        return factor * formula(dict(zip(names, args, strict=True))) if factor else 0

    return count
