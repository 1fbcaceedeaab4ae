"""What a head gives and a loss takes."""

from typing import Any, NamedTuple

from torch import Tensor
from typing_extensions import Self


class SubspaceOutput(NamedTuple):
    """An embedding with the masks of its subspaces and, when asked of the head, predicted log-variances.

    A named tuple, so that it unpacks, and so that DDP, ``torch.compile`` and ``torch.export`` see its
    tensors.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceOutput
        >>> embedding, masks, log_variance = SubspaceOutput(torch.zeros(2, 3), torch.ones(4, 3))
        >>> log_variance is None
        True
    """

    embedding: Tensor
    """(N, D)."""
    masks: Tensor
    """(K, D)."""
    log_variance: Tensor | None = None
    """Natural log of each embedding's variance: (N, 1) per sample, (N, K) per subspace, (N, D) per dimension."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """``Tensor.to`` on every tensor."""
        return self._map("to", *args, **kwargs)

    def detach(self) -> Self:
        """``Tensor.detach`` on every tensor: the stop-gradient of BYOL's and SimSiam's target."""
        return self._map("detach")

    def _map(self, method: str, *args: Any, **kwargs: Any) -> Self:
        return type(self)(*(None if t is None else getattr(t, method)(*args, **kwargs) for t in self))
