"""Summary of a few repeats."""

import statistics
from collections.abc import Sequence


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: the median, its quartiles, and the fastest."""
    if not seconds:
        raise ValueError("seconds: got none, wanted at least one repeat")
    ms = [1e3 * x for x in seconds]
    first, median, third = statistics.quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else 3 * ms
    return {"median": median, "q1": first, "q3": third, "min": min(ms)}
