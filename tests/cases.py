"""Inputs for every operator of the fused core, shared by the tests that go through all of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._precision import wide
from mast_ops.kernels.eager import contrast as eager_contrast
from mast_ops.kernels.eager import moments as eager_moments
from mast_ops.kernels.eager import pairs as eager_pairs


@dataclass
class Case:
    """An operator and the plain formula of it, with arguments for both."""

    name: str
    operator: Any
    formula: Any
    arguments: tuple[Any, ...]

    def fused(self, *arguments: Any, backend: str = "chunked") -> tuple[Tensor, ...]:
        return as_tuple(self.operator(*arguments, backend=backend))

    def plain(self, *arguments: Any) -> tuple[Tensor, ...]:
        return as_tuple(self.formula(*arguments))

    def leaves(self, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        """The arguments anew, those that are learned asking for a gradient; in float64, or each in its own dtype."""

        def fresh(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if not x.is_floating_point():
                return x
            x = x.detach().clone() if dtype is None else x.detach().to(dtype)
            return x.requires_grad_()

        return tuple(fresh(x) for x in self.arguments)


def as_tuple(out: Any) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, tuple) else (out,)


def mean_of_contrast(*arguments: Any) -> Tensor:
    rows, columns = eager_contrast.contrast(*arguments)
    return (rows.mean() + columns.mean()) / 2 if arguments[-1] else rows.mean()


def scalar_weighted(outputs: tuple[Tensor, ...], seed: int = 7) -> Tensor:
    """A sum with random weights, so that no part of an upstream gradient is like another."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for out in outputs:
        weight = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out.device)
        total = total + (out.double() * weight).sum()
    return total  # type: ignore[return-value]


def make_cases(
    n: int, d: int, k: int, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu", density: float = 1.0
) -> list[Case]:
    """Every operator in every form, on random inputs. ``density``: the share of the masks that is not zero."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype)

    z0, z1, more = normal(n, d), normal(n, d), normal(n + 3, d)
    masks = torch.rand(k, d, generator=g, dtype=torch.float64) + 0.05
    masks = (masks * (torch.rand(k, d, generator=g) < density)).to(device, wide(dtype))
    subspace = torch.randint(k, (n,), generator=g).to(device)
    log_variance = normal(n, d)
    scale = torch.rand(1, d, generator=g, dtype=torch.float64).to(device, wide(dtype))
    inverse_temperature = torch.tensor(5.0, device=device, dtype=wide(dtype))
    sample = torch.arange(n, device=device)
    classes, more_classes = sample % max(n // 2, 1), torch.arange(n + 3, device=device) % max(n // 2, 1)
    cases = []

    def add(name: str, operator: Any, formula: Any, *arguments: Any) -> None:
        cases.append(Case(name, operator, formula, arguments))

    for own, form in ((None, ""), (subspace, " factorised")):
        for variance, of in (((None, None), ""), ((log_variance, scale), " with variance")):
            add(f"distance{form}{of}", ops.distance, eager_pairs.distance, z0, z1, masks, *variance, own)
            add(f"gap_sums{form}{of}", ops.gap_sums, eager_pairs.gap_sums, z0, z1, k, *variance, own)
        add(f"products{form}", ops.products, eager_pairs.products, z0, z1, masks, own)
        for operator, formula in ((ops.contrast, eager_contrast.contrast), (ops.contrast_mean, mean_of_contrast)):
            name, rest = f"{operator.__name__}{form}", (masks, inverse_temperature)
            add(name, operator, formula, z0, z1, *rest, sample, sample, own, False)
            add(f"{name} many positives", operator, formula, z0, more, *rest, classes, more_classes, own, False)
            if n > 1:  # an anchor alone has no positive among the others
                two = torch.arange(n, device=device) // 2 % (n // 2)
                add(f"{name} of itself", operator, formula, z0, None, *rest, two, None, own, False)
            if own is None:
                add(f"{name} both ways", operator, formula, z0, more, *rest, classes, more_classes, None, True)
    wide0, wide1 = z0.to(wide(dtype)), z1.to(wide(dtype))
    add("off_diagonal", ops.off_diagonal, eager_moments.off_diagonal, wide0, None, masks)
    add("off_diagonal crossed", ops.off_diagonal, eager_moments.off_diagonal, wide0, wide1, masks)
    return cases


NAMES = [case.name for case in make_cases(4, 2, 2)]


def make_case(name: str, *shape: int, **options: Any) -> Case:
    return next(case for case in make_cases(*shape, **options) if case.name == name)
