"""The head: any projector, K masks over its output, and optionally a predictor of uncertainty."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn, Self

import torch
from torch import Tensor, nn

from mast_ops._checks import (
    check_choice,
    check_count,
    check_embedding,
    check_is,
    check_masks,
    check_values,
    is_traced,
    refuse_script,
    shown,
    traced_quietly,
)
from mast_ops._untrained import check_averaged, look_after_backward, watch
from mast_ops.head._identity import Identity
from mast_ops.head._names import index_of, indices_of, subspace_names
from mast_ops.head._predictor import Predictor
from mast_ops.head._widths import infer_width
from mast_ops.kinds import check_kinds, refilled
from mast_ops.masks import MaskParameterization, describe_masks, make_masks
from mast_ops.output import SubspaceOutput, TracedOutput, Word
from mast_ops.pairs import GRANULARITIES, Granularity
from mast_ops.views import FactorizedViews

# Under Dynamo of torch 2.11 is_exporting() holds in torch.compile too, which cannot trace the making of a Word.
_MAY_SAY_EXPORTING = torch.__version__ < "2.13"  # a TorchVersion: compared by number


class MaskedSubspaceHead(nn.Module):
    """A projector with K learnable masks over its D output dimensions, one per augmentation.

    Works under DDP, FSDP, ``torch.compile``, ``torch.export`` (strict: from torch 2.13 on), ONNX (by ``dynamo=True``,
    and without allocated masks, whose sort it does not have), autocast and ``copy.deepcopy`` (BYOL's target); under
    ``torch.jit.trace`` too, whose output is a plain tuple of the tensors alone. The ``state_dict`` carries the names of
    the subspaces and what turns weights into masks, and a head that differs in them refuses it before anything is
    loaded; :meth:`with_subspaces` goes from one set of subspaces to another. Where ``torch.distributed.checkpoint``
    writes weights in place, ``forward`` refuses those of another head; compiled code does not look, but ``train()``,
    ``eval()`` and ``load_state_dict`` do.

    Args:
        projector: Maps backbone features to an (N, D) embedding.
        subspaces: The :class:`mast_ops.FactorizedViews` that make the pairs: their augmentations are the subspaces, and
            their kinds the kinds. Or the names of the subspaces in the order of their indices ("crop", "color", ...),
            or their number K, for the names "0", "1", ...
        kinds: (S, K) bool, which augmentations differ in pairs of each kind; goes with names or a number. Default: not
            known, so that a loss refuses ``kind``, the row of a table that nobody told; pass the views themselves, or
            ``torch.eye(K, dtype=torch.bool)`` for one at a time. A loss reads it in the output. No weight depends on
            it: a checkpoint goes on with other pairs.
        masks: How masks are parameterised: ``"binary"`` (default: exact zeros and ones of fixed coverage, so that it
            cannot collapse and needs no regularizer), ``"normalized"`` (the same, soft), ``"sigmoid"``, ``"relu"``,
            ``"softplus"``, ``"hard_concrete"``, ``"allocated"`` (by what augmentations explain, with no gradient), or a
            :class:`mast_ops.masks.MaskParameterization` of your own.
        uncertainty: What gets a predicted variance: None (default), every ``"sample"``, every ``"subspace"``
            of a sample, or every ``"dimension"`` of a sample. A hidden layer of 128 units on the projector's input and
            a linear one predict it, without training what is under them; it starts at variance 1, that of a
            standardised dimension.
        input_dim: Width of the projector's input; read off its layers by default. Needed for ``uncertainty``
            alone.
        output_dim: D; read off the projector's layers by default.

    Raises:
        ValueError: No or repeated names, a width that the projector's layers leave open (pass the argument
            that the message names), masks of another shape.
        TypeError: Names that are not strings, or a bare string for ``subspaces``; a head as projector.

    Shape:
        - Input: whatever the projector takes; (N, input_dim) with ``uncertainty``.
        - Output: :class:`mast_ops.SubspaceOutput` of the embedding (N, D), masks (K, D), log-variances: None,
          (N, 1), (N, K) or (N, D), in (-8, 8), float32 under autocast, with their granularity; and kinds: (S, K), or
          None for one at a time. With masks that are allocated, in training mode, the masks' module too: losses tell it
          of their pairs.

    Source: the paper's abstract (arXiv 2303.03679) for learnable masks on one feature space and for
    uncertainty; parameterisations and predictor are ours.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mast_ops import MaskedSubspaceHead
        >>> projector = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 128))
        >>> head = MaskedSubspaceHead(projector, subspaces=["crop", "color"], uncertainty="subspace")
        >>> out = head(torch.randn(8, 512))
        >>> out.embedding.shape, out.masks.shape, out.log_variance.shape
        (torch.Size([8, 128]), torch.Size([2, 128]), torch.Size([8, 2]))
        >>> head.features(out, free_of="color").shape
        torch.Size([8, 128])
    """

    def __init__(
        self,
        projector: nn.Module,
        subspaces: int | Sequence[str] | FactorizedViews,
        *,
        kinds: Tensor | None = None,
        masks: str | MaskParameterization = "binary",
        uncertainty: Granularity | None = None,
        input_dim: int | None = None,
        output_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_is("projector", projector, nn.Module, "a module of torch.nn")
        if isinstance(projector, MaskedSubspaceHead):
            raise TypeError(
                "projector: got a MaskedSubspaceHead, wanted a module that gives a tensor, as its .projector; "
                "for other augmentations take its with_subspaces()"
            )
        if isinstance(subspaces, FactorizedViews):
            if kinds is not None:
                raise ValueError("kinds: got a table beside views, which have their own; pass one or the other")
            kinds, subspaces = subspaces.kinds, subspaces.augmentations
        self.subspaces = subspace_names(subspaces)
        if uncertainty is not None:
            check_choice("uncertainty", uncertainty, GRANULARITIES)
        if kinds is not None:
            check_kinds(kinds, len(self.subspaces))
            check_values("kinds", kinds)
        if input_dim is not None:
            check_count("input_dim", input_dim)
        dim = _width("output", output_dim, projector)
        wide = None if uncertainty is None else _width("input", input_dim, projector)
        self.projector = projector
        self.masks = make_masks(masks, len(self.subspaces), dim)
        self._set_kinds(kinds)
        self.granularity = uncertainty
        self.uncertainty: Predictor | None = None
        if uncertainty is not None and wide is not None:
            widths = {"sample": 1, "subspace": len(self.subspaces), "dimension": dim}
            self.uncertainty = Predictor(wide, widths[uncertainty])
        self._identity = Identity()
        self.register_load_state_dict_pre_hook(_before_loading)  # type: ignore[no-untyped-call]
        self._watch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._watch()  # a copy, or one from a file

    def _watch(self) -> None:
        watch(
            self,
            beside="projector",
            wanted="an optimizer made after MaskedSubspaceHead(projector, views), of the head's parameters; for what "
            "should stay as it is, requires_grad_(False)",
        )

    def forward(self, h: Tensor) -> SubspaceOutput:
        with traced_quietly():
            out = self._output(h)
        if is_traced():
            if out.kinds is not None:  # a constant; ONNX's tracer takes nothing that depends on no input or weight
                out = out._replace(kinds=out.kinds | torch.zeros_like(out.masks[0, :1], dtype=torch.bool))
            return TracedOutput(out)
        return out

    __prepare_scriptable__ = refuse_script

    def _output(self, h: Tensor) -> SubspaceOutput:
        if not torch.compiler.is_compiling():
            if isinstance(h, torch.fx.Proxy):
                raise TypeError(
                    "h: got a Proxy of torch.fx, wanted a tensor: a head works under torch.export.export and "
                    "torch.jit.trace, and SubspaceFeatures under torch.fx.symbolic_trace as well"
                )
            self._identity.check(self._describe)
            check_averaged(self)
        if self.uncertainty is not None:
            check_embedding("h", h)
            if h.shape[1] != self.uncertainty.in_features:
                raise ValueError(f"h: got shape {tuple(h.shape)}, wanted (N, {self.uncertainty.in_features})")
        embedding = self.projector(h)
        check_embedding("projector's output", embedding)
        if embedding.shape[1] != self.masks.dim:
            raise ValueError(
                f"output_dim: got {self.masks.dim}, wanted {embedding.shape[1]}, the width of what the projector gives"
            )
        granularity: Any = self.granularity
        told: Any = self._knows_kinds
        observer = self.masks if self.masks.observes and self.training else None
        if torch.compiler.is_exporting() and not (_MAY_SAY_EXPORTING and torch.compiler.is_dynamo_compiling()):
            granularity, observer = None if granularity is None else Word(granularity), None
            told = Word("told" if told else "")  # true or false as well, where ONNX has no output for a flag
        log_variance = None if self.uncertainty is None else self.uncertainty(h)
        masks = self.masks()
        if not torch.compiler.is_compiling():
            look_after_backward(self, embedding, masks, log_variance)
        return SubspaceOutput(embedding, masks, log_variance, self._table, granularity, observer, told)

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError(
            "DataParallel: got a MaskedSubspaceHead on several devices, whose masks it would put together as if they "
            "were samples; wanted DistributedDataParallel, or DataParallel of the backbone alone"
        )

    @property
    def kinds(self) -> Tensor:
        """(S, K) bool: which augmentations differ in pairs of each kind; one at a time where none were told."""
        one_at_a_time = torch.eye(len(self.subspaces), dtype=torch.bool, device=self.masks.weight.device)
        return one_at_a_time if self._table is None else self._table

    def _set_kinds(self, kinds: Tensor | None) -> None:
        count, self._knows_kinds = len(self.subspaces), kinds is not None
        if kinds is not None:
            check_kinds(kinds, count)
            if torch.equal(kinds.cpu(), torch.eye(count, dtype=torch.bool, device="cpu")):
                kinds = None  # no product of masks is then asked for
        self._rows: list[list[bool]] | None = None if kinds is None else kinds.tolist()
        self._table: Tensor | None
        table = None if kinds is None else kinds.detach().to(self.masks.weight.device, copy=True)
        self.register_buffer("_table", table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._table = refilled(self._table, self._rows)
        return self

    def subspace_index(self, subspace: str | int) -> int:
        """Index of a subspace, by name or by index.

        Raises:
            ValueError: There is no such subspace.
            TypeError: ``subspace`` is neither a name nor a whole number.
        """
        return index_of("subspace", subspace, self.subspaces)

    def features(
        self,
        embedding: Tensor | SubspaceOutput,
        *,
        keeping: str | int | Sequence[str | int] = (),
        free_of: str | int | Sequence[str | int] = (),
    ) -> Tensor:
        """The embedding, (N, D), weighed for use after training; :class:`mast_ops.SubspaceFeatures` is a module of it.

        Args:
            embedding: (N, D), or what this head gave.
            keeping: Name or index of a subspace, or several, whose augmentation's effect the features keep: they are
                what its mask closes, ``1 - m / max(m)``.
            free_of: The same of augmentations that should not show: what the mask opens, ``m``. There views that differ
                in this augmentation were made to agree.

        Weights of several names are multiplied, and those of the two arguments.

        Raises:
            ValueError: There is no such subspace, none is named, or one twice; or the embedding is not (N, D).
            TypeError: What is no name or number.
        """
        if isinstance(embedding, SubspaceOutput):
            masks, values = embedding.masks, embedding.embedding
        else:
            with traced_quietly():
                check_embedding("embedding", embedding)
                if embedding.shape[1] != self.masks.dim:
                    raise ValueError(f"embedding: got shape {tuple(embedding.shape)}, wanted (N, {self.masks.dim})")
            masks, values = self.masks(), embedding
            if embedding.device != masks.device:
                raise ValueError(f"embedding: got device {embedding.device}, wanted {masks.device}, that of the masks")
        return values * self.features_weight(masks, keeping=keeping, free_of=free_of)

    def features_weight(
        self,
        masks: Tensor,
        *,
        keeping: str | int | Sequence[str | int] = (),
        free_of: str | int | Sequence[str | int] = (),
    ) -> Tensor:
        """What :meth:`features` weighs dimensions by, (D,), of masks (K, D)."""
        with traced_quietly():
            check_masks(masks)
            if masks.shape[0] != len(self.subspaces):
                raise ValueError(f"masks: got {len(masks)} rows, wanted {len(self.subspaces)}, one for each subspace")
        given = {"keeping": keeping, "free_of": free_of}
        rows = {argument: indices_of(argument, names, self.subspaces) for argument, names in given.items()}
        named = [row for indices in rows.values() for row in indices]
        if not named:
            raise ValueError("keeping, free_of: got no subspace, wanted one at least")
        if len(set(named)) < len(named):
            raise ValueError(f"keeping, free_of: got {keeping!r} and {free_of!r}, wanted each subspace once")
        weight = torch.ones_like(masks[0])
        for row in rows["free_of"]:
            weight = weight * masks[row]
        for row in rows["keeping"]:
            largest = masks[row].amax().clamp(min=torch.finfo(masks.dtype).tiny)
            weight = weight * (1 - masks[row] / largest)
        return weight

    def with_subspaces(
        self, subspaces: Sequence[str], *, new: Sequence[str] = (), kinds: Tensor | None = None
    ) -> "MaskedSubspaceHead":
        """A copy of this head with another set of subspaces, by name: for fine-tuning on other augmentations.

        Masks, and predicted uncertainty per subspace, go with their names; the projector is copied too.

        Args:
            subspaces: The names of the new head's subspaces, in order.
            new: Those of them that this head does not have, which start as in a fresh head. Named again, so that a
                misspelled name is not a new subspace.
            kinds: (S, K) bool of the new head, as in the constructor: not known by default.

        Raises:
            ValueError, TypeError: No or repeated names, a name that is neither here nor in ``new``, or one in both; or
                ``kinds`` of another shape or type.

        Example:
            >>> from torch import nn
            >>> from mast_ops import MaskedSubspaceHead
            >>> head = MaskedSubspaceHead(nn.Linear(4, 8), subspaces=["crop", "color", "blur"])
            >>> fewer = head.with_subspaces(["color", "crop"])
            >>> bool((fewer.masks()[0] == head.masks()[1]).all())
            True
            >>> head.with_subspaces(["crop", "noise"], new=["noise"]).subspaces
            ('crop', 'noise')
        """
        names = subspace_names(subspaces)
        if isinstance(new, str) or not isinstance(new, Iterable):
            raise TypeError(f"new: got {shown(new)}, wanted a list of names")
        new = list(new)
        for name in new:
            if name in self.subspaces or name not in names:
                wanted = "a name that the head does not have" if name in self.subspaces else "one of subspaces"
                raise ValueError(f"new: got {name!r}, wanted {wanted}")
        rows = [None if name in new else index_of("subspaces", name, self.subspaces) for name in names]
        if kinds is not None:
            check_kinds(kinds, len(names))
            check_values("kinds", kinds)
        self._identity.check(self._describe)
        head = copy.deepcopy(self)
        head._identity = Identity()
        head.subspaces = names
        head.masks = self.masks.select(rows)
        head._set_kinds(kinds)
        if head.uncertainty is not None and self.granularity == "subspace":
            head.uncertainty.select(rows)
        return head

    def get_extra_state(self) -> Tensor:
        """Names and settings as bytes of JSON: a tensor, since averaging and checkpointing tools expect it."""
        return self._identity.hand_out(self._describe())

    def set_extra_state(self, state: Tensor) -> None:
        """What differs has been refused before; the bytes that were handed out are this head's again."""
        self._identity.restore(self._describe())

    def _describe(self) -> dict[str, Any]:
        return {
            "subspaces": self.subspaces,
            "masks": describe_masks(self.masks),
            "kinds": self.kinds.tolist() if self._knows_kinds else None,
            "uncertainty": self.granularity,
        }

    def train(self, mode: bool = True) -> Self:
        """As any module; compiled code, which does not look whose weights were written in place, has it done here."""
        self._identity.check(self._describe)
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"subspaces={self.subspaces}"


def _width(end: Literal["input", "output"], given: int | None, projector: nn.Module) -> int:
    width = infer_width(projector, end) if given is None else check_count(f"{end}_dim", given)
    if width is None:
        raise ValueError(
            f"{end}_dim: got None, wanted the width of the projector's {end}, "
            f"which the layers of {type(projector).__name__} do not tell: pass {end}_dim="
        )
    if width < 1:
        raise ValueError(f"{end}_dim: got {width}, wanted at least 1")
    return width


def _before_loading(head: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuses another head's weights; those of the projector alone, of a model without masks, go to the projector."""
    assert isinstance(head, MaskedSubspaceHead)
    stored = state_dict.get(f"{prefix}_extra_state")
    if stored is not None:  # load_state_dict reports a missing key itself
        head._identity.refuse(stored, head._describe())
    tensors = (*head.projector.named_parameters(), *head.projector.named_buffers())
    has_masks = any(key.startswith(f"{prefix}masks.") for key in state_dict)
    if not has_masks and any(f"{prefix}{name}" in state_dict for name, _ in tensors):
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}projector.{key.removeprefix(prefix)}"] = state_dict.pop(key)
