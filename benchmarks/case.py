"""What is measured: one operator at one shape, and the contenders for it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.limits import Work
from mast_ops.ops import Backend

Loss = Callable[..., Tensor]  # a scalar, of the learned inputs and then the constant ones
Role = Literal["ours", "loop", "other"]


class Inputs(NamedTuple):
    learned: tuple[Tensor, ...]  # gradients are wanted for these
    constant: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.learned, *self.constant))


class Shape(NamedTuple):
    n: int
    d: int
    k: int

    def __str__(self) -> str:
        return f"N={self.n} D={self.d} K={self.k}"


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    backend: Backend = "auto"
    quick: bool = False
    compile: bool = True
    seconds: float = 10.0
    only: str = ""

    def shape(self, cpu: Shape, cuda: Shape, quick: Shape) -> Shape:
        return quick if self.quick else cuda if self.device == "cuda" else cpu

    @property
    def budget(self) -> float:
        """Bytes that one contender may need beside the inputs."""
        return 8e9 if self.device == "cuda" else 4e9


@dataclass(frozen=True)
class Contender:
    """One way to write the operator. ``work`` and ``reference`` are the case's, unless it solves another problem."""

    name: str
    loss: Loss
    role: Role = "other"
    compile: Literal["no", "whole", "inside"] = "no"  # inside: it calls torch.compile itself
    needs: float = 0  # bytes that it will certainly allocate
    work: Work | None = None
    reference: Loss | None = None

    def compiled(self) -> "Contender":
        return replace(self, name=f"{self.name}, compiled", compile="whole", role="other")


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    shape: Shape
    inputs: Callable[[torch.Generator], Inputs]
    contenders: tuple[Contender, ...]
    reference: Loss  # evaluated in float64
    work: Work
    product: tuple[int, int, int] | None = None  # (m, k, n) of the operator's own matrix product
    skipped: dict[str, str] = field(default_factory=dict)

    def select(self, settings: Settings) -> "Case":
        """Without what these settings leave out; ``skipped`` says why."""
        kept, skipped = [], dict(self.skipped)
        for contender in self.contenders:
            if settings.only and not re.search(settings.only, contender.name):
                continue
            if contender.compile != "no" and not settings.compile:
                skipped[contender.name] = "torch.compile was left out of this run"
            elif contender.needs > settings.budget:
                gigabytes = contender.needs / 1e9
                skipped[contender.name] = f"needs {gigabytes:.0f} GB, more than {settings.budget / 1e9:.0f} GB"
            else:
                kept.append(contender)
        return replace(self, contenders=tuple(kept), skipped=skipped)
