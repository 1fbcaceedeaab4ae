"""What every subspace loss shares: it takes two views, and is a weighted sum of named terms."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Never, overload

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import (
    check_flag,
    check_named,
    check_non_negative,
    refuse_script,
)
from mast_ops._dials import Checked, Checks, Dial
from mast_ops._untrained import warn_alone, watch
from mast_ops.functional.difficulty import prediction_of_difficulty, prediction_of_harder_view
from mast_ops.functional.sensitivity import check_all_differ, explained, outside
from mast_ops.functional.uncertainty import pair_weights
from mast_ops.losses._reference import Judged
from mast_ops.losses._views import Observer, observer_of, pairs_of
from mast_ops.ops import Backend, check_backend
from mast_ops.output import View
from mast_ops.pairs import Pairs
from mast_ops.run import Run

Terms = dict[str, tuple[float | Tensor, Tensor]]
"""Weight and value of every named term."""


class SubspaceLoss(Checked, ABC):
    """A loss on two views inside K subspaces: a weighted sum of named terms.

    A new loss gives its terms and their weights; unpacking, checks and logging are here.

    Shape of the call ``loss(out0, out1, masks=None, kinds=None, kind=None, reference=None, return_components=False)``,
    all but the two views by keyword:

    - out0, out1: (N, D) embeddings, or :class:`mast_ops.SubspaceOutput` of a head (mixed is fine: BYOL's
      target may be a plain tensor). Two views of other dtypes, such as a prediction under autocast and a float32
      target, meet in float32; float64 goes with float64 alone.
    - masks: (K, D), one mask an augmentation, wanted with plain tensors only; of two heads' outputs, those of ``out0``
      count.
    - kinds: (S, K) bool, which augmentations differ in pairs of each kind. Default: what the head knows; with plain
      tensors one at a time, ``eye(K)``.
    - kind: (N,) int64, a row of ``kinds``: the pair must agree where the masks of all that differs in it are open. A
      head that was told names alone goes with no ``kind``, but beside ``kinds``.
      None: every pair counts in each of the K masks alone; a warning says so where the head knows kinds.
    - reference: (N, D) embedding, or a head's output, of a view with little augmentation of the same images in the same
      order; for ``difficulty_param`` alone.
    - Returns a scalar, float32 for half-precision input; with ``return_components`` also a dictionary of
      the terms, unweighted and detached, for logging.

    With ``sensitivity_param`` > 0 and ``kind`` one more term asks what lies outside each mask to change with that
    mask's augmentation, so that the features hold what it does: the sum over subspaces of
    :func:`mast_ops.functional.subspace_sensitivity`, which takes at least two samples, and an augmentation that never
    differs is refused. With masks of ones it is 0; without ``kind`` it is not there.

    With ``difficulty_param`` > 0 and predicted variances the prediction is no likelihood. It learns how hard a pair is,
    by its contrastive loss's rank in the own process's batch (:func:`mast_ops.functional.pair_difficulty`): one term
    more, whose gradient ends at the prediction. The variances then weigh pairs, by their inverse, with weights that
    average 1.

    With a ``reference`` it learns instead which of two views is the harder one: whose contrastive loss against the
    reference is larger, where all masks are open. So what is hard in an image itself drops out, and what an
    augmentation has taken from it stays: doubt then rises with strength, as it does not otherwise
    (``benchmarks/evidence``). Pairs then count alike: weighed by such a doubt, those of weak augmentations would count
    most, and features were worse. Both views need a variance; for BYOL and SimSiam give the target that of its view's
    prediction, ``prediction1._replace(embedding=target1)``. Nothing is trained through the reference, so make it
    without gradients, and with batch normalisation as it is in use, or its statistics would take references in::

        model.eval()
        with torch.no_grad():
            reference = model(lightly_augmented)
        model.train()
        loss = criterion(model(view0), model(view1), kind=kind, reference=reference)

    A prediction knows what it has seen: views unlike all in training may be called certain, unless a share of training
    views are spoiled.

    With ``gather_distributed=True`` the loss is that of the batches of all ranks of torch.distributed's default
    process group put together, the same value on every rank, and the gradients that DDP or FSDP average over ranks
    are that loss's own. Ranks may have different numbers of samples, but each at least one, and all of them must
    call the loss, with one D, K, dtype, table of kinds and choice of options, weights and temperatures that are alike,
    masks that are too, as parameters under DDP and FSDP are, and gradients for the same of them. That is compared in
    each call, by 96 bytes a rank, and every rank raises a ValueError where they differ; so it does where one of them
    refuses its arguments. On a GPU what was compared before is asserted there, so that nothing waits for it. Not
    compared are what is of a rank's own samples, and which process group a user has in mind: it is the default one. A
    rank that does not come at all, as with ``gather_distributed=False``, or that fails while ``torch.compile`` traces,
    is an error when the group's timeout has passed.

    Candidates of contrastive losses go round a ring, statistics are summed: neither is gathered, so that memory does
    not grow with the number of ranks. Without a process group there is one rank.

    Masks that are allocated by what augmentations explain (:class:`mast_ops.AllocatedMasks`) are told of the pairs in
    each call with ``kind``, where the head is in training mode and gradients are on; that takes two samples as well.

    What a loss itself learns, such as a temperature, is in no DDP: with ``gather_distributed=True`` its gradient is
    averaged over ranks here. Without it each rank would train its own, and a warning says so.

    A predicted variance that no term has a use for gets a gradient of zero: DDP waits for one of every parameter.

    Weights of terms, temperatures and ``eps`` are attributes that may be set anew while training: compiled code is not
    compiled again for it.
    """

    checks: ClassVar[Checks] = {
        "backend": lambda _, x: check_backend(x),
        "gather_distributed": lambda _, x: ops.ranks(x),
    }
    sensitivity_param = Dial(check_non_negative)
    _sensitivity_param: Tensor
    _sensitivity_param_is_zero: bool
    difficulty_param = Dial(check_non_negative)
    _difficulty_param: Tensor
    _difficulty_param_is_zero: bool
    _choices: ClassVar[tuple[str, ...]]
    _dials: ClassVar[tuple[str, ...]]
    takes_sample: ClassVar[bool] = False
    """Whether a call takes ``sample``, what each pair shows."""

    def __init__(
        self,
        *,
        gather_distributed: bool = False,
        backend: Backend = "auto",
        sensitivity_param: float = 0.0,
        difficulty_param: float = 0.0,
    ) -> None:
        super().__init__()
        self.sensitivity_param, self.difficulty_param = sensitivity_param, difficulty_param
        self.gather_distributed = gather_distributed
        self.backend: Backend = backend
        self._watch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._watch()  # a copy, or one from a file

    def _watch(self) -> None:
        """Some losses learn a temperature."""
        watch(self, wanted="the loss's parameters in the optimizer too, as in param_groups(model, loss, lr=lr)")

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Names the options that are strings or flags: compilers before torch 2.12 cannot look through attributes."""
        super().__init_subclass__(**kwargs)
        losses = [one for one in cls.__mro__ if issubclass(one, SubspaceLoss)]
        options = [each for one in losses for each in inspect.signature(one.__init__).parameters.values()]
        cls._choices = tuple(sorted({each.name for each in options if isinstance(each.default, str | bool)}))
        cls._dials = tuple(sorted({name for one in losses for name, x in vars(one).items() if isinstance(x, Dial)}))

    __prepare_scriptable__ = refuse_script

    @abstractmethod
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        """The formula."""

    def pair_weight(self, pairs: Pairs, run: Run) -> Tensor | None:
        """How much each pair counts for sensitivity, and with ``difficulty_param`` for terms of single pairs too.

        (N,) with ``kind``, up to a factor that all ranks share; None: all alike.
        """
        return None if self._difficulty_param_is_zero else pair_weights(pairs, run)

    @overload
    def forward(
        self,
        out0: View,
        out1: View,
        *,
        masks: Tensor | None = ...,
        kinds: Tensor | None = ...,
        kind: Tensor | None = ...,
        reference: View | None = ...,
        return_components: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        out0: View,
        out1: View,
        *,
        masks: Tensor | None = ...,
        kinds: Tensor | None = ...,
        kind: Tensor | None = ...,
        reference: View | None = ...,
        return_components: Literal[True],
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @ops.raised_by_all
    def forward(
        self,
        out0: View,
        out1: View,
        *unnamed: Never,
        masks: Tensor | None = None,
        kinds: Tensor | None = None,
        kind: Tensor | None = None,
        reference: View | None = None,
        return_components: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        check_named(self, unnamed, "out0, out1")
        pairs = pairs_of(out0, out1, masks=masks, kinds=kinds, kind=kind)
        judged = None if reference is None else self.judged(reference, out0, out1, pairs)
        return self.of_call(pairs, return_components, observer_of(out0, out1), judged)

    def judged(self, reference: View, out0: View, out1: View, pairs: Pairs) -> Judged:
        """Views beside their reference, by which their difficulty is judged."""
        if self._difficulty_param_is_zero:
            raise ValueError(
                f"reference: got one for {type(self).__name__} with difficulty_param 0, wanted a loss with "
                "difficulty_param > 0: nothing else has a use for it"
            )
        return Judged.by(reference, out0, out1, pairs)

    def of_call(
        self, pairs: Pairs, return_components: bool, observer: Observer | None, judged: Judged | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The same, of checked pairs, and with the masks that want to know of them."""
        check_flag("return_components", return_components)
        loss, components = self.of_pairs(pairs, observer, judged)
        self.remember(pairs)
        return (loss, components) if return_components else loss

    def extra_repr(self) -> str:
        """The options, as they are now."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if hasattr(self, name)]
        return ", ".join(f"{name}={_number(getattr(self, name))}" for name in names)

    def remember(self, pairs: Pairs) -> None:
        """What a loss keeps of a call for later ones; :class:`mast_ops.MultiViewLoss` asks for it once."""

    def of_pairs(
        self, pairs: Pairs, observer: Observer | None = None, judged: Judged | None = None, place: str = "1 of 1"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some pairs of a call, and its terms; ``judged``: their views beside a reference; ``place``: which
        of the call's pairs of views they are, which ranks must go through alike."""
        if self._parameters and not self.gather_distributed and not torch.compiler.is_compiling():
            warn_alone(self)
        options = {name: getattr(self, name) for name in self._choices if hasattr(self, name)} | {
            "sensitivity": not self._sensitivity_param_is_zero,
            "difficulty": not self._difficulty_param_is_zero,
            "reference": judged is not None,
            "sample": pairs.sample is not None,
            "observed": observer is not None,
            "pair of views": place,
        }
        run = Run(self.backend, self.gather_distributed).of(type(self).__name__, pairs, self._numbers(), **options)
        predicts = not self._difficulty_param_is_zero and pairs.uncertainty is not None
        if predicts and pairs.uncertainty is not None and pairs.uncertainty.granularity == "dimension":
            raise ValueError(
                "granularity: got 'dimension' with difficulty_param, wanted 'sample' or 'subspace': it is of pairs"
            )
        if judged is not None:  # weighed by this doubt, pairs of weak augmentations would count most
            pairs = pairs._replace(uncertainty=None)
        asked = not self._sensitivity_param_is_zero
        explains = pairs.kind is not None and (asked or observer is not None)
        weight = self.pair_weight(pairs, run) if explains or predicts else None
        terms = self.terms(pairs._replace(weight=weight) if predicts else pairs, run)
        if predicts:
            term = prediction_of_difficulty(pairs, run) if judged is None else prediction_of_harder_view(*judged, run)
            terms["difficulty"] = (self._difficulty_param, term)
        if explains:
            if asked:
                check_all_differ(pairs)
            found = explained(pairs, run, weight=weight)
            if asked:
                terms["sensitivity"] = (self._sensitivity_param, outside(found, pairs.masks).sum())
            if observer is not None:
                observer.observe(found.share.detach(), found.pairs, gathered=run.distributed)
        loss = torch.stack([_weighted(*term) for term in terms.values()]).sum()
        if pairs.uncertainty is not None:  # whatever the terms have a use for, DDP waits for a gradient
            loss = loss + (0 * pairs.uncertainty.log_variance).sum()
        return loss, {name: value.detach() for name, (_, value) in terms.items()}

    def _numbers(self) -> dict[str, Tensor]:
        """What ranks must have alike, and may change from call to call: weights, temperatures, what the loss learns."""
        dials = {name: getattr(self, f"_{name}") for name in self._dials if hasattr(self, f"_{name}")}
        return dials | {name: x for name, x in self._parameters.items() if x is not None}


def _number(value: object) -> str:
    """Without the words around a learned temperature."""
    if isinstance(value, Tensor):
        return "on the meta device" if value.is_meta else f"{value.item():.6g}"
    return repr(value)


def _weighted(weight: float | Tensor, value: Tensor) -> Tensor:
    return (weight.to(value.dtype) if isinstance(weight, Tensor) else weight) * value
