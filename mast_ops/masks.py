"""Parameterisations of K masks over D dimensions. Calling one gives the (K, D) masks."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mast_ops._checks import check_choice, check_positive


class MaskParameterization(nn.Module, ABC):
    """K masks over D dimensions, grown from one free parameter per entry, ``weight`` of shape (K, D).

    ``weight`` stays in float32 when the model around it goes to half precision (``model.bfloat16()``): its steps are
    too small for half a mantissa. Embeddings in half precision take float32 masks.

    Args:
        num_subspaces: K, >= 1.
        dim: D, >= 1.
        mean: Mean of the normal distribution that ``weight`` starts from.
        std: Its standard deviation; > 0, so that no two subspaces start alike.

    Raises:
        ValueError: ``num_subspaces`` or ``dim`` < 1, or ``std`` is not a positive number.
    """

    weight: nn.Parameter

    def __init__(self, num_subspaces: int, dim: int, mean: float, std: float) -> None:
        super().__init__()
        for name, size in (("num_subspaces", num_subspaces), ("dim", dim)):
            if size < 1:
                raise ValueError(f"{name}: got {size}, wanted at least 1")
        check_positive("std", std)
        self.mean, self.std = mean, std
        self.weight = nn.Parameter(torch.empty(num_subspaces, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, self.mean, self.std)

    @property
    def num_subspaces(self) -> int:
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        return self.weight.shape[1]

    @abstractmethod
    def forward(self) -> Tensor:
        """The masks, (K, D), in the dtype of ``weight``."""

    def settings(self) -> dict[str, float | list[float]]:
        """What turns ``weight`` into masks beside the class: a checkpoint carries it."""
        return {}

    def select(self, rows: Sequence[int | None]) -> Self:
        """A copy with these rows of ``weight``, in this order; None is a row that starts anew.

        Raises:
            ValueError: No rows, or one that is not there.
        """
        if not rows:
            raise ValueError("rows: got none, wanted at least one")
        chosen = copy.deepcopy(self)
        weight = torch.empty(len(rows), self.dim, dtype=self.weight.dtype, device=self.weight.device)
        nn.init.normal_(weight, self.mean, self.std)
        for i, row in enumerate(rows):
            if row is None:
                continue
            if not 0 <= row < self.num_subspaces:
                raise ValueError(f"rows: got {row}, wanted 0 to {self.num_subspaces - 1}, or None")
            weight[i] = self.weight.detach()[row]
        chosen.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        return chosen

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(x: Tensor) -> Tensor:
            moved = fn(x)
            return x.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"num_subspaces={self.num_subspaces}, dim={self.dim}"


class SigmoidMasks(MaskParameterization):
    """``sigmoid(weight)``: entries in (0, 1).

    Ends: 0 and 1 are approached, never reached, and gradients fade towards both. Collapse: cannot grow to
    buy a coverage with a few entries, but shrinks under an invariance term alone: add
    :class:`mast_ops.MaskCoverage`.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``; 1 opens masks to about 0.7, above the coverage floor, so that every
            dimension trains.
        std: Spread of the start.

    Example:
        >>> from mast_ops.masks import SigmoidMasks
        >>> masks = SigmoidMasks(num_subspaces=3, dim=8)()
        >>> masks.shape, bool(((masks > 0) & (masks < 1)).all())
        (torch.Size([3, 8]), True)
    """

    def __init__(self, num_subspaces: int, dim: int, mean: float = 1.0, std: float = 0.5) -> None:
        super().__init__(num_subspaces, dim, mean, std)

    def forward(self) -> Tensor:
        return torch.sigmoid(self.weight)


class ReLUMasks(MaskParameterization):
    """``relu(weight)``: entries in [0, inf).

    Ends: exact zeros, from which no gradient leads back; no upper bound. Collapse: yes. Under an invariance
    term the masks shrink, and held up by their mean or their norm they retreat to a few dimensions of large
    value.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``: 0.9, that of Conditional Similarity Networks (arXiv 1603.07810).
        std: Spread of the start: 0.7, likewise; a tenth of the entries start closed for good.

    Example:
        >>> from mast_ops.masks import ReLUMasks
        >>> bool((ReLUMasks(num_subspaces=3, dim=8)() >= 0).all())
        True
    """

    def __init__(self, num_subspaces: int, dim: int, mean: float = 0.9, std: float = 0.7) -> None:
        super().__init__(num_subspaces, dim, mean, std)

    def forward(self) -> Tensor:
        return torch.relu(self.weight)


class SoftplusMasks(MaskParameterization):
    """``softplus(weight)``: entries in (0, inf), a ReLU whose closed entries can open again.

    Ends: 0 is approached, never reached, and the gradient fades towards it; no upper bound. Collapse: yes,
    as for :class:`ReLUMasks`.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``: 0.54 opens masks to about 1.
        std: Spread of the start.

    Example:
        >>> from mast_ops.masks import SoftplusMasks
        >>> bool((SoftplusMasks(num_subspaces=3, dim=8)() > 0).all())
        True
    """

    def __init__(self, num_subspaces: int, dim: int, mean: float = 0.54, std: float = 0.5) -> None:
        super().__init__(num_subspaces, dim, mean, std)

    def forward(self) -> Tensor:
        return F.softplus(self.weight)


class HardConcreteMasks(MaskParameterization):
    """Hard-concrete gates: entries in [0, 1] with exact zeros and ones; random in training mode.

    A stretched, clipped binary-concrete sample: two forward passes in training see two samples of the masks;
    in ``eval`` the masks are fixed.

    Samples are a function of two buffers, a seed (drawn from torch's global generator when the module is made) and the
    number of draws so far. They travel in the ``state_dict``, so that a resumed run goes on as if unbroken, and DDP
    keeps them alike on all ranks. A forward pass that activation checkpointing repeats counts as another draw: leave
    the head out of it.

    Ends: exact 0 and 1 in the forward pass, while :meth:`open_probability` keeps a gradient to the parameter.
    Collapse: under an invariance term alone the gates close; hold them with :class:`mast_ops.MaskCoverage`,
    and pay for open ones with :class:`mast_ops.MaskExpectedL0`.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``, the log-odds of a gate.
        std: Spread of the start.
        temperature: Of the concrete distribution, > 0; 2/3 as in the paper.
        stretch: Interval that samples are stretched to before they are clipped to [0, 1]: (-0.1, 1.1) as in
            the paper. It must reach below 0 and above 1, or no entry could be exactly 0 or 1.

    Raises:
        ValueError: ``temperature`` is not a positive number, or ``stretch`` does not reach past [0, 1].

    Source: Louizos et al. 2018 (arXiv 1712.01312), section 2.2.

    Example:
        >>> import torch
        >>> from mast_ops.masks import HardConcreteMasks
        >>> gates = HardConcreteMasks(num_subspaces=2, dim=4).eval()
        >>> _ = gates.weight.data.copy_(torch.tensor([[-9.0, 0.0, 9.0, 9.0]]))
        >>> gates()[0]
        tensor([0.0000, 0.5000, 1.0000, 1.0000], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        num_subspaces: int,
        dim: int,
        mean: float = 1.0,
        std: float = 0.5,
        temperature: float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
    ) -> None:
        check_positive("temperature", temperature)
        if not (stretch[0] < 0 and stretch[1] > 1):
            raise ValueError(f"stretch: got {stretch}, wanted an interval that reaches below 0 and above 1")
        super().__init__(num_subspaces, dim, mean, std)
        self.temperature, self.stretch = temperature, stretch
        self.seed: Tensor
        self.draws: Tensor
        self.register_buffer("seed", torch.randint(1 << 31, ()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        log_odds: Tensor = self.weight
        if self.training:
            log_odds = (log_odds + torch.logit(self._uniform())) / self.temperature
        low, high = self.stretch
        return (torch.sigmoid(log_odds) * (high - low) + low).clamp(0, 1)

    def settings(self) -> dict[str, float | list[float]]:
        return {"temperature": self.temperature, "stretch": list(self.stretch)}

    def _uniform(self) -> Tensor:
        """Numbers strictly between 0 and 1, (K, D), new ones at every call: a hash, so that it compiles and exports."""
        index = torch.arange(self.weight.numel(), device=self.weight.device)
        bits = _hash(_hash(_hash(self.seed) + self.draws) + index)
        self.draws += 1
        return ((bits >> 8).to(self.weight.dtype) + 0.5).view_as(self.weight) / (1 << 24)

    def open_probability(self) -> Tensor:
        """Probability that each entry of a sample is not zero, (K, D)."""
        low, high = self.stretch
        return torch.sigmoid(self.weight - self.temperature * math.log(-low / high))


class NormalizedMasks(MaskParameterization):
    """``sigmoid(weight - t_k)`` with t_k such that each mask's mean is exactly ``coverage``: entries in (0, 1).

    A soft choice of the best ``coverage`` D dimensions. Ends: as :class:`SigmoidMasks`. Collapse: impossible
    in mass, since the mean is fixed and each entry bounded by 1; what can still happen is that a mask picks
    dimensions that were invariant anyway. Needs no coverage floor.

    The head's default: on the quickstart's five tasks it did better than sigmoid masks with a coverage floor.

    Args:
        num_subspaces: K.
        dim: D.
        coverage: Mean entry of every mask, strictly between 0 and 1. 0.8 leaves a fifth of the dimensions free
            to keep what an augmentation changes, and costs the invariance little.
        mean: Start of ``weight``; only differences within a row matter.
        std: Spread of the start. 4 starts masks nearly binary: every subspace has dimensions that it leaves
            alone from the first step, where a soft start presses on all of them.

    Raises:
        ValueError: ``coverage`` is not strictly between 0 and 1.

    Source: ours.

    Example:
        >>> from mast_ops.masks import NormalizedMasks
        >>> NormalizedMasks(num_subspaces=2, dim=8, coverage=0.25)().mean(dim=1).detach()
        tensor([0.2500, 0.2500])
    """

    _BISECTIONS = 20  # to a millionth of the row's spread; the Newton step squares what is left of the error

    def __init__(
        self, num_subspaces: int, dim: int, coverage: float = 0.8, mean: float = 0.0, std: float = 4.0
    ) -> None:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage: got {coverage}, wanted a number strictly between 0 and 1")
        super().__init__(num_subspaces, dim, mean, std)
        self.coverage = coverage

    def forward(self) -> Tensor:
        threshold = self._threshold()
        masks = torch.sigmoid(self.weight - threshold)
        # One Newton step polishes the threshold, and carries its implicit gradient.
        slope = (masks * (1 - masks)).mean(dim=1, keepdim=True).detach()
        residual = masks.mean(dim=1, keepdim=True) - self.coverage
        return torch.sigmoid(self.weight - threshold - residual / slope.clamp_min(1e-12))

    def settings(self) -> dict[str, float | list[float]]:
        return {"coverage": self.coverage}

    @torch.no_grad()
    def _threshold(self) -> Tensor:
        """The t_k that solves mean_d sigmoid(weight - t_k) = coverage, between the row's extremes' solutions."""
        single = math.log(self.coverage / (1 - self.coverage))
        low = self.weight.amin(dim=1, keepdim=True) - single
        high = self.weight.amax(dim=1, keepdim=True) - single
        for _ in range(self._BISECTIONS):
            middle = (low + high) / 2
            covered = torch.sigmoid(self.weight - middle).mean(dim=1, keepdim=True) >= self.coverage
            low, high = torch.where(covered, middle, low), torch.where(covered, high, middle)
        return (low + high) / 2


MASKS: dict[str, type[MaskParameterization]] = {
    "sigmoid": SigmoidMasks,
    "relu": ReLUMasks,
    "softplus": SoftplusMasks,
    "hard_concrete": HardConcreteMasks,
    "normalized": NormalizedMasks,
}


def make_masks(masks: str | MaskParameterization, num_subspaces: int, dim: int) -> MaskParameterization:
    """A parameterisation by name with its defaults, or a ready one after a check of its shape."""
    if isinstance(masks, MaskParameterization):
        got = (masks.num_subspaces, masks.dim)
        if got != (num_subspaces, dim):
            raise ValueError(f"masks: got (K, D) = {got}, wanted {(num_subspaces, dim)}")
        return masks
    check_choice("masks", masks, tuple(MASKS))
    return MASKS[masks](num_subspaces, dim)  # type: ignore[call-arg]


def describe_masks(masks: MaskParameterization) -> dict[str, Any]:
    """Kind and settings as a checkpoint carries them. The kind of a class of the user's own is its name."""
    kinds = [name for name, kind in MASKS.items() if type(masks) is kind]
    return {"kind": kinds[0] if kinds else type(masks).__qualname__, **masks.settings()}


def masks_from_description(description: Mapping[str, Any], weight: Tensor) -> MaskParameterization | None:
    """What :func:`describe_masks` described, with this ``weight``; None for a class of the user's own."""
    settings = dict(description)
    kind = MASKS.get(settings.pop("kind"))
    if kind is None:
        return None
    if "stretch" in settings:
        settings["stretch"] = tuple(settings["stretch"])
    masks = kind(*weight.shape, **settings)
    masks.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return masks.eval()


def _hash(x: Tensor) -> Tensor:
    """32 bits to 32 bits in int64, each changed by every one; products stay below 2^63."""
    x = x & 0xFFFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
