"""Bytes that a rank sends, and holds beside its own batch, in one forward and backward pass: a model on paper.

Sizes are those of :class:`Setup`. A collective counts as its ring algorithm moves it, the least that keeps every link
busy: a gather sends the own share W - 1 times, a reduction of b bytes sends 2 b (W - 1) / W.
"""

from collections.abc import Callable
from dataclasses import dataclass

_WIDE = 4  # bytes of a float32: gradients and statistics
_COMPARED = 96  # bytes of what ranks compare
_INDEX = 8
_HANDSHAKE = 4  # numbers that ranks compare before a ring turns


@dataclass(frozen=True)
class Setup:
    ranks: int
    samples: int  # of one rank
    dim: int
    subspaces: int
    element: int = 2  # bytes of an embedding's number

    @property
    def view(self) -> int:
        """Numbers in the embeddings of one view on one rank."""
        return self.samples * self.dim


@dataclass(frozen=True)
class Cost:
    sent: float  # bytes that leave a rank
    held: float  # bytes on a rank that are there because of the others


def _reduce(s: Setup, numbers: float) -> float:
    return 2 * numbers * _WIDE * (s.ranks - 1) / s.ranks


def _agreement(s: Setup) -> float:
    """Ranks compare what they call: once in each call."""
    return (s.ranks - 1) * _COMPARED


def _ring(s: Setup, rows: int, meetings: int, told: int) -> Cost:
    """A ring of ``meetings`` blocks of so many rows; ``told`` of them learn their own logsumexps and gradients."""
    block, statistics = rows * s.dim, rows * s.subspaces * _WIDE
    handshakes = 2 * (s.ranks - 1) * _HANDSHAKE * _INDEX
    forward = meetings * block * s.element + told * statistics
    backward = meetings * block * (s.element + _WIDE) + 2 * told * statistics
    # Two blocks of candidates, the one that visits and the next; their gradient, and what is added to it.
    small = handshakes + 2 * _reduce(s, 2) + _agreement(s)
    return Cost(forward + backward + small, 2 * block * s.element + 3 * block * _WIDE)


def info_nce(s: Setup) -> Cost:
    """Both directions, candidates round the ring."""
    return _ring(s, s.samples, s.ranks - 1, s.ranks - 1)


def nt_xent(s: Setup) -> Cost:
    """Every pair of ranks meets once; two views of each sample are candidates."""
    return _ring(s, 2 * s.samples, s.ranks // 2, (s.ranks - 1) // 2)


def gathered(s: Setup) -> Cost:
    """InfoNCE by hand: both views gathered, their gradients reduced, scores kept for every subspace."""
    everyone = 2 * s.ranks * s.view
    sent = 2 * s.view * s.element * (s.ranks - 1) + _reduce(s, everyone)
    scores = s.subspaces * s.samples * s.ranks * s.samples * _WIDE
    return Cost(sent, everyone * s.element + scores)


def vicreg(s: Setup, width: int = 512) -> Cost:
    """Variance and covariance of both views, reduced: the upper half of D x D in blocks of columns, twice."""
    columns = [min(width, s.dim - start) for start in range(0, s.dim, width)]
    half = sum(wide * (start * width + wide) for start, wide in enumerate(columns))
    small = 2 * (s.dim + 1) + 2 * s.dim + s.subspaces  # mean and variance there and back, upstream gradient
    return Cost(2 * (_reduce(s, 2 * half + small) + _agreement(s)), 0)


def vicreg_gathered(s: Setup) -> Cost:
    """The same by hand: both views gathered, their gradients reduced."""
    everyone = 2 * s.ranks * s.view
    return Cost(2 * s.view * s.element * (s.ranks - 1) + _reduce(s, everyone), everyone * s.element)


SCHEMES: dict[str, Callable[[Setup], Cost]] = {
    "InfoNCE, ring": info_nce,
    "NT-Xent, ring": nt_xent,
    "InfoNCE, gathered": gathered,
    "VICReg's statistics, reduced": vicreg,
    "VICReg's statistics, gathered": vicreg_gathered,
}
