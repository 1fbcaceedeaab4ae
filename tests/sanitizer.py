"""Triton's interpreter made strict: what a wrong kernel could get away with there is an error.

Programs of a launch run in random order. Every address that a program touches must be inside an element of a tensor
that the launch was given. No program may write what another one reads or writes. Memory that PyTorch gives out
without filling it holds a pattern, and no kernel may read that.
"""

import inspect
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

PATTERN = {2: 0x7EAD, 4: 0x7FC0DEAD}  # NaNs that no arithmetic makes


class LaunchError(Exception):
    """A launch did what no launch may do."""


class _Launch:
    """What the programs of one launch have read and written: (addresses, bytes each, program)."""

    def __init__(self, kernel: str, arguments: dict[str, Any]) -> None:
        self.kernel, self.program = kernel, 0
        self.reads: list[tuple[np.ndarray, int]] = []
        self.writes: list[tuple[np.ndarray, int]] = []
        self.tensors = [(name, *_extent(x)) for name, x in arguments.items() if isinstance(x, Tensor) and x.numel()]

    def touch(self, what: str, addresses: np.ndarray, size: int) -> np.ndarray:
        """The addresses, all of them inside one tensor or another."""
        if not len(addresses):
            return addresses
        low, high = int(addresses.min()), int(addresses.max()) + size
        if any(start <= low and high <= stop for _, start, stop in self.tensors):
            return addresses
        inside = np.zeros(addresses.shape, bool)
        for _, start, stop in self.tensors:
            inside |= (addresses >= start) & (addresses + size <= stop)
        if not inside.all():
            raise LaunchError(
                f"{self.kernel}: {what} out of bounds, next to {self.nearest(int(addresses[~inside][0]))}"
            )
        return addresses

    def nearest(self, address: int) -> str:
        return min(self.tensors, key=lambda t: min(abs(address - t[1]), abs(address - t[2])))[0]

    def check_races(self) -> None:
        if not self.writes:
            return
        address = np.concatenate([a for a, _ in self.writes])
        program = np.concatenate([np.full(len(a), p) for a, p in self.writes])
        order = np.argsort(address, kind="stable")
        address, program = address[order], program[order]
        twice = address[1:][(address[1:] == address[:-1]) & (program[1:] != program[:-1])]
        if len(twice):
            raise LaunchError(f"{self.kernel}: two programs write {self.nearest(int(twice[0]))}")
        for read, reader in self.reads:
            at = np.minimum(np.searchsorted(address, read), len(address) - 1)
            other = read[(address[at] == read) & (program[at] != reader)]
            if len(other):
                raise LaunchError(
                    f"{self.kernel}: a program reads what another one writes, {self.nearest(int(other[0]))}"
                )


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


@contextmanager
def strict(seed: int = 0) -> Iterator[list[str]]:
    """Gives the names of the kernels that were launched."""
    rng, launched, now = random.Random(seed), [], []
    builder = interpreter.InterpreterBuilder
    plain_load, plain_store = builder.create_masked_load, builder.create_masked_store

    def live(pointers: Any, mask: Any) -> tuple[np.ndarray, int]:
        size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
        truth = np.asarray(mask.data).astype(bool)
        return np.broadcast_to(np.asarray(pointers.data), truth.shape)[truth].astype(np.uint64), size

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        addresses, size = live(pointers, mask)
        touched = now[-1].touch("load", addresses, size)
        out = plain_load(self, pointers, mask, *rest)
        values = np.asarray(out.data)
        if values.dtype in (np.float16, np.float32) and addresses.size:
            truth = np.broadcast_to(np.asarray(mask.data).astype(bool), values.shape)
            unwritten = np.ascontiguousarray(values[truth]).view(f"u{size}") == PATTERN[size]
            if unwritten.any():
                raise LaunchError(
                    f"{now[-1].kernel}: reads what nobody wrote, {now[-1].nearest(int(addresses[unwritten][0]))}"
                )
        now[-1].reads.append((touched, now[-1].program))
        return out

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        now[-1].writes.append((now[-1].touch("store", *live(pointers, mask)), now[-1].program))
        return plain_store(self, pointers, value, mask, *rest)

    def launch(self: Any, *given: Any, **named: Any) -> None:
        named = {name: x for name, x in named.items() if name in inspect.getfullargspec(self.fn).args}
        given_host, named_host = self._init_args_hst(given, named)
        scope = interpreter._patch_lang(self.fn)
        try:
            arguments = inspect.getcallargs(self.fn, *given_host, **named_host)
            now.append(_Launch(self.fn.__name__, arguments))
            launched.append(self.fn.__name__)
            values = {n: x if n in self.constexprs else interpreter._implicit_cvt(x) for n, x in arguments.items()}
            grid = self.grid(values) if callable(self.grid) else self.grid
            grid = (*grid, 1, 1)[:3]
            interpreter.interpreter_builder.set_grid_dim(*grid)
            programs = list(np.ndindex(*grid))
            rng.shuffle(programs)
            for number, place in enumerate(programs):
                now[-1].program = number
                interpreter.interpreter_builder.set_grid_idx(*place)
                self.fn(**values)
            now[-1].check_races()
        finally:
            now.clear()
            scope.restore()
        self._restore_args_dev(given, given_host, named, named_host)

    with ExitStack() as stack:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            stack.enter_context(patch.object(owner, name, _filled(getattr(owner, name))))
        stack.enter_context(patch.object(builder, "create_masked_load", load))
        stack.enter_context(patch.object(builder, "create_masked_store", store))
        stack.enter_context(patch.object(interpreter.GridExecutor, "__call__", launch))
        yield launched


def _filled(new: Any) -> Any:
    def filled(*given: Any, **named: Any) -> Tensor:
        x: Tensor = new(*given, **named)
        if x.is_floating_point() and x.element_size() in PATTERN:
            x.view(getattr(torch, f"int{8 * x.element_size()}")).fill_(PATTERN[x.element_size()])
        return x

    return filled
