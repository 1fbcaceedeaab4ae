"""Numbers of a module that a schedule may change."""

from collections.abc import Callable
from typing import Any

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
