"""Regularizers of masks. They add and scale: ``MaskCoverage(0.5) + 0.1 * MaskOverlap()`` is one module."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mast_ops import functional
from mast_ops._checks import check_fraction, check_is, check_non_negative, shown
from mast_ops._dials import Dial
from mast_ops.head import MaskedSubspaceHead
from mast_ops.masks import HardConcreteMasks, MaskParameterization
from mast_ops.output import SubspaceOutput
from mast_ops.schedules import Schedule

Masks = Tensor | SubspaceOutput | MaskParameterization | MaskedSubspaceHead


class MaskRegularizer(nn.Module, ABC):
    """A scalar to be minimised, of (K, D) masks, a head's output, a parameterisation, or a head."""

    @abstractmethod
    def forward(self, masks: Masks) -> Tensor: ...

    def __add__(self, other: "MaskRegularizer") -> "MaskRegularizerSum":
        check_is("other", other, MaskRegularizer, "a regularizer of masks")
        return MaskRegularizerSum([self, other], [1.0, 1.0])

    def __radd__(self, other: int) -> "MaskRegularizer":
        """``sum([...])`` starts from 0."""
        if not isinstance(other, int | float) or other != 0:
            raise TypeError(f"other: got {shown(other)}, wanted a regularizer of masks")
        return self

    def __mul__(self, weight: "float | Schedule") -> "MaskRegularizerSum":
        _check_weight("weight", weight)
        return MaskRegularizerSum([self], [weight])

    __rmul__ = __mul__

    def step(self) -> None:
        """One step of the optimizer was taken: every :class:`mast_ops.Schedule` among the weights goes on."""
        for module in self.modules():
            if isinstance(module, Schedule):
                module.step()


class MaskRegularizerSum(MaskRegularizer):
    """Weighted sum of regularizers; what ``+`` and ``*`` on regularizers give.

    Args:
        regularizers: The summands.
        weights: One weight each, >= 0: a number, or a :class:`mast_ops.Schedule`, which :meth:`step` moves. They may be
            set anew while training, one or all of them.

    Raises:
        ValueError: Another number of weights than of regularizers, none at all, or a negative weight.
        TypeError: A summand that is no regularizer of masks, or a weight that is neither a number nor a schedule.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops import MaskCoverage, MaskOverlap
        >>> regularizer = MaskCoverage(floor=0.5) + 0.1 * MaskOverlap()
        >>> regularizer(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))
        tensor(0.1250)
    """

    def __init__(self, regularizers: Sequence[MaskRegularizer], weights: "Sequence[float | Schedule]") -> None:
        super().__init__()
        for name, value in (("regularizers", regularizers), ("weights", weights)):
            check_is(name, value, list | tuple, "a list")
        if not regularizers:
            raise ValueError("regularizers: got none, wanted at least one")
        if len(regularizers) != len(weights):
            raise ValueError(f"weights: got {len(weights)} for {len(regularizers)} regularizers, wanted one each")
        for regularizer in regularizers:
            check_is("regularizers", regularizer, MaskRegularizer, "regularizers of masks")
        self.regularizers = nn.ModuleList(regularizers)
        self.factors = nn.ModuleList(_as_factor(weight) for weight in weights)

    @property
    def weights(self) -> "_Weights":
        """The weight of each regularizer."""
        return _Weights(self.factors)

    @weights.setter
    def weights(self, weights: "Sequence[float | Schedule]") -> None:
        check_is("weights", weights, Sequence, "a list")
        if len(weights) != len(self.factors):
            raise ValueError(f"weights: got {len(weights)} for {len(self.factors)} regularizers, wanted one each")
        for weight in weights:
            _check_weight("weights", weight)
        for index, weight in enumerate(weights):
            self.weights[index] = weight

    def forward(self, masks: Masks) -> Tensor:
        values = [r(masks) for r in self.regularizers]
        return torch.stack([f().to(x.dtype) * x for f, x in zip(self.factors, values, strict=True)]).sum()


class _Constant(nn.Module):
    """A weight that changes only where it is set."""

    weights = Dial(check_non_negative)
    _weights: Tensor

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weights = weight

    def forward(self) -> Tensor:
        return self._weights

    def extra_repr(self) -> str:
        return f"{self.weights}"


def _as_factor(weight: "float | Schedule") -> nn.Module:
    return weight if isinstance(weight, Schedule) else _Constant(weight)


class _Weights(Sequence["float | Schedule"]):
    """The weights of a sum, each of which may be set; none is added or taken away."""

    def __init__(self, factors: nn.ModuleList) -> None:
        self._factors = factors

    def __len__(self) -> int:
        return len(self._factors)

    def __getitem__(self, index: Any) -> Any:
        return [factor if isinstance(factor, Schedule) else factor.weights for factor in self._factors][index]

    def __setitem__(self, index: int, weight: "float | Schedule") -> None:
        factor = self._factors[index]
        if isinstance(factor, _Constant) and not isinstance(weight, Schedule):
            factor.weights = weight  # no new module: compiled code goes on
        else:
            self._factors[index] = _as_factor(weight)

    def __eq__(self, other: object) -> bool:
        return list(self) == other

    def __repr__(self) -> str:
        return repr(list(self))


