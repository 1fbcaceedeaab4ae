"""How a tile of cosines is made, and what the gradient of a tile means for what made it."""

import math
from typing import Protocol

import torch
from torch import Tensor

from mast_ops.kernels.contract import ContrastGradients

BLOCK = {"cpu": 1 << 20, "cuda": 1 << 24}  # scores in a tile


class Workspace:
    """Memory for tiles that one mask hands to the next: new pages cost as much as filling them."""

    def __init__(self, like: Tensor) -> None:
        self._pool: dict[object, Tensor] = {}
        self._like = like

    def take(self, key: object, *shape: int) -> Tensor:
        """Room of this shape, uninitialised; what was taken under the same key before is gone."""
        size = math.prod(shape)
        if key not in self._pool or self._pool[key].numel() < size:
            self._pool[key] = self._like.new_empty(size)
        return self._pool[key][:size].view(shape)


def blocks(shape: tuple[int, int], device: torch.device) -> list[slice]:
    """Rows of each tile."""
    rows, columns = shape
    height = min(max(BLOCK.get(device.type, BLOCK["cuda"]) // columns, 16), rows)
    return [slice(row, min(row + height, rows)) for row in range(0, rows, height)]


class Products(Protocol):
    """Cosines of anchors with candidates."""

    kept: bool
    """Whether a tile may be put aside: :meth:`add` then does not look back at :meth:`write`."""

    @property
    def like(self) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def write(self, tile: Tensor, rows: slice, first: int, scale: float, offset: float = 0.0) -> None:
        """``scale cosine + offset`` of a block of anchors and the candidates from ``first`` on."""

    def add(self, weight: Tensor, rows: slice, first: int) -> None:
        """The gradient of such a tile, before the scale; the last that was written, unless ``kept``. Overwrites it."""

    def finish(self, scale: float, total: ContrastGradients) -> None:
        """Add what all of them mean for the embeddings, the masks and the temperature."""
