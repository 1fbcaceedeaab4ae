"""``python -m benchmarks.predict``: how long kernels should take on an H100, reasoned from their machine code.

PREDICTED, NOT MEASURED. Every kernel is compiled for sm_90 as it would be launched, and its loops are counted: matrix
instructions, special functions, bytes of shared memory and of global copies, issue slots. Each has a rate, and the
largest time is the limit. ``overlapped``: all limits at once, a bound from below. ``in turn``: a program waits for its
product before it takes exponentials, and no other fills the gap: the two times are added. The truth stands in between
or above: latency, bank conflicts and throttled clocks are not in it.
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import cache, sass
from mast_ops._precision import is_half

# H100 SXM5 as NVIDIA publishes it. Tensor cores, clock, memory, multiprocessors: "NVIDIA H100 Tensor Core GPU
# Architecture", tables of the SXM5. Special functions, warps issued, shared memory: "CUDA C++ Programming Guide",
# compute capability 9.0. L2: 5120 bytes a clock are published for the A100 alone.
PROCESSORS, CLOCK, BANDWIDTH = 132, 1.83e9, 3.35e12
FLOPS, EXPS, SHARED, ISSUED, COPIED = 4096, 16, 128, 4, 5120 / PROCESSORS  # a clock of one multiprocessor
L2 = 50 * 2**20  # bytes
MEMORY, REGISTERS, THREADS = 228 * 1024, 65536, 2048  # of a multiprocessor
GAP = 2e-6  # between two launches of a captured graph: assumed, nobody publishes it


class Piece(NamedTuple):
    """One launch."""

    name: str
    overlapped: float
    in_turn: float
    limit: str
    ours: bool


Counts = tuple[list[tuple[int, sass.Count]], sass.Count]
"""Of every loop, with the number of loops around it; and of all that stands outside loops."""


def launched(function: Callable[[], object]) -> list[Piece]:
    """Every launch of a function of tensors without data. Kernels of Triton are compiled; PyTorch's move bytes."""
    import triton

    pieces: list[Piece] = []
    known: dict[str, Counts] = {}
    before, active = triton.JITFunction.run, triton.runtime.driver._active
    cache.pretend()
    compiled = triton.JITFunction.run

    def run(self: Any, *given: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        kernel = compiled(self, *given, grid=grid, warmup=warmup, **named)
        if kernel.hash not in known:
            turns, outside = sass.loops(sass.disassemble(kernel.asm["cubin"]))
            known[kernel.hash] = [(x.depth, sass.count(x.turn)) for x in turns], sass.count(outside)
        arguments = dict(zip(self.arg_names, given, strict=False)) | named
        pieces.append(_kernel(self.__name__, kernel, known[kernel.hash], grid, arguments))

    try:
        triton.JITFunction.run = run
        with _Plain(pieces):
            function()
    finally:
        triton.JITFunction.run = before
        triton.runtime.driver.set_active(active)
    return pieces


class _Plain(TorchDispatchMode):
    def __init__(self, pieces: list[Piece]) -> None:
        super().__init__()
        self.pieces = pieces

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        out = _answer(name, args, kwargs or {})
        if out is None:
            out = func(*args, **(kwargs or {}))
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach")):
            tensors = [x for x in torch.utils._pytree.tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
            product = name in ("mm", "addmm_")
            seconds = _moved(sum(x.nbytes for x in tensors))
            if product:
                left, right = [x for x in args if isinstance(x, torch.Tensor)][-2:]
                flops = 2 * left.numel() * right.shape[1] * (1 if is_half(left.dtype) else 2)  # float32: in TF32
                seconds = max(seconds, flops / (FLOPS * PROCESSORS * CLOCK))
            self.pieces.append(Piece("product" if product else name, seconds, seconds, "peak", product))
        return out


def _answer(name: str, args: Any, named: dict[str, Any]) -> Any:
    """What a device would say that has data: masks keep all, each anchor has one positive, and scores are moderate."""
    if name == "_local_scalar_dense":
        return args[0].dtype.is_floating_point and 1.0
    if name == "repeat_interleave":
        return torch.empty_like(args[0])
    if name == "_to_copy" and named.get("device") == torch.device("cpu"):
        return torch.zeros(args[0].shape, dtype=args[0].dtype)
    return None


def clocks(count: sass.Count, warps: float) -> dict[str, float]:
    """Of one multiprocessor, for each limit."""
    rates = {"matrix": FLOPS, "exps": EXPS, "shared": SHARED, "issue": ISSUED, "copies": COPIED}
    counted = count.flops, count.exps, count.shared, count.issued, count.copied
    return {name: warps * x / rate for (name, rate), x in zip(rates.items(), counted, strict=True)}


def _kernel(name: str, kernel: Any, counts: Counts, grid: tuple[int, ...], arguments: dict[str, Any]) -> Piece:
    if arguments.get("WHOLE") and arguments.get("BLOCK_D", 0) < arguments["width"] and name != "pack":
        return Piece(name, 0.0, 0.0, "gap", True)  # its programs end at once: it is for masks that keep less
    warps, turns = kernel.metadata.num_warps, trips(name, arguments, kernel.asm["ttir"])
    total = clocks(counts[1], warps)
    deepest = max((depth for depth, _ in counts[0]), default=-1)
    while len(turns) > deepest + 1 and 1 in turns:
        turns.remove(1)  # the compiler left no loop of it
    for depth, count in counts[0]:
        each = math.prod(turns[: depth + 1])
        total = {limit: total[limit] + each * x for limit, x in clocks(count, warps).items()}
    resident = _resident(kernel, warps)
    programs = busiest(math.prod(grid), resident)
    times = {limit: programs * x / CLOCK for limit, x in total.items()}
    tensors = {x.data_ptr() or id(x): x.nbytes for x in arguments.values() if isinstance(x, torch.Tensor)}
    times["memory"] = _moved(sum(tensors.values()))
    limit = max(times, key=lambda key: times[key])
    others = max(x for key, x in times.items() if key != "matrix")
    return Piece(name, times[limit], others + times["matrix"], limit, True)


def busiest(programs: int, resident: int) -> int:
    """Programs that one multiprocessor has at the most: waves of all that it holds, and a last one spread over all."""
    whole, rest = divmod(programs, PROCESSORS * resident)
    return whole * resident + math.ceil(rest / PROCESSORS)


def _moved(size: int) -> float:
    """What fits L2 was put there by the launch before, or is read by the next."""
    return size / (COPIED * PROCESSORS * CLOCK if size <= L2 else BANDWIDTH)


def trips(name: str, arguments: dict[str, Any], ttir: str = "") -> list[int]:
    """Turns of a kernel's loops from the outermost inwards, where masks keep all dimensions."""
    at = arguments.get
    if name in ("logsumexp", "gradient", "_sums"):
        tiles = [(at("tiles"), 1)] if name == "logsumexp" else []
        is_given = at("WHOLE") or arguments.get("b", ...) is None  # no loop makes the products
        loops = [*tiles, (at("span"), at("BLOCK_N")), *([] if is_given else [(at("width"), at("BLOCK_D"))])]
    elif name in ("align", "unpack"):
        loops = [(at("width"), at("BLOCK_D")) if name == "align" else (at("masks"), 1), (at("splits"), 1)]
    else:  # one loop, or one after the other: a span of what is given, or all D dimensions, in steps of a constant
        steps = re.findall(r"scf\.for .* step %c(\d+)_i32", ttir)
        loops = [(at("span", at("D")), int(steps[0]))] if steps else []
    return [math.ceil(total / step) for total, step in loops]


def _resident(kernel: Any, warps: int) -> int:
    each = max(sass.registers(kernel.asm["cubin"]), 1)
    by_memory = MEMORY // (kernel.metadata.shared + 1024)
    return max(1, min(by_memory, REGISTERS // (each * 32 * warps), THREADS // (32 * warps)))


def pairs(n: int, d: int, k: int, both: bool) -> list[Piece]:
    from mast_ops.kernels.contract import Gap, Table
    from mast_ops.kernels.triton import _parts
    from mast_ops.kernels.triton import pairs as kernels

    z0, z1 = (torch.empty(n, d, dtype=torch.bfloat16, device="meta") for _ in range(2))
    _parts.shared(z0, 2, 1)  # the counters, which the first launch of all makes
    table, grad = (torch.empty(shape, device="meta") for shape in ((k, d), (n, k)))

    def work() -> None:
        kernels.distance(Gap(z0, z1), Table(table, None))
        if both:
            kernels.distance_backward(grad, Gap(z0, z1), Table(table, None))

    return launched(work)


def info_nce(n: int, d: int, k: int, way: str, dtype: torch.dtype = torch.bfloat16) -> list[Piece]:
    """Both ways, forward and backward. ``way``: one of ``_WAYS``; the first two are Triton's backend."""
    from mast_ops.kernels.chunked import contrast as chunked
    from mast_ops.kernels.chunked import units
    from mast_ops.kernels.contract import Contrast
    from mast_ops.kernels.triton import contrast

    z0, z1 = (torch.empty(n, d, dtype=dtype, device="meta") for _ in range(2))
    masks, one, ids = torch.empty(k, d, device="meta"), torch.empty((), device="meta"), torch.empty(n, device="meta")
    problem = Contrast(z0, z1, masks, one, ids.long(), ids.long(), None, True)
    with (
        patch("mast_ops.kernels.triton._plan.WIDE", 0 if way == "library" else math.inf),
        patch.object(chunked, "units_of", lambda z: units.HalfUnits if is_half(dtype) else units.Units),  # as on CUDA
    ):
        return launched(lambda: (chunked if way == "chunked" else contrast).fused(problem, (1.0, 1.0)))


_WAYS = {"kernels": "products by the kernels", "library": "products by the library", "chunked": "chunked"}


def _all_pairs(d: int, k: int, way: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Callable[[], list[Piece]]]:
    title = f"InfoNCE both, {_WAYS[way]}, N=32768 D={d} K={k}"
    title += ", float32 in TF32" if dtype == torch.float32 else ""
    return {title: partial(info_nce, 32768, d, k, way, dtype)}


TARGETS: dict[str, Callable[[], list[Piece]]] = {
    "pairs forward, N=4096 D=8192 K=15": partial(pairs, 4096, 8192, 15, False),
    "pairs both, N=4096 D=8192 K=15": partial(pairs, 4096, 8192, 15, True),
    **_all_pairs(256, 15, "kernels"),
    **_all_pairs(256, 15, "library"),
}
for _d in (512, 1024, 2048, 4096):
    for _way in _WAYS:
        TARGETS |= _all_pairs(_d, 1, _way)
        if _way != "kernels":  # for float32 they multiply three times in TF32
            TARGETS |= _all_pairs(_d, 1, _way, torch.float32)


def summary(pieces: list[Piece]) -> list[dict[str, Any]]:
    """Milliseconds by name of kernel, PyTorch's launches together, and of all with the gaps between launches."""
    rows: dict[str, dict[str, Any]] = {}
    for name, overlapped, in_turn, limit, ours in sorted(pieces, key=lambda piece: piece.limit == "gap"):
        key = name if ours else "PyTorch's"
        row = rows.setdefault(key, {"kernel": key, "launches": 0, "overlapped": 0.0, "in turn": 0.0, "limit": limit})
        row["launches"] += 1
        row["overlapped"] += overlapped * 1e3
        row["in turn"] += in_turn * 1e3
    gaps = len(pieces) * GAP * 1e3
    whole = [sum(row[key] for row in rows.values()) + gaps for key in ("overlapped", "in turn")]
    names = ("kernel", "launches", "overlapped", "in turn", "limit")
    return [*rows.values(), dict(zip(names, ("all, with gaps", len(pieces), *whole, ""), strict=True))]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.predict", description=__doc__)
    parser.add_argument("--only", default="", metavar="PATTERN", help="titles in which this expression is found")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    tables = {}
    for title, make in TARGETS.items():
        if not re.search(args.only, title):
            continue
        tables[title] = summary(make())
        dtype = "" if "float" in title else ", bfloat16"
        print(f"\n{title}{dtype}, H100 SXM5; predicted, not measured\n")
        print("| kernel | launches | overlapped, ms | in turn, ms | limit |\n| --- | ---: | ---: | ---: | --- |")
        for row in tables[title]:
            print("| {kernel} | {launches} | {overlapped:.3f} | {in turn:.3f} | {limit} |".format(**row))
    if args.json:
        args.json.write_text(json.dumps({"note": "predicted, not measured", "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
