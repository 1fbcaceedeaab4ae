"""Attributes of a module that may be set anew: all are checked, and a schedule of numbers compiles nothing again."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

_DTYPES = {float: torch.float64, int: torch.int64}


class Dial:
    """An attribute ``x`` of a module: a number to whoever sets and reads it, and a tensor, ``_x``, to its ``forward``.

    Compiled code takes a Python number for a constant and is compiled again for each value; a tensor it reads. The
    tensor is no buffer: it is no part of the state, and neither another device nor ``to_empty`` takes its value away.
    It stays on the CPU, where a scalar goes with tensors of any device and nothing waits for it. ``_x_is_zero`` says
    whether it is, for what is then left out: compiled code is compiled again when that changes.

    Args:
        check: Of name and value, gives the number or raises.
    """

    def __init__(self, check: Callable[[str, Any], float]) -> None:
        self.check = check

    def __set_name__(self, owner: type[nn.Module], name: str) -> None:
        self.name = name

    def __set__(self, module: nn.Module, value: float) -> None:
        number = self.check(self.name, value)
        vars(module)[f"_{self.name}"] = torch.tensor(number, dtype=_DTYPES[type(number)], device="cpu")
        vars(module)[f"_{self.name}_is_zero"] = number == 0

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> Any:
        return self if module is None else vars(module)[f"_{self.name}"].item()


Checks = Mapping[str, Callable[[str, Any], object]]


class Checked(nn.Module):
    """A module whose choices and flags are checked whenever they are set, in the constructor or later."""

    checks: ClassVar[Checks] = {}
    """Of each attribute, called with its name and value; those of base classes count too."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.checks = {
            name: check for one in reversed(cls.__mro__) for name, check in vars(one).get("checks", {}).items()
        }

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.checks:
            self.checks[name](name, value)
        super().__setattr__(name, value)
