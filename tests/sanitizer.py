"""Triton's interpreter made strict: what a wrong kernel could get away with there is an error.

Programs of a launch run in random order. Every address that a program touches must be inside an element of a tensor
that the launch was given. No program may write what another one reads or writes, unless atomics put them in an order
(:mod:`races`). Memory that PyTorch gives out without filling it holds a pattern, and no kernel may read that.
"""

import inspect
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from races import READ, WRITE, History
from torch import Tensor
from triton.runtime import interpreter

PATTERN = {2: 0x7EAD, 4: 0x7FC0DEAD}  # NaNs that no arithmetic makes


class LaunchError(Exception):
    """A launch did what no launch may do."""


class _Launch:
    """The tensors that a launch was given, and what its programs do to them."""

    def __init__(self, kernel: str, arguments: dict[str, Any], programs: int) -> None:
        self.kernel, self.history = kernel, History(programs)
        self.tensors = [(name, *_extent(x)) for name, x in arguments.items() if isinstance(x, Tensor) and x.numel()]

    def inside(self, what: str, addresses: np.ndarray, size: int) -> np.ndarray:
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
        if race := self.history.race():
            raise LaunchError(f"{self.kernel}: {race[0]} {self.nearest(race[1])}")


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


@contextmanager
def strict(seed: int = 0) -> Iterator[list[str]]:
    """Gives the names of the kernels that were launched."""
    rng, launched, now = random.Random(seed), [], []
    builder = interpreter.InterpreterBuilder
    plain_load, plain_store = builder.create_masked_load, builder.create_masked_store
    plain_add = builder.create_atomic_rmw

    def live(pointers: Any, mask: Any) -> tuple[np.ndarray, int]:
        size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
        truth = np.asarray(mask.data).astype(bool)
        return np.broadcast_to(np.asarray(pointers.data), truth.shape)[truth].astype(np.uint64), size

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        addresses, size = live(pointers, mask)
        now[-1].history.touch(READ, now[-1].inside("load", addresses, size))
        out = plain_load(self, pointers, mask, *rest)
        values = np.asarray(out.data)
        if values.dtype in (np.float16, np.float32) and addresses.size:
            truth = np.broadcast_to(np.asarray(mask.data).astype(bool), values.shape)
            unwritten = np.ascontiguousarray(values[truth]).view(f"u{size}") == PATTERN[size]
            if unwritten.any():
                raise LaunchError(
                    f"{now[-1].kernel}: reads what nobody wrote, {now[-1].nearest(int(addresses[unwritten][0]))}"
                )
        return out

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        now[-1].history.touch(WRITE, now[-1].inside("store", *live(pointers, mask)))
        return plain_store(self, pointers, value, mask, *rest)

    def add(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        orders = () if scope.name == "CTA" else sem.name.split("_")  # threads of one program, or no thread
        addresses = now[-1].inside("atomic", *live(pointers, mask))
        now[-1].history.atomic(addresses, "ACQUIRE" in orders, "RELEASE" in orders)
        return plain_add(self, operation, pointers, value, mask, sem, scope)

    def swap(*_: Any) -> Any:
        raise NotImplementedError("no kernel swaps yet: say here what a swap that fails puts in an order")

    def launch(self: Any, *given: Any, **named: Any) -> None:
        named = {name: x for name, x in named.items() if name in inspect.getfullargspec(self.fn).args}
        given_host, named_host = self._init_args_hst(given, named)
        scope = interpreter._patch_lang(self.fn)
        try:
            arguments = inspect.getcallargs(self.fn, *given_host, **named_host)
            launched.append(self.fn.__name__)
            values = {n: x if n in self.constexprs else interpreter._implicit_cvt(x) for n, x in arguments.items()}
            grid = self.grid(values) if callable(self.grid) else self.grid
            grid = (*grid, 1, 1)[:3]
            interpreter.interpreter_builder.set_grid_dim(*grid)
            programs = list(np.ndindex(*grid))
            rng.shuffle(programs)
            now.append(_Launch(self.fn.__name__, arguments, len(programs)))
            for number, place in enumerate(programs):
                now[-1].history.start(number)
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
        stack.enter_context(patch.object(builder, "create_atomic_rmw", add))
        stack.enter_context(patch.object(builder, "create_atomic_cas", swap))
        stack.enter_context(patch.object(builder, "create_barrier", lambda self: now[-1].history.barrier()))
        stack.enter_context(patch.object(interpreter.GridExecutor, "__call__", launch))
        yield launched


def _filled(new: Any) -> Any:
    def filled(*given: Any, **named: Any) -> Tensor:
        x: Tensor = new(*given, **named)
        if x.is_floating_point() and x.element_size() in PATTERN:
            x.view(getattr(torch, f"int{8 * x.element_size()}")).fill_(PATTERN[x.element_size()])
        return x

    return filled
