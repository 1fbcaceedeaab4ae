"""How time grows with K, N and D, one at a time: ours and the loop, and the limit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.case import Case, Settings, Shape
from benchmarks.contenders.contrast import info_nce
from benchmarks.contenders.pairs import pairs_mean
from benchmarks.limits import Ceilings
from benchmarks.runner import run_case
from benchmarks.tables import number

Maker = Callable[[Settings, Shape], Case]
_MAKERS: dict[str, Maker] = {"pairs-mean": pairs_mean, "info-nce": info_nce}
_SHARE = 0.2  # of a contender's usual time: there are many points
CENTRES = {  # what the other two sizes are while one moves: cpu, cuda, quick
    "pairs-mean": (Shape(1024, 2048, 7), Shape(4096, 4096, 7), Shape(64, 128, 3)),
    "info-nce": (Shape(1024, 256, 7), Shape(8192, 256, 7), Shape(64, 32, 3)),
}


def sweep(settings: Settings, ceilings: Ceilings, done: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """Every point that is not ``done``, as soon as it is measured."""
    settings = replace(settings, seconds=settings.seconds * _SHARE)
    known = [(point["operator"], point["axis"], point["shape"]) for point in done]
    for operator, make in _MAKERS.items():
        for axis, shape in shapes(settings.shape(*CENTRES[operator]), settings):
            if (operator, axis, shape._asdict()) in known:
                continue
            case = make(settings, shape)
            kept = tuple(c for c in case.contenders if c.role != "other")
            if operator == "info-nce":  # the loop keeps the scores of all K, about three times over
                size = 3 * shape.k * shape.n**2 * settings.dtype.itemsize
                kept = tuple(c for c in kept if c.role == "ours" or size <= 2 * settings.budget)
            measured = run_case(replace(case, contenders=kept, skipped={}), settings, ceilings)
            times = "  ".join(f"{r['role']} {number(r['total_ms']['median'])} ms" for r in measured["rows"])
            limit = number(measured["limit"]["total_ms"])
            print(f"{operator}  {shape}  {times}  limit {limit} ms", flush=True)
            yield {"operator": operator, "axis": axis, **measured}


def shapes(centre: Shape, settings: Settings) -> Iterator[tuple[str, Shape]]:
    if settings.quick:
        sizes = {"k": [1, 3], "n": [32, 64], "d": [64, 128]}
    else:
        most_k, most_n = ([64], 32768) if settings.device == "cuda" else ([], 8192)
        sizes = {"k": [1, 3, 7, 15, 31, *most_k], "n": _doubling(256, most_n), "d": _doubling(128, 8192)}
    for axis, values in sizes.items():
        for value in values:
            yield axis, centre._replace(**{axis: value})


def _doubling(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]
