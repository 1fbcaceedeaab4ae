"""The score matrix of one mask, a block of rows at a time: its softmaxes, and their gradients."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = {"cpu": 1 << 20, "cuda": 1 << 24}  # scores in a block
_CACHED = 1 << 24  # scores of one mask that may be kept from the first pass to the second
_SAFE = 70.0  # up to this inverse temperature exp(score) and its sums stay well inside float32


class Workspace:
    """Memory for blocks of scores that one mask hands to the next: new pages cost as much as filling them."""

    def __init__(self, like: Tensor) -> None:
        self._pool: dict[object, Tensor] = {}
        self._like = like

    def take(self, key: object, *shape: int) -> Tensor:
        """Room of this shape, uninitialised; what was taken under the same key before is gone."""
        size = math.prod(shape)
        if key not in self._pool or self._pool[key].numel() < size:
            self._pool[key] = self._like.new_empty(size)
        return self._pool[key][:size].view(shape)


Some = tuple[Tensor, Tensor | None]
"""Of rows, and of columns if they count."""


class Statistics(NamedTuple):
    losses: Some
    lse: Some


class Form(NamedTuple):
    itself: Tensor | None
    """Where each row has itself among the columns, a score that does not count."""
    both_ways: bool
    """Whether the columns' own losses count."""
    symmetric: bool


