"""The score matrix of one mask, a block of rows at a time: its softmaxes, and their gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops.kernels.chunked.positives import Compared, Listed, Positives
from mast_ops.kernels.chunked.products import Products, Workspace

_CACHED = 1 << 24  # scores of one mask that may be kept from the first pass to the second
_SAFE = 70.0  # up to this inverse temperature exp(score) and its sums stay well inside float32


Some = tuple[Tensor, Tensor | None]
"""Of rows, and of columns if they count."""


class Statistics(NamedTuple):
    losses: Some
    lse: Some


class Form(NamedTuple):
    both_ways: bool
    """Whether the columns' own losses count."""
    symmetric: bool


class Scores:
    """The score matrix of one mask, a block of rows at a time; only the upper blocks where it is symmetric."""

    def __init__(
        self,
        products: Products,
        scale: float,
        positives: Positives,
        form: Form,
        workspace: Workspace,
    ) -> None:
        self.products, self.scale, self.form, self.workspace = products, scale, form, workspace
        self.shape, self.like = products.shape, products.like
        self.rows = positives.blocks
        self.positives = positives
        # Blocks then hold exp(score), and no maximum is needed. The few positives are treated by their scores.
        self.raised = scale <= _SAFE and not self.positives.many
        self.row_count = self.positives.row_count.to(self.like.dtype)
        self.column_count = self.positives.column_count.to(self.like.dtype) if form.both_ways else self.row_count
        self.kept: list[tuple[Tensor, Tensor]] | None = None

    def keep(self) -> None:
        """Let the second pass find the blocks of the first, if they are few enough."""
        if self.products.kept and sum(self._size(rows) for rows in self.rows) <= _CACHED:
            self.kept = []

    def statistics(self) -> Statistics:
        lse = _LogSumExp(self.shape[0], self.like, self.raised)
        column_lse = _LogSumExp(self.shape[1], self.like, self.raised) if self.form.both_ways else None
        positive = self.like.new_zeros(self.shape[0])
        column_positive = self.like.new_zeros(self.shape[1])
        for index, rows in enumerate(self.rows):
            block, at, logits = self._block(index)
            height, width = block.shape
            positive[rows] += at.sums(logits, 0, height)
            if self.form.both_ways:
                column_positive += at.sums(logits, 1, width)
            elif self.form.symmetric:
                positive[rows.stop :] += at.sums(logits, 1, width)[height:]
            block = self._raise(block, index)
            lse.add(rows, block, 1)
            if column_lse is not None:
                column_lse.add(slice(None), block, 0)
            elif self.form.symmetric:
                lse.add(slice(rows.stop, None), block[:, height:], 0)
            if self.kept is not None:
                self.kept.append((block, logits if isinstance(at, Listed) else logits.new_empty(0)))
        positive /= self.row_count
        value = lse.value(positive)
        loss = value - positive
        if column_lse is None:
            return Statistics((loss, None), (value, None))
        column_positive /= self.column_count
        column_value = column_lse.value(column_positive)
        return Statistics((loss, column_value - column_positive), (value, column_value))

    def add_gradients(self, grads: Some, lse: Some) -> None:
        """Of the losses, to the products."""
        row = _Softmax(lse[0], grads[0], self.row_count, self.raised)
        column = row if self.form.symmetric else None
        if lse[1] is not None and grads[1] is not None:
            column = _Softmax(lse[1], grads[1], self.column_count, self.raised)
        for index, rows in enumerate(self.rows):
            first = rows.start if self.form.symmetric else 0
            if self.kept is None:
                block, at, logits = self._block(index)
                block = self._raise(block, index)
            else:
                (block, logits), at = self.kept[index], self.positives.at(index, first)
            weight = self._weight(block, (row, column), rows, first)
            if isinstance(at, Compared):
                share = row.share[rows, None]
                weight.sub_(torch.where(at.same, share if column is None else share + column.share[first:], 0))
            else:
                at_positives = row.at_positives(at.row + rows.start, logits)
                if column is not None:
                    at_positives += column.at_positives(at.column + first, logits)
                weight.index_put_(tuple(at), at_positives)
            self.products.add(weight, rows, first)

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

    def _block(self, index: int) -> tuple[Tensor, Listed | Compared, Tensor]:
        """Logits of a block of rows, where in it the positives are, and theirs."""
        rows = self.rows[index]
        height, first = rows.stop - rows.start, rows.start if self.form.symmetric else 0
        block = self.workspace.take("block", height, self.shape[1] - first)
        self.products.write(block, rows, first, self.scale)
        if self.positives.itself is not None:
            block.scatter_(1, self.positives.itself[rows, None] - first, -torch.inf)
        at = self.positives.at(index, first)
        if self.form.symmetric:  # a score and its mirror image, from two products, may differ in the last digit
            if isinstance(at, Compared):
                square = block[:, :height]
                square.copy_(square.triu().add_(square.triu(1).T))
            else:
                below = at.column < at.row
                i, j = at.row[below], at.column[below]
                block[i, j] = block[j, i]
        return block, at, at.take(block)

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
