"""The head that a projector is wrapped in, and what its checkpoint says of it."""

from mast_ops.head.masked_subspace import MaskedSubspaceHead

__all__ = ["MaskedSubspaceHead"]
