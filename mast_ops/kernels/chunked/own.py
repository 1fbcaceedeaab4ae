"""All anchors at once where each reads its own of many masks."""

import torch
from torch import Tensor

from mast_ops.kernels.chunked.products import Workspace
from mast_ops.kernels.contract import ContrastGradients
from mast_ops.kernels.eager.contrast import EPS


class Own:
    """Each anchor under a mask of its own: norms of candidates, which differ by anchor, are a second product.

    One pass over all anchors, whatever the number of masks, for twice the arithmetic and more.
    """

    kept = False

    def __init__(self, raw: tuple[Tensor, Tensor], masks: Tensor, row: Tensor, workspace: Workspace) -> None:
        self.raw0, self.raw1 = raw
        self.row, self.workspace = row, workspace
        self.mask = masks.index_select(0, row)
        masked = self.raw0 * self.mask
        norm = masked.square().sum(1).sqrt_()
        self.inverse_norm, self.tiny = norm.clamp_min(EPS).reciprocal_()[:, None], norm < EPS
        self.unit = masked.mul_(self.inverse_norm)
        # What is not finite where the mask is zero is NaN in all cosines of the candidate, by its norm.
        self.left, self.squared_mask, self.squared = self.unit * self.mask, self.mask.square(), self.raw1.square()
        self.g_left, self.g_squared_mask = torch.empty_like(self.left), torch.empty_like(self.left)
        self.g_raw1, self.g_squared = torch.zeros_like(self.raw1), torch.zeros_like(self.raw1)

    @property
    def like(self) -> Tensor:
        return self.unit

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.raw0), len(self.raw1)

    def write(self, tile: Tensor, rows: slice, first: int, scale: float, offset: float = 0.0) -> None:
        cosine, inverse_norm = self._rooms(tile)
        torch.mm(self.squared_mask[rows], self.squared.T, out=inverse_norm)
        inverse_norm.clamp_min_(EPS * EPS).sqrt_().reciprocal_()
        torch.mm(self.left[rows], self.raw1.T, out=cosine).mul_(inverse_norm)
        torch.mul(cosine, scale, out=tile)
        if offset:
            tile.add_(offset)

    def add(self, weight: Tensor, rows: slice, first: int) -> None:
        cosine, inverse_norm = self._rooms(weight)
        weight.mul_(inverse_norm)  # gradient of the products
        torch.mm(weight, self.raw1, out=self.g_left[rows])
        self.g_raw1.addmm_(weight.T, self.left[rows])
        # And of the squared norms, where they were not raised to EPS.
        weight.mul_(cosine.mul_(inverse_norm)).mul_(-0.5).masked_fill_(inverse_norm > 0.999 / EPS, 0)
        torch.mm(weight, self.squared, out=self.g_squared_mask[rows])
        self.g_squared.addmm_(weight.T, self.squared_mask[rows])

    def finish(self, scale: float, total: ContrastGradients) -> None:
        total.inverse_temperature.add_((self.left * self.g_left).sum())
        g_mask = self.g_squared_mask.mul_(self.mask).mul_(2).addcmul_(self.g_left, self.unit)
        g_unit = self.g_left.mul_(self.mask)
        along = (g_unit * self.unit).sum(1).masked_fill_(self.tiny, 0)
        g_unit.addcmul_(self.unit, along[:, None], value=-1).mul_(self.inverse_norm)
        total.masks.index_add_(0, self.row, g_mask.addcmul_(g_unit, self.raw0), alpha=scale)
        total.z0.add_(g_unit.mul_(self.mask), alpha=scale)
        g_raw1 = self.g_raw1.addcmul_(self.g_squared, self.raw1, value=2)
        (total.z0 if total.z1 is None else total.z1).add_(g_raw1, alpha=scale)

    def _rooms(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        return self.workspace.take("cosine", *tile.shape), self.workspace.take("norm", *tile.shape)