class MaskL1(MaskRegularizer):
    """Module of :func:`mast_ops.functional.mask_l1`: mean absolute entry, 0 to the largest entry.

    Counteracts masks that stay open everywhere; shrinks the open entries too.

    Example:
        >>> import torch
        >>> from mast_ops import MaskL1
        >>> MaskL1()(torch.tensor([[1.0, 0.0]]))
        tensor(0.5000)
    """

    def forward(self, masks: Masks) -> Tensor:
        return functional.mask_l1(as_tensor(masks))


class MaskHoyer(MaskRegularizer):
    """Module of :func:`mast_ops.functional.mask_hoyer`: scale-free density, 1/D to 1 (0 for a zero mask).

    Counteracts spread-out masks without shrinking them.

    Example:
        >>> import torch
        >>> from mast_ops import MaskHoyer
        >>> MaskHoyer()(torch.tensor([[3.0, 0.0]]))
        tensor(0.5000)
    """

    def forward(self, masks: Masks) -> Tensor:
        return functional.mask_hoyer(as_tensor(masks))


class MaskExpectedL0(MaskRegularizer):
    """Module of :func:`mast_ops.functional.mask_expected_l0`: expected share of open gates, 0 to 1.

    Counteracts open entries however small, and leaves open ones unshrunk. It reads the gates' probabilities,
    so it takes :class:`mast_ops.HardConcreteMasks` or a head that has them, not a sample of the masks.

    Raises:
        TypeError: On call, with anything else.

    Example:
        >>> from mast_ops import HardConcreteMasks, MaskExpectedL0
        >>> MaskExpectedL0()(HardConcreteMasks(num_subspaces=2, dim=4)) > 0.5
        tensor(True)
    """

    def forward(self, masks: Masks) -> Tensor:
        gates = masks.masks if isinstance(masks, MaskedSubspaceHead) else masks
        if not isinstance(gates, HardConcreteMasks):
            raise TypeError(f"masks: got {type(gates).__name__}, wanted HardConcreteMasks or a head that has them")
        return functional.mask_expected_l0(gates.open_probability())


class MaskCoverage(MaskRegularizer):
    """Module of :func:`mast_ops.functional.mask_coverage`: shortfall of each mask's mean, 0 to ``floor``.

    Counteracts collapse, for masks bounded by 1.

    Args:
        floor: Wanted mean entry of every mask, 0 to 1; it may be set anew while training.

    Raises:
        ValueError: ``floor`` is outside 0..1.
        TypeError: ``floor`` is no number.

    Example:
        >>> import torch
        >>> from mast_ops import MaskCoverage
        >>> MaskCoverage(floor=0.5)(torch.tensor([[0.1, 0.1]]))
        tensor(0.4000)
    """

    floor = Dial(check_fraction)
    _floor: Tensor

    def __init__(self, floor: float = 0.5) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, masks: Masks) -> Tensor:
        return functional.mask_coverage(as_tensor(masks), self._floor)


class MaskOverlap(MaskRegularizer):
    """Module of :func:`mast_ops.functional.mask_overlap`: mean cosine between masks, 0 to 1.

    Counteracts subspaces that are copies of one another.

    Example:
        >>> import torch
        >>> from mast_ops import MaskOverlap
        >>> MaskOverlap()(torch.eye(3))
        tensor(0.)
    """

    def forward(self, masks: Masks) -> Tensor:
        return functional.mask_overlap(as_tensor(masks))


class MaskEntropy(MaskRegularizer):
    """Module of :func:`mast_ops.functional.mask_entropy`: mean binary entropy in bits, 0 to 1.

    Counteracts grey masks, for entries in [0, 1].

    Example:
        >>> import torch
        >>> from mast_ops import MaskEntropy
        >>> MaskEntropy()(torch.full((2, 4), 0.5)).round(decimals=4)
        tensor(1.)
    """

    def forward(self, masks: Masks) -> Tensor:
        return functional.mask_entropy(as_tensor(masks))


def as_tensor(masks: Masks) -> Tensor:
    if isinstance(masks, SubspaceOutput):
        return masks.masks
    if isinstance(masks, MaskedSubspaceHead):
        masks = masks.masks
    if isinstance(masks, MaskParameterization):
        value: Tensor = masks()
        return value
    return masks


def _check_weight(name: str, weight: "float | Schedule") -> None:
    if not isinstance(weight, Schedule):
        check_non_negative(name, weight)
