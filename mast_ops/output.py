"""What a head gives and a loss takes."""

import numbers
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor
from torch.utils import _pytree

from mast_ops._checks import check_count, check_dtype, listed, shown
from mast_ops.masks import MaskParameterization
from mast_ops.pairs import Granularity

_NO_TENSOR = "got a SubspaceOutput, wanted a tensor: pass its .embedding; a loss takes the output as it is"


class SubspaceOutput(NamedTuple):
    """An embedding, the masks of its subspaces, and what else a loss wants to know of a head.

    A named tuple, so that DDP, ``torch.compile`` and ``torch.export`` see its tensors. A slice takes fields, as of any
    tuple; :meth:`chunk` and :meth:`split` take samples. What takes a tensor takes ``out.embedding``.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceOutput
        >>> out = SubspaceOutput(torch.zeros(2, 3), torch.ones(4, 3))
        >>> out.log_variance is None
        True
    """

    embedding: Tensor
    """(N, D)."""
    masks: Tensor
    """(K, D), one mask an augmentation."""
    log_variance: Tensor | None = None
    """Natural log of each embedding's variance: (N, 1) per sample, (N, K) per subspace, (N, D) per dimension."""
    kinds: Tensor | None = None
    """(S, K) bool, which augmentations differ in pairs of each kind; None: one at a time."""
    granularity: Granularity | None = None
    """What the columns of ``log_variance`` are; there whenever it is."""
    observer: MaskParameterization | None = None
    """The head's masks, of a head in training mode whose masks want a loss to tell them of its pairs."""
    knows_kinds: bool = True
    """False for a head that was told names alone: a loss then takes no ``kind``, whose table nobody knows."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """``Tensor.to`` on every tensor; a dtype is for the floating-point ones."""
        for given in (*args, *kwargs.values()):
            if isinstance(given, torch.dtype):
                check_dtype("dtype", given)
        out = self._map("to", *args, **kwargs)
        return out if self.kinds is None else out._replace(kinds=self.kinds.to(out.embedding.device))

    def detach(self) -> Self:
        """``Tensor.detach`` on every tensor: the stop-gradient of BYOL's and SimSiam's target."""
        return self._map("detach")

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Self, ...]:
        """As ``Tensor.chunk`` on the samples: ``out0, out1 = head(torch.cat([view0, view1])).chunk(2)``."""
        _check_samples(dim)
        chunks = check_count("chunks", chunks)
        return self._parts(lambda rows: rows.chunk(chunks))

    def split(self, split_size: int | list[int], dim: int = 0) -> tuple[Self, ...]:
        """As ``Tensor.split`` on the samples: ``head(torch.cat([view0, view1])).split(len(view0))``."""
        _check_samples(dim)
        given = listed(split_size)
        if given is not None:
            sizes, num = [check_count("split_size", size, 0) for size in given], len(self.embedding)
            if sum(sizes) != num:
                raise ValueError(f"split_size: got {sizes} with a sum of {sum(sizes)}, wanted {num}, the samples")
            return self._parts(lambda rows: torch.split(rows, sizes))
        size = check_count("split_size", split_size)  # type: ignore[arg-type]
        return self._parts(lambda rows: torch.split(rows, size))

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], *_: Any) -> NoReturn:
        """Says what to pass, where a function of torch is given this in the place of a tensor."""
        raise TypeError(f"{func.__name__}: {_NO_TENSOR}")

    def _parts(self, cut: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Self, ...]:
        parts = cut(self.embedding)
        variances = [None] * len(parts) if self.log_variance is None else cut(self.log_variance)
        return tuple(
            self._replace(embedding=part, log_variance=variance)
            for part, variance in zip(parts, variances, strict=True)
        )

    def _map(self, method: str, *args: Any, **kwargs: Any) -> Self:
        def apply(tensor: Tensor) -> Tensor:
            result: Tensor = getattr(tensor, method)(*args, **kwargs)
            return result

        log_variance = None if self.log_variance is None else apply(self.log_variance)
        return self._replace(embedding=apply(self.embedding), masks=apply(self.masks), log_variance=log_variance)


def _refuse_attribute(out: SubspaceOutput, name: str) -> NoReturn:
    """Says likewise what to pass, where it is asked for what a tensor has."""
    why = _NO_TENSOR if hasattr(Tensor, name) else "a SubspaceOutput has none"
    raise AttributeError(f"{name}: {why}", name=name, obj=out)


def _refuse_factor(out: SubspaceOutput, other: object) -> NoReturn:
    """A tuple times a number is that many of it."""
    raise TypeError(f"mul: {_NO_TENSOR}")


def _field_or_words(out: SubspaceOutput, place: Any) -> Any:
    """As any tuple's; what would choose rows of a tensor is told what does here."""
    if not isinstance(place, slice | numbers.Integral | torch.SymInt):
        raise TypeError(
            f"index: got {shown(place)} for a SubspaceOutput, wanted a field: samples i are those of "
            "out._replace(embedding=out.embedding[i]), with log_variance=out.log_variance[i] where there is one"
        )
    return tuple.__getitem__(out, place)


SubspaceOutput.__getattr__ = _refuse_attribute  # type: ignore[attr-defined]  # in the class it would type every name
SubspaceOutput.__mul__ = SubspaceOutput.__rmul__ = _refuse_factor  # type: ignore[method-assign,assignment]
SubspaceOutput.__getitem__ = _field_or_words  # type: ignore[method-assign,assignment]


class TracedOutput(SubspaceOutput):
    """An output that, as a tuple, holds its tensors alone: what is traced by torch.jit can give nothing else."""

    _whole: SubspaceOutput

    def __new__(cls, whole: SubspaceOutput) -> Self:
        self = tuple.__new__(cls, [x for x in whole if isinstance(x, Tensor)])
        self._whole = whole
        return self

    def _replace(self, **fields: Any) -> Self:
        return type(self)(self._whole._replace(**fields))


def _field(out: TracedOutput, place: int) -> Any:
    return out._whole[place]


for _place, _name in enumerate(SubspaceOutput._fields):  # by their places in the whole
    setattr(TracedOutput, _name, property(partial(_field, place=_place)))

View = Tensor | SubspaceOutput
"""A plain embedding, or a head's output."""


def _check_samples(dim: int) -> None:
    if isinstance(dim, bool) or not isinstance(dim, numbers.Integral) or dim != 0:
        raise ValueError(f"dim: got {shown(dim)}, wanted 0, the samples: masks are of whole embeddings")


class Word(str):
    """A string in the output of an exported program: part of its tree, for it holds tensors and numbers alone."""

    __slots__ = ()


_pytree.register_pytree_node(
    Word, lambda word: ([], str(word)), lambda _, text: Word(text), serialized_type_name="mast_ops.Word"
)

# torch.export names a named tuple in a saved program by this; torch has no public call for it yet.
_pytree._register_namedtuple(SubspaceOutput, serialized_type_name="mast_ops.SubspaceOutput")