class Scores:
    """The score matrix of one mask, a block of rows at a time; only the upper blocks where it is symmetric."""

    def __init__(
        self,
        sides: tuple[Tensor, Tensor],
        scale: float,
        pairs: tuple[Tensor, Tensor],
        form: Form,
        workspace: Workspace,
    ) -> None:
        self.anchors, self.candidates = anchors, candidates = sides
        self.scale, self.form, self.workspace = scale, form, workspace
        self.shape: tuple[int, int] = len(anchors), len(candidates)
        self.raised = scale <= _SAFE  # blocks then hold exp(score), and no maximum is needed
        self.row_count, self.column_count = (
            index.bincount(minlength=size).to(anchors.dtype) for index, size in zip(pairs, self.shape, strict=True)
        )
        height = min(max(BLOCK.get(anchors.device.type, BLOCK["cuda"]) // self.shape[1], 16), self.shape[0])
        self.rows = [slice(row, min(row + height, self.shape[0])) for row in range(0, self.shape[0], height)]
        bounds = torch.searchsorted(pairs[0], torch.tensor([r.start for r in self.rows[1:]], device=pairs[0].device))
        splits = [index.tensor_split(bounds.cpu()) for index in pairs]
        self.pairs = list(zip(*splits, strict=True))
        self.kept: list[tuple[Tensor, Tensor]] | None = None

    def keep(self) -> None:
        """Let the second pass find the blocks of the first, if they are few enough."""
        if sum(self._size(rows) for rows in self.rows) <= _CACHED:
            self.kept = []

    def statistics(self) -> Statistics:
        lse = _LogSumExp(self.shape[0], self.anchors, self.raised)
        column_lse = _LogSumExp(self.shape[1], self.anchors, self.raised) if self.form.both_ways else None
        positive = self.anchors.new_zeros(self.shape[0])
        column_positive = self.anchors.new_zeros(self.shape[1])
        for index, rows in enumerate(self.rows):
            block, i, j, logits = self._block(index)
            positive.index_add_(0, i + rows.start, logits)
            block = self._raise(block, index)
            lse.add(rows, block, 1)
            if column_lse is not None:
                column_positive.index_add_(0, j, logits)
                column_lse.add(slice(None), block, 0)
            elif self.form.symmetric:
                below = j >= rows.stop - rows.start
                positive.index_add_(0, j[below] + rows.start, logits[below])
                lse.add(slice(rows.stop, None), block[:, rows.stop - rows.start :], 0)
            if self.kept is not None:
                self.kept.append((block, logits))
        positive /= self.row_count
        value = lse.value(positive)
        loss = value - positive
        if column_lse is None:
            return Statistics((loss, None), (value, None))
        column_positive /= self.column_count
        column_value = column_lse.value(column_positive)
        return Statistics((loss, column_value - column_positive), (value, column_value))

    def gradients(self, grads: Some, lse: Some) -> tuple[Tensor, Tensor]:
        """Gradients of the packed anchors and candidates before the temperature; one tensor where symmetric."""
        g_candidates = torch.zeros_like(self.candidates)
        g_anchors = g_candidates if self.form.symmetric else torch.empty_like(self.anchors)
        row = _Softmax(lse[0], grads[0], self.row_count, self.raised)
        column = row if self.form.symmetric else None
        if lse[1] is not None and grads[1] is not None:
            column = _Softmax(lse[1], grads[1], self.column_count, self.raised)
        for index, rows in enumerate(self.rows):
            first = rows.start if self.form.symmetric else 0
            if self.kept is None:
                block, i, j, logits = self._block(index)
                block = self._raise(block, index)
            else:
                (block, logits), (i, j) = self.kept[index], self._local(index)
            weight = self._weight(block, (row, column), rows, first)
            at_positives = row.at_positives(i + rows.start, logits)
            if column is not None:
                at_positives += column.at_positives(j + first, logits)
            weight.index_put_((i, j), at_positives)
            g_anchors[rows].addmm_(weight, self.candidates[first:], beta=1 if self.form.symmetric else 0)
            past = rows.stop if self.form.symmetric else 0
            g_candidates[past:].addmm_(weight[:, past - first :].T, self.anchors[rows])
        return g_anchors, g_candidates

    def _weight(
        self, block: Tensor, softmaxes: tuple["_Softmax", "_Softmax | None"], rows: slice, first: int
    ) -> Tensor:
        """Gradient of the losses by the scores, but for the positives. May overwrite the block."""
        row, column = softmaxes
        room = self.workspace.take("weight", *block.shape)
        if self.raised:
            if column is None:
                return torch.mul(block, row.factor[rows, None], out=room)
            return torch.add(row.factor[rows, None], column.factor[first:], out=room).mul_(block)
        weight = torch.sub(block, row.lse[rows, None], out=room)
        weight.exp_().mul_(row.gradient[rows, None])
        if column is None:
            return weight
        return weight.addcmul_(block.sub_(column.lse[first:]).exp_(), column.gradient[first:])

    def _size(self, rows: slice) -> int:
        height: int = rows.stop - rows.start
        return height * (self.shape[1] - (rows.start if self.form.symmetric else 0))

    def _block(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of a block of rows, where in it the positives are, and theirs."""
        rows = self.rows[index]
        first = rows.start if self.form.symmetric else 0
        shape = rows.stop - rows.start, self.shape[1] - first
        block = self.workspace.take("block", *shape)
        block.addmm_(self.anchors[rows], self.candidates[first:].T, beta=0, alpha=self.scale)
        if self.form.itself is not None:
            block.scatter_(1, self.form.itself[rows, None] - first, -torch.inf)
        i, j = self._local(index)
        if self.form.symmetric:  # a score and its mirror image, from two products, may differ in the last digit
            below = j < i
            block[i[below], j[below]] = block[j[below], i[below]]
        return block, i, j, block[i, j]

    def _local(self, index: int) -> tuple[Tensor, Tensor]:
        i, j = self.pairs[index]
        if self.form.symmetric:  # the others stand in an earlier block, mirrored
            upper = j >= self.rows[index].start
            i, j = i[upper], j[upper] - self.rows[index].start
        return i - self.rows[index].start, j

    def _raise(self, block: Tensor, index: int) -> Tensor:
        """The block as it is used, where it stays: the product itself never writes to memory that is not in a cache."""
        if self.kept is None:
            return block.exp_() if self.raised else block
        place = self.workspace.take(index, *block.shape)
        return torch.exp(block, out=place) if self.raised else place.copy_(block)


class _LogSumExp:
    """Running logsumexp of many rows, of blocks of scores, or of blocks of exp(score)."""

    def __init__(self, size: int, like: Tensor, raised: bool) -> None:
        self.raised = raised
        self.sum = like.new_zeros(size)
        self.top = like.new_zeros(size) if raised else like.new_full((size,), torch.finfo(like.dtype).min)

    def add(self, where: slice, block: Tensor, dim: int) -> None:
        if block.numel() == 0:
            return
        if self.raised:
            self.sum[where] += block.sum(dim)
            return
        top = torch.maximum(self.top[where], block.amax(dim))
        new = (block - top.unsqueeze(dim)).exp_().sum(dim)
        self.sum[where] = self.sum[where] * (self.top[where] - top).exp_() + new
        self.top[where] = top

    def value(self, positive: Tensor) -> Tensor:
        """``positive``: mean score of each row's positives."""
        value = self.top + self.sum.log()
        if not self.raised:
            return value
        # Where one score is all of the sum, this is that score, to the last digit: the logarithm of a large number
        # is not, and a gradient that is the difference of two numbers alike would be left with the rounding.
        shift = torch.fmax(positive, value - 40).clamp_min(-_SAFE)
        return shift + (self.sum * (-shift).exp_()).log_()


class _Softmax:
    """What turns scores, or exp(scores), into the gradient of the losses of one direction."""

    def __init__(self, lse: Tensor, gradient: Tensor, count: Tensor, raised: bool) -> None:
        self.lse, self.gradient = lse, gradient
        self.factor = gradient * (-lse).exp_() if raised else gradient
        self.share = gradient / count

    def at_positives(self, index: Tensor, logits: Tensor) -> Tensor:
        """Gradient of the losses of these rows by a positive's score each, of which ``logits`` are those."""
        return (logits - self.lse[index]).exp_().mul_(self.gradient[index]).sub_(self.share[index])
