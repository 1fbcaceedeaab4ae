"""Heads' outputs and plain tensors, as the pairs that every loss takes, and who is told of them."""

from typing import Protocol

import torch
from torch import Tensor

from mast_ops._checks import check_alike, check_dense, check_is, check_masks, warn_user
from mast_ops.functional import combine_log_variance
from mast_ops.masks import MaskParameterization
from mast_ops.output import SubspaceOutput, View, Word
from mast_ops.pairs import Pairs, Uncertainty


class Observer(Protocol):
    """Masks that want to know what augmentations explain, or who tells them later."""

    def observe(self, explained: Tensor, weight: Tensor | None = None, *, gathered: bool = False) -> None: ...


def observer_of(out0: View, out1: View) -> MaskParameterization | None:
    """The masks that want to know of training pairs: those of the first view that has masks, in a training step."""
    views = [out for out in (out0, out1) if isinstance(out, SubspaceOutput)]
    return views[0].observer if views and torch.is_grad_enabled() else None


def pairs_of(
    out0: View,
    out1: View,
    *,
    masks: Tensor | None,
    kinds: Tensor | None,
    kind: Tensor | None,
    sample: Tensor | None = None,
) -> Pairs:
    """Heads' outputs and plain tensors alike.

    Masks and kinds are those of the first view that carries them. A view without log-variances beside one that has
    them is a point: the pair's variance is then the other view's alone.
    """
    for name, out in (("out0", out0), ("out1", out1)):
        if isinstance(out, tuple) and not isinstance(out, SubspaceOutput):
            raise TypeError(
                f"{name}: got a plain tuple of {len(out)}, wanted an embedding or a SubspaceOutput: "
                "SubspaceOutput(*fields) makes one, and its chunk() and split() take samples where a slice takes fields"
            )
        if isinstance(out, SubspaceOutput):
            _check_output(name, out)
    views = [out for out in (out0, out1) if isinstance(out, SubspaceOutput)]
    if not views and masks is None:
        raise ValueError("masks: got None with plain tensors, wanted (K, D) masks or a MaskedSubspaceHead's outputs")
    if views and masks is not None:
        raise ValueError("masks: got a tensor beside a head's output, which carries its own; pass one or the other")
    if len(views) == 2:
        check_alike("out1.masks", views[1].masks, "out0.masks", views[0].masks)
        if views[1].masks.requires_grad and not views[0].masks.requires_grad and not torch.compiler.is_compiling():
            warn_user(
                "out0.masks: got masks without a gradient beside those of out1 with one, wanted the prediction first, "
                "as in loss(prediction, target): the masks of out0 count, and those of out1 would not be trained"
            )
    tables = [out.kinds for out in views if out.kinds is not None]
    if kind is not None and kinds is None and not all(out.knows_kinds for out in views):
        raise ValueError(
            "kind: got indices with a head that was told names alone, wanted MaskedSubspaceHead(projector, views), or "
            "its kinds=, the table of which kind is the row"
        )
    if kind is None and tables and not torch.compiler.is_compiling():
        warn_user(
            "kind: got None with a head that knows kinds of pairs, wanted kind=kind, as views(images) gives it: every "
            "pair counts in each mask alone now, whatever differs in it"
        )
    if tables and kinds is not None:
        raise ValueError("kinds: got a table beside a head's output, which carries its own; pass one or the other")
    if len(tables) == 2:
        check_alike("out1.kinds", tables[1], "out0.kinds", tables[0])
    z0, z1 = (out.embedding if isinstance(out, SubspaceOutput) else out for out in (out0, out1))
    return Pairs.of(
        z0,
        z1,
        views[0].masks if masks is None else masks,
        kinds=tables[0] if tables else kinds,
        kind=kind,
        uncertainty=_uncertainty(views),
        sample=sample,
    )


def _check_output(name: str, out: SubspaceOutput) -> None:
    """What is compared or asked before the pairs are checked; anybody can make an output, of anything."""
    check_masks(out.masks, name=f"{name}.masks")
    if out.kinds is not None:
        check_is(f"{name}.kinds", out.kinds, Tensor, "a boolean tensor of shape (S, K)")
        check_dense(f"{name}.kinds", out.kinds)
    if out.observer is not None:
        check_is(f"{name}.observer", out.observer, MaskParameterization, "a head's masks, or None")
    check_is(f"{name}.knows_kinds", out.knows_kinds, bool | Word, "True or False")  # an exported head has words


def _uncertainty(views: list[SubspaceOutput]) -> Uncertainty | None:
    both = []
    for out in views:
        if (out.log_variance is None) != (out.granularity is None):
            missing, given = (
                ("granularity", "log_variance") if out.granularity is None else ("log_variance", "granularity")
            )
            raise ValueError(f"{missing}: got None beside the {given} of an output, wanted both or neither")
        if out.log_variance is not None and out.granularity is not None:
            both.append(Uncertainty(out.log_variance, out.granularity))
    if len(both) < 2:
        return both[0] if both else None
    (log_variance0, granularity), (log_variance1, other) = both
    if granularity != other:
        raise ValueError(f"out1.granularity: got {other!r}, wanted {granularity!r}, that of out0")
    return Uncertainty(combine_log_variance(log_variance0, log_variance1), granularity)
