"""What a head gives and a loss takes."""

from typing import Any, NamedTuple, Self

from torch import Tensor
from torch.utils import _pytree


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
        def apply(tensor: Tensor) -> Tensor:
            result: Tensor = getattr(tensor, method)(*args, **kwargs)
            return result

        log_variance = None if self.log_variance is None else apply(self.log_variance)
        return type(self)(apply(self.embedding), apply(self.masks), log_variance)


# torch.export names a named tuple in a saved program by this; torch has no public call for it yet.
_pytree._register_namedtuple(SubspaceOutput, serialized_type_name="mast_ops.SubspaceOutput")
