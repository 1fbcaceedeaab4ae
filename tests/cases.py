"""Inputs for every operator of the fused core, shared by the tests that go through all of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mast_ops import ops
from mast_ops._precision import wide
from mast_ops.kernels.eager import contrast as eager_contrast
from mast_ops.kernels.eager import moments as eager_moments
from mast_ops.kernels.eager import pairs as eager_pairs
from mast_ops.kernels.eager import sigmoid as eager_sigmoid
from mast_ops.ops import Contrast, Gap, Table


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
            if not isinstance(x, Tensor) or not x.is_floating_point():
                return x
            x = x.detach().clone() if dtype is None else x.detach().to(dtype)
            return x.requires_grad_()

        return pytree.tree_map(fresh, self.arguments)


def tensors(arguments: Any) -> list[Tensor]:
    """Those inside Gap, Table and Contrast too."""
    return [x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor)]


def learned(arguments: Any) -> list[Tensor]:
    return [x for x in tensors(arguments) if x.requires_grad]


def as_tuple(out: Any) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, tuple) else (out,)


def mean_of_contrast(problem: Contrast) -> Tensor:
    rows, other = eager_contrast.losses(problem)
    return (rows.mean() + other.mean()) / 2 if problem.both_ways else rows.mean()


def mean_of_sigmoid(problem: Contrast, bias: Tensor) -> Tensor:
    return eager_sigmoid.losses(problem, bias).mean()


def energy(x: Tensor, y: Tensor | None, squared: Tensor) -> Tensor:
    return eager_moments.off_diagonal(x, y, squared, None)


def scalar_weighted(outputs: tuple[Tensor, ...], seed: int = 7) -> Tensor:
    """A sum with random weights, so that no part of an upstream gradient is like another."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for out in outputs:
        weight = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out.device)
        total = total + (out.double() * weight).sum()
    return total  # type: ignore[return-value]


LAYOUTS = ("transposed", "strided", "expanded", "offset")


def laid(x: Any, layout: str) -> Any:
    """The same shape and, but for "expanded", the same values, in memory in another way."""
    if not isinstance(x, Tensor) or x.numel() == 0:
        return x
    if layout == "expanded":
        return x[:1].expand_as(x) if x.dim() else x
    if layout == "transposed" and x.dim() == 2:
        return x.T.contiguous().T
    if layout == "offset":
        return torch.cat([x.new_zeros(3).to(x.dtype), x.reshape(-1)])[3:].view(x.shape)
    return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]


def make_cases(
    n: int, d: int, r: int, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu", density: float = 1.0
) -> list[Case]:
    """Every operator in every form, on random inputs. ``density``: the share of the masks that is not zero."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype)

    z0, z1, more = normal(n, d), normal(n, d), normal(n + 3, d)
    masks = torch.rand(r, d, generator=g, dtype=torch.float64) + 0.05
    masks = (masks * (torch.rand(r, d, generator=g) < density)).to(device, wide(dtype))
    row = torch.randint(r, (n,), generator=g).to(device)
    log_variance = normal(n, d)
    scale = torch.rand(1, d, generator=g, dtype=torch.float64).to(device, wide(dtype))
    inverse_temperature = torch.tensor(5.0, device=device, dtype=wide(dtype))
    bias = torch.tensor(-2.0, device=device, dtype=wide(dtype))
    sample = torch.arange(n, device=device)
    classes, more_classes = sample % max(n // 2, 1), torch.arange(n + 3, device=device) % max(n // 2, 1)
    cases = []

    def add(name: str, operator: Any, formula: Any, *arguments: Any) -> None:
        cases.append(Case(name, operator, formula, arguments))

    for own, form in ((None, ""), (row, " of one row")):
        for gap, of in ((Gap(z0, z1), ""), (Gap(z0, z1, log_variance, scale), " with variance")):
            add(f"distance{form}{of}", ops.distance, eager_pairs.distance, gap, Table(masks, own))
            add(f"gap_sums{form}{of}", ops.gap_sums, eager_pairs.gap_sums, gap, r, own)
        add(f"products{form}", ops.products, eager_pairs.products, z0, z1, Table(masks, own))
        for operator, formula in ((ops.contrast, eager_contrast.losses), (ops.contrast_mean, mean_of_contrast)):
            name, rest = f"{operator.__name__}{form}", (masks, inverse_temperature)
            several = Contrast(z0, more, *rest, classes, more_classes, own)
            add(name, operator, formula, Contrast(z0, z1, *rest, sample, sample, own))
            add(f"{name} many positives", operator, formula, several)
            if n > 1:  # an anchor alone has no positive among the others
                two = torch.arange(n, device=device) // 2 % (n // 2)
                add(f"{name} of itself", operator, formula, Contrast(z0, None, *rest, two, None, own))
            if own is None:
                add(f"{name} both ways", operator, formula, several._replace(both_ways=True))
        for operator, formula in ((ops.sigmoid, eager_sigmoid.losses), (ops.sigmoid_mean, mean_of_sigmoid)):
            one = Contrast(z0, more, masks, inverse_temperature, classes, more_classes, own)
            add(f"{operator.__name__}{form}", operator, formula, one, bias)
    wide0, wide1 = z0.to(wide(dtype)), z1.to(wide(dtype))
    add("off_diagonal", ops.off_diagonal, energy, wide0, None, masks)
    add("off_diagonal crossed", ops.off_diagonal, energy, wide0, wide1, masks)
    return cases


NAMES = [case.name for case in make_cases(4, 2, 2)]


def make_case(name: str, *shape: int, **options: Any) -> Case:
    return next(case for case in make_cases(*shape, **options) if case.name == name)
