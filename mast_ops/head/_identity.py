"""Whose weights a head holds, where a loader writes them in place and asks nobody."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mast_ops.head._state import decode_state, difference, encode_state

_WRITTEN = (
    "; a loader has written its weights into this head already, in place. "
    "Load this head's own checkpoint, or make the head anew with those subspaces and settings"
)
_NOT_LOADED = "; nothing was loaded"
_WITH_SUBSPACES = ". Load it into a head with its own subspaces, and take with_subspaces() of that"


class Identity:
    """What a head's ``state_dict`` says of it beside tensors, kept as long as the head.

    A state dict shares its memory with the module, and ``torch.distributed.checkpoint`` writes into that memory without
    asking the module. The bytes that were handed out are written with the weights, and so say whose weights they are.
    """

    def __init__(self) -> None:
        self._handed: Tensor | None = None
        self._version = 0

    def hand_out(self, own: dict[str, Any]) -> Tensor:
        """The bytes of ``own``; those of another head once its weights have been written into this one."""
        fresh = encode_state(own)
        if self._handed is None or (self._written(own) is None and not torch.equal(self._handed, fresh)):
            self._handed, self._version = fresh, fresh._version
        return self._handed

    def check(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Raises a ValueError once another head's weights have been written into this one."""
        if self._handed is None or self._handed._version == self._version:
            return
        differs = self._written(describe())
        if differs is not None:
            raise ValueError(f"state_dict: {differs}{_WRITTEN}")
        self._version = self._handed._version

    def refuse(self, stored: object, own: dict[str, Any]) -> None:
        """Raises a ValueError if a state dict, about to be loaded, is another head's."""
        described = decode_state(stored)
        differs = difference(described, own)
        if differs is None:
            return
        if self._handed is not None and self._written(own) == differs:
            raise ValueError(f"state_dict: {differs}{_WRITTEN}")
        names_differ = tuple(described["subspaces"]) != tuple(own["subspaces"])
        raise ValueError(f"state_dict: {differs}{_NOT_LOADED}{_WITH_SUBSPACES if names_differ else ''}")

    def restore(self, own: dict[str, Any]) -> None:
        """The head's own weights were loaded: so what was handed out is its own again."""
        if self._handed is not None:
            fresh = encode_state(own)
            self._handed = self._handed.copy_(fresh) if fresh.shape == self._handed.shape else None

    def _written(self, own: dict[str, Any]) -> str | None:
        return None if self._handed is None else difference(decode_state(self._handed), own)
