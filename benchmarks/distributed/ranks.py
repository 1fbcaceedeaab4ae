"""Processes that stay alive and run a function on every rank of a gloo group."""

import datetime
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

# Ranks are forked from a process that did nothing but import: torch takes seconds, once and not on every rank.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["mast_ops", "torch._dynamo", "torch.distributed.fsdp"])


class Ranks:
    """``size`` processes of one group. Call it with a function and its arguments: a list of every rank's result,
    in which an exception stands for itself. A group of which a rank has died or not answered is made anew at the next
    call: what it would still say is no answer to that."""

    def __init__(self, size: int, timeout: float = 60) -> None:
        self.size, self.timeout = size, timeout
        self._start()

    def _start(self) -> None:
        self._is_whole = True
        self._folder = tempfile.TemporaryDirectory()
        store = os.path.join(self._folder.name, "store")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(self.size):
            here, there = _context.Pipe()
            process = _context.Process(target=_work, args=(there, store, rank, self.size, self.timeout), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any, patience: float = 300) -> list[Any]:
        if not self._is_whole:
            self.close()
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        results = [_receive(pipe, patience) for pipe in self._pipes]
        self._is_whole = not any(isinstance(one, EOFError | TimeoutError) for one in results)
        return results

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _receive(pipe: Connection, patience: float) -> Any:
    try:
        if pipe.poll(patience):
            return pipe.recv()
    except EOFError as error:
        return error
    return TimeoutError(f"no answer in {patience} s")


def _work(pipe: Connection, store: str, rank: int, size: int, timeout: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    while True:
        function, args = pipe.recv()
        torch.manual_seed(0)
        try:
            result = function(rank, *args)
        except Exception as error:
            result = RuntimeError(f"{type(error).__name__}: {error}")
        pipe.send(result)
