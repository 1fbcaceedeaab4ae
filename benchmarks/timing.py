"""All contenders in turn, one repeat of each a round, so that the machine's moods hit all alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from benchmarks.case import Inputs, Loss

_GAPS_SHOW = 0.02  # seconds; above, gaps between kernel launches are lost in the noise
_HEAD_START = 200_000  # clock cycles that the GPU is kept busy, so that it never waits for the replay's launch

_failed_capture = ""  # what the first one that failed raised in this process


class Sample(NamedTuple):
    forward: float  # seconds
    total: float  # forward and backward


Repeat = Callable[[int], Sample]  # of the number of this repeat, which picks the inputs


def interleave(
    repeats: Mapping[str, Repeat], seconds: float, fewest: int, tick: Callable[[], object]
) -> dict[str, list[Sample]]:
    """Rounds until ``seconds`` for each contender are spent, at least ``fewest``; the order turns with each."""
    samples: dict[str, list[Sample]] = {name: [] for name in repeats}
    names = list(repeats)
    started, runs, rounds = time.perf_counter(), 0, 0
    while names and (rounds < fewest or time.perf_counter() - started < seconds * len(names)):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(repeats[name](runs))
            runs += 1  # the next contender takes the next inputs: nobody finds them in a cache
            tick()
        rounds += 1
    return samples


def on_host(loss: Loss, sets: list[Inputs]) -> Repeat:
    def repeat(number: int) -> Sample:
        learned, constant = _fresh(sets[number % len(sets)])
        start = time.perf_counter()
        value = loss(*learned, *constant)
        middle = time.perf_counter()
        value.backward()
        return Sample(middle - start, time.perf_counter() - start)

    return repeat


def on_cuda(loss: Loss, sets: list[Inputs]) -> tuple[Repeat, str]:
    """Replays of CUDA graphs where a run is short; else, or where there can be no graph, launches as they come.

    The second value says which, and why. A capture that fails can leave a process that no other can follow in: a run
    that makes the host wait is not captured at all, and after a failure nothing is.
    """
    global _failed_capture
    launched = _launched(loss, sets)
    if launched(0).total > _GAPS_SHOW:
        return launched, f"launched: longer than {1e3 * _GAPS_SHOW:.0f} ms"
    if _failed_capture:
        return launched, f"launched: no graph after a failed capture, {_failed_capture}"
    if _host_waits(loss, sets[0]):
        return launched, "launched: no graph, the host waits for the device"
    try:
        pool = torch.cuda.graph_pool_handle()
        graphs = [[_capture(loss, inputs, backward, pool) for backward in (False, True)] for inputs in sets]
    except Exception as error:  # whatever the contender does that a graph cannot hold, such as a read by the host
        _failed_capture = type(error).__name__
        torch.cuda.synchronize()
        return launched, f"launched: no graph, {_failed_capture}"

    def repeat(number: int) -> Sample:
        forward, _ = graphs[number % len(graphs)]
        _, total = graphs[(number + 1) % len(graphs)]
        return Sample(_replay(forward), _replay(total))

    return repeat, "graph"


def _host_waits(loss: Loss, inputs: Inputs) -> bool:
    """Whether a run reads what the device has not computed yet, as far as torch notices."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        learned, constant = _fresh(inputs)
        loss(*learned, *constant).backward()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False


def _fresh(inputs: Inputs) -> Inputs:
    for x in inputs.learned:
        x.grad = None
    return inputs


def _launched(loss: Loss, sets: list[Inputs]) -> Repeat:
    def repeat(number: int) -> Sample:
        learned, constant = _fresh(sets[number % len(sets)])
        start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        torch.cuda.synchronize()
        start.record()
        value = loss(*learned, *constant)
        middle.record()
        value.backward()
        end.record()
        end.synchronize()
        return Sample(start.elapsed_time(middle) / 1e3, start.elapsed_time(end) / 1e3)

    return repeat


def _capture(loss: Loss, inputs: Inputs, backward: bool, pool: Any) -> torch.cuda.CUDAGraph:
    """A graph of one run. Graphs of one contender share memory: they never run at once, and nobody reads them."""

    def run() -> None:
        learned, constant = _fresh(inputs)
        value = loss(*learned, *constant)
        if backward:
            value.backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    _fresh(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    _fresh(inputs)
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_HEAD_START)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
