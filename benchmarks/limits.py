"""Physical limits: the least work of each operator, over rates measured on this machine in the same run.

N samples, D dimensions, K subspaces, e bytes an element. A limit is a bound from below, not a prediction: reading
inputs, writing gradients and arithmetic are taken to overlap perfectly. What is put aside and fetched again stands
between two phases of arithmetic and comes on top. Caches hold nothing from the forward pass to the backward.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch


@dataclass(frozen=True)
class Ceilings:
    """Rates of this machine, per second."""

    bandwidth: float  # bytes, read and written, of a large copy
    flops: float  # of the best matrix product
    products: dict[str, float] = field(default_factory=dict)  # of every shape that was tried, by its name


@dataclass(frozen=True)
class Cost:
    flops: float
    bytes: float  # inputs read, gradients written
    stored: float = 0  # bytes of intermediates, written and read again

    def seconds(self, ceilings: Ceilings) -> float:
        overlapped = max(self.flops / ceilings.flops, self.bytes / ceilings.bandwidth)
        return overlapped + self.stored / ceilings.bandwidth


@dataclass(frozen=True)
class Work:
    """Forward, and forward and backward together in whichever of several ways is the fastest."""

    forward: Cost
    total: tuple[Cost, ...]
    why: str

    def limit(self, ceilings: Ceilings) -> dict[str, object]:
        forward, total = self.forward.seconds(ceilings), min(cost.seconds(ceilings) for cost in self.total)
        return {"forward_ms": forward * 1e3, "total_ms": total * 1e3, "why": self.why, **asdict(self)}


def pairs(n: int, d: int, k: int, e: int, products: int = 1) -> Work:
    """Forward reads z0 and z1; backward reads them again and writes both gradients, which it cannot do earlier
    since the upstream gradient is not known. ``products`` counts the (N, D) x (D, K) products in the forward
    pass, each with two of its size in the backward pass: 1 for distances, 3 for cosines, 0 where a mean over
    samples lets the sum go first.
    """
    flops = 2 * n * d * k * products
    traffic = 2 * n * d * e
    why = f"bytes: 2NDe forward, 4NDe backward; flops: {6 * products}NDK" if products else "bytes: 2NDe, then 4NDe"
    return Work(Cost(flops, traffic), (Cost(3 * flops, 3 * traffic),), why)


def info_nce(n: int, d: int, k: float, e: int) -> Work:
    """Both directions from one N x N score matrix a subspace; with U = 2 N^2 D K flops the scores cost 1U, and
    gradients of z0 and z1 1U each. No gradient can be made before a row's and a column's sums are complete, so
    the scores are either kept in between (written and read once) or computed again, 1U: 3U and bytes, or 4U.
    ``k`` is the sum of the masks' densities: a column where a mask is zero costs nothing.
    """
    unit = 2 * n * n * d * k
    reads = 2 * n * d * e
    kept = Cost(3 * unit, 3 * reads, stored=2 * n * n * k * e)
    why = "U = 2 N^2 D K flops: 1U forward; 4U in all, or 3U and the scores written and read once"
    return Work(Cost(unit, reads), (Cost(4 * unit, 3 * reads), kept), why)


def nt_xent(n: int, d: int, k: float, e: int) -> Work:
    """The 2N x 2N scores are symmetric: with V = 2 (2N)^2 D K, half of them cost 0.5V, and so does computing
    them again; the gradient is one product of a symmetric 2N x 2N matrix with z, 1V. (The usual loop does 3V:
    all scores, and two products for the two sides of z z^T.)
    """
    unit = 2 * (2 * n) ** 2 * d * k
    reads = 2 * n * d * e
    kept = Cost(1.5 * unit, 3 * reads, stored=(2 * n) ** 2 * k * e)
    why = "V = 2 (2N)^2 D K flops: 0.5V forward; 2V in all, or 1.5V and half the scores written and read once"
    return Work(Cost(0.5 * unit, reads), (Cost(2 * unit, 3 * reads), kept), why)


def moments(n: int, d: int, k: int, e: int) -> Work:
    """The covariance is symmetric: N D^2 flops for half of it, again in the backward pass unless it is kept, and
    2 N D^2 for the product of z with the symmetric gradient. Pooling half the squares over K masks, and making
    the weights of the gradient from them, adds K D^2 each. (With no use of symmetry: 2, 2 and 2 N D^2.)
    """
    half, pooled = n * d * d, k * d * d
    reads = n * d * e
    redone = Cost(4 * half + 2 * pooled, 3 * reads)
    kept = Cost(3 * half + 2 * pooled, 3 * reads, stored=d * d * e)
    why = "flops: ND^2 + KD^2 forward; 4ND^2 + 2KD^2 in all, or 3ND^2 + 2KD^2 and half of C written and read once"
    return Work(Cost(half + pooled, reads), (redone, kept), why)


def measure(device: str, dtype: torch.dtype, quick: bool, own: list[tuple[int, int, int]]) -> Ceilings:
    """Copy bandwidth, and the rate of a few large matrix products and of the operators' ``own`` (m, k, n)."""
    seconds = 0.02 if quick else 1.0
    size = 2**22 if quick else 2**31 if device == "cuda" else 2**28
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / _best(lambda: target.copy_(source), device, seconds)
    side = 256 if quick else 8192 if device == "cuda" else 2048
    shapes = [(side, side, side), (side // 2, side, side // 2), (side * 2, side // 2, side * 2), *own]
    products = {
        product_name(shape, kind): _product_rate(*shape, device, kind, seconds)
        for shape in dict.fromkeys(shapes)
        for kind in dict.fromkeys((dtype, torch.float32))  # half precision is slower than single on some CPUs
    }
    return Ceilings(bandwidth, max(products.values()), products)


def product_name(shape: tuple[int, int, int], dtype: torch.dtype) -> str:
    return "{} x {} x {} {}".format(*shape, str(dtype).removeprefix("torch."))


def _product_rate(m: int, k: int, n: int, device: str, dtype: torch.dtype, seconds: float) -> float:
    a, b = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (n, k)))
    out = torch.empty(m, n, device=device, dtype=dtype)
    return 2 * m * k * n / _best(lambda: torch.mm(a, b.T, out=out), device, seconds)


def _best(run: Callable[[], object], device: str, seconds: float) -> float:
    """The fastest of many: a ceiling is what the machine can do, not what it does on average."""
    run()
    best, started, repeats = float("inf"), time.perf_counter(), 0
    while repeats < 3 or time.perf_counter() - started < seconds:
        best = min(best, _once(run, device))
        repeats += 1
    return best


def _once(run: Callable[[], object], device: str) -> float:
    if device != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
