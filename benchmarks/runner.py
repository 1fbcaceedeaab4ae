"""One case, measured: every contender checked, its bytes counted, and all of them timed in turn."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import errors, memory, timing
from benchmarks.case import Case, Contender, Inputs, Loss, Settings
from benchmarks.inputs import draw_sets
from benchmarks.limits import Ceilings, product_name
from benchmarks.progress import progress
from benchmarks.stats import summary

_FEWEST = {True: 3, False: 7}  # rounds, quick or not
_WARM_UP = 2  # runs beside those that check and count


class _Ready(NamedTuple):
    contender: Contender
    repeat: timing.Repeat
    measured: dict[str, Any]


def run_case(case: Case, settings: Settings, ceilings: Ceilings) -> dict[str, Any]:
    """Everything about one case that the JSON file holds."""
    case = case.select(settings)
    skipped = dict(case.skipped)
    if settings.compile:
        torch._dynamo.reset()  # else the code of earlier cases counts against the limit of recompilations
    sets = draw_sets(case, settings)
    references: dict[Loss, list[Tensor]] = {}
    ready: list[_Ready] = []
    with progress(case.name) as step:
        for contender in case.contenders:
            step(f"preparing {contender.name}")
            try:
                ready.append(_prepare(contender, case, sets, settings, references))
            except Exception as error:
                if contender.role == "ours":
                    raise
                skipped[contender.name] = f"failed: {_first_line(error)}"
            if settings.device == "cuda":
                torch.cuda.empty_cache()
        samples = timing.interleave(
            {each.contender.name: each.repeat for each in ready},
            settings.seconds,
            _FEWEST[settings.quick],
            lambda: step("timing"),
        )
    return {
        "title": case.title,
        "shape": case.shape._asdict(),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "sets": len(sets),
        "limit": case.work.limit(ceilings),
        "own_product_flops": _own_product(case, settings, ceilings),
        "rows": rows([_row(each, case, samples[each.contender.name], ceilings, settings) for each in ready]),
        "skipped": skipped,
    }


def _prepare(
    contender: Contender, case: Case, sets: list[Inputs], settings: Settings, references: dict[Loss, list[Tensor]]
) -> _Ready:
    loss = contender.loss
    if contender.compile == "whole":
        loss = torch.compile(loss, fullgraph=True, dynamic=False)
    formula = contender.reference or case.reference
    if formula not in references:
        references[formula] = errors.reference(formula, sets[0])
    error = errors.worst(errors.outcome(loss, sets[0]), references[formula])
    for number in range(_WARM_UP):
        errors.outcome(loss, sets[number])
    bytes_ = memory.measure(loss, sets[0])
    repeat, how = (
        timing.on_cuda(loss, sets) if settings.device == "cuda" else (timing.on_host(loss, sets), "host clock")
    )
    measured = {
        "error": error if math.isfinite(error) else None,
        "ok": error <= errors.tolerance(settings.dtype),
        "bytes": bytes_,
        "timed": how,
    }
    return _Ready(contender, repeat, measured)


def _own_product(case: Case, settings: Settings, ceilings: Ceilings) -> float | None:
    return ceilings.products.get(product_name(case.product, settings.dtype)) if case.product else None


def _row(
    ready: _Ready, case: Case, samples: list[timing.Sample], ceilings: Ceilings, settings: Settings
) -> dict[str, Any]:
    total = summary([sample.total for sample in samples])
    limit: Any = (ready.contender.work or case.work).limit(ceilings)
    return {
        "name": ready.contender.name,
        "role": ready.contender.role,
        "forward_ms": summary([sample.forward for sample in samples]),
        "total_ms": total,
        "repeats": len(samples),
        "limit_ms": limit["total_ms"],
        "share_of_limit": limit["total_ms"] / total["median"],
        **ready.measured,
    }


def rows(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With each row's ratios to the loop and to ours; None where that was left out."""
    median = {row["role"]: row["total_ms"]["median"] for row in measured if row["role"] != "other"}
    for row in measured:
        own = row["total_ms"]["median"]
        row["loop_over_it"] = median["loop"] / own if "loop" in median else None
        row["it_over_ours"] = own / median["ours"] if "ours" in median else None
    return measured


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
