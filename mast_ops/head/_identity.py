"""Whose weights a head holds, where a loader writes them in place and asks nobody."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mast_ops.head._state import decode_beside, difference, encode_state

_WRITTEN = (
    "; a loader has written its weights into this head already, in place. "
    "Load this head's own checkpoint, or make the head anew with those subspaces and settings"
)
_NOT_LOADED = "; nothing was loaded"
_WITH_SUBSPACES = ". Load it into a head with its own subspaces, and take with_subspaces() of that"
_WITH_SETTINGS = ". Give this head's masks those settings first, in the constructor or as attributes"


class Identity:
    """What a head's ``state_dict`` says of it beside tensors, kept as long as the head.

    A state dict shares its memory with the module, and ``torch.distributed.checkpoint`` writes into that memory without
    asking the module. The bytes that were handed out are written with the weights, and so say whose weights they are.
    They are Python's own, under the tensor, so that looking at them is seen by no mode of torch, and costs nothing.
    """

    def __init__(self) -> None:
        self._bytes: bytearray | None = None  # as they are now
        self._said = b""  # as they were handed out

    def hand_out(self, own: Mapping[str, Any]) -> Tensor:
        """The bytes of ``own``; those of another head once its weights have been written into this one."""
        if self._bytes is None:
            self._bytes = bytearray()
        if self._written(own) is None:
            self.restore(own)
        with torch.inference_mode(False):  # it may be written in place later
            return torch.frombuffer(self._bytes, dtype=torch.uint8)

    def check(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Raises a ValueError once another head's weights have been written into this one."""
        if self._bytes is None or self._bytes == self._said:
            return
        own = describe()
        differs = self._written(own)
        if differs is not None:
            raise ValueError(f"state_dict: {differs}{_WRITTEN}")
        self.restore(own)

    def refuse(self, stored: object, own: Mapping[str, Any]) -> None:
        """Raises a ValueError if a state dict, about to be loaded, is another head's."""
        described = decode_beside(stored, own)
        differs = difference(described, own)
        if differs is None:
            return
        if self._written(own) == differs:
            raise ValueError(f"state_dict: {differs}{_WRITTEN}")
        advice = ""
        if tuple(described["subspaces"]) != tuple(own["subspaces"]):
            advice = _WITH_SUBSPACES
        elif described["masks"]["kind"] == own["masks"]["kind"] and differs.startswith("got masks"):
            advice = _WITH_SETTINGS
        raise ValueError(f"state_dict: {differs}{_NOT_LOADED}{advice}")

    def restore(self, own: Mapping[str, Any]) -> None:
        """The head's own weights were loaded: so what was handed out is its own again."""
        if self._bytes is None:
            return
        self._said = encode_state(own)
        if len(self._said) == len(self._bytes):
            self._bytes[:] = self._said
        else:
            self._bytes = bytearray(self._said)

    def _written(self, own: Mapping[str, Any]) -> str | None:
        if self._bytes is None or self._bytes == self._said:
            return None
        return difference(decode_beside(torch.frombuffer(self._bytes, dtype=torch.uint8), own), own)
