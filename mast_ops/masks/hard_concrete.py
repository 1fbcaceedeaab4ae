"""Random gates with exact zeros and ones."""

import torch
from torch import Tensor

from mast_ops._checks import check_number, check_positive, is_traced, listed, shown
from mast_ops._dials import Dial
from mast_ops.masks.parameterization import MaskParameterization


class HardConcreteMasks(MaskParameterization):
    """Hard-concrete gates: entries in [0, 1] with exact zeros and ones; random in training mode.

    A stretched, clipped binary-concrete sample: two forward passes in training see two samples of the masks;
    in ``eval`` the masks are fixed.

    Samples are a function of the weights' bits and of a buffer, the number of draws so far. Both travel in the
    ``state_dict``, so that a resumed run goes on as if unbroken; and ranks that share the weights and draw as often
    have the same gates, under DDP and FSDP alike, however they were seeded. A forward pass that activation
    checkpointing repeats counts as another draw: leave the head out of it.

    Ends: exact 0 and 1 in the forward pass, while :meth:`open_probability` keeps a gradient to the parameter.
    Collapse: under an invariance term alone the gates close; hold them with :class:`mast_ops.MaskCoverage`,
    and pay for open ones with :class:`mast_ops.MaskExpectedL0`.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``, the log-odds of a gate.
        std: Spread of the start.
        temperature: Of the concrete distribution, > 0; 2/3 as in the paper. It may be set anew while training.
        stretch: Interval that samples are stretched to before they are clipped to [0, 1]: (-0.1, 1.1) as in
            the paper. It must reach below 0 and above 1, or no entry could be exactly 0 or 1.

    Raises:
        ValueError: ``temperature`` is not a positive number, or ``stretch`` are not two finite numbers that reach past
            [0, 1].

    Source: Louizos et al. 2018 (arXiv 1712.01312), section 2.2.

    Example:
        >>> import torch
        >>> from mast_ops.masks import HardConcreteMasks
        >>> gates = HardConcreteMasks(num_subspaces=2, dim=4).eval()
        >>> _ = gates.weight.data.copy_(torch.tensor([[-9.0, 0.0, 9.0, 9.0]]))
        >>> gates()[0]
        tensor([0.0000, 0.5000, 1.0000, 1.0000], grad_fn=<SelectBackward0>)
    """

    temperature = Dial(check_positive)
    _temperature: Tensor
    draws: Tensor

    def __init__(
        self,
        num_subspaces: int,
        dim: int,
        *,
        mean: float = 1.0,
        std: float = 0.5,
        temperature: float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
    ) -> None:
        self.temperature = temperature
        self.stretch = stretch
        super().__init__(num_subspaces, dim, mean=mean, std=std)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    @property
    def stretch(self) -> tuple[float, float]:
        """The interval; it may be set anew while training."""
        low, high = (end.item() for end in self._stretch)
        return low, high

    @stretch.setter
    def stretch(self, value: tuple[float, float]) -> None:
        # Tensors on the CPU, for which nothing is compiled again, as those of a Dial.
        low, high = (torch.tensor(end, dtype=torch.float64, device="cpu") for end in _check_stretch(value))
        self._stretch = low, high

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "draws" in self._buffers:  # not yet in the constructor
            self.draws.zero_()

    def forward(self) -> Tensor:
        log_odds: Tensor = self.weight
        if self.training:
            if is_traced():
                raise RuntimeError(
                    "torch.jit.trace: got hard-concrete masks in training mode, whose draws it misses; wanted eval()"
                )
            log_odds = (log_odds + torch.logit(self._uniform())) / self._temperature.to(self.weight.dtype)
        low, high = self._stretch
        masks = (torch.sigmoid(log_odds) * (high - low) + low).clamp(0, 1)
        return masks + 0 * self.weight  # weights that are not finite show

    def settings(self) -> dict[str, float | list[float]]:
        return {"temperature": self.temperature, "stretch": list(self.stretch)}

    def _uniform(self) -> Tensor:
        """Numbers strictly between 0 and 1, (K, D), new ones at every call: a hash, so that it compiles and exports."""
        index = torch.arange(self.weight.numel(), device=self.weight.device)
        seed = self.weight.detach().float().view(torch.int32).sum(dtype=torch.int64)
        bits = _hash(_hash(_hash(seed) + self.draws) + index)
        self.draws += 1
        return ((bits >> 8).to(self.weight.dtype) + 0.5).view_as(self.weight) / (1 << 24)

    def open_probability(self) -> Tensor:
        """Probability that each entry of a sample is not zero, (K, D)."""
        low, high = self._stretch
        edge = self._temperature * torch.log(-low / high)
        return torch.sigmoid(self.weight - edge.to(self.weight.dtype))


def _check_stretch(stretch: tuple[float, float]) -> tuple[float, float]:
    wanted = "wanted an interval that reaches below 0 and above 1"
    ends = listed(stretch)
    if ends is None:
        raise TypeError(f"stretch: got {shown(stretch)}, {wanted}")
    if len(ends) != 2:
        raise ValueError(f"stretch: got {len(ends)} numbers, {wanted}")
    low, high = (check_number("stretch", end) for end in ends)
    if not (low < 0 and high > 1):
        raise ValueError(f"stretch: got {low, high}, {wanted}")
    return low, high


def _hash(x: Tensor) -> Tensor:
    """32 bits to 32 bits in int64, each changed by every one; products stay below 2^63."""
    x = x & 0xFFFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
