"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the fused operators: the products of the plain formula.

A count belongs to the formula, and not to what a kernel saves of it (half of a symmetric matrix, closed dimensions) or
does twice. As in torch's own counts, only matrix products are, a multiplication and an addition each.
"""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
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


_COUNTER = "torch.utils.flop_counter"


def count_flops() -> None:
    """Lets torch's counter know the formulas: now where it was imported, else as soon as it is.

    Not before, since it imports Triton, which takes longer than all of this library does.
    """
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterCounter())


class _AfterCounter(MetaPathFinder):
    """Finds the counter's module once, as it would be found without this, and registers when it has run."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register()

            setattr(spec.loader, "exec_module", run_and_register)  # noqa: B010  # a method, to a type checker
        return spec


def _register() -> None:
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
