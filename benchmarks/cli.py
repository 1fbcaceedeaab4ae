"""The command: measure suites, print tables, write JSON and plots."""

import argparse
import json
import re
import shlex
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import limits, machine, tables
from benchmarks.case import Settings
from benchmarks.contenders import SUITES
from benchmarks.runner import run_case
from benchmarks.scaling import sweep
from mast_ops.ops import BACKENDS

SCHEMA = 1
SCALING = "scaling"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    settings = Settings(
        args.device, getattr(torch, args.dtype), args.backend, args.quick, args.compile, args.seconds, args.only
    )
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")  # as the environment asks
    document = measure(args.suite, settings)
    document["command"] = shlex.join(["python", "-m", "benchmarks", *argv])
    document["arguments"] = vars(args) | {"json": args.json and str(args.json)}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        if document["scaling"]:
            _plot(document, args.json.with_suffix(".png"))
    wrong = [
        f"{name}: {row['name']}"
        for name, operator in document["operators"].items()
        for row in operator["rows"]
        if not row["ok"] and row["name"].startswith("mast_ops")  # the tables mark others: some overflow in float16
    ]
    if wrong:
        sys.exit(f"error: got a large error against float64 from {'; '.join(wrong)}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--suite", nargs="+", choices=[*SUITES, SCALING], default=list(SUITES), help="default: all but scaling")
    add("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--backend", choices=BACKENDS, default="auto", help="what runs mast_ops")
    add("--quick", action="store_true", help="small shapes and few repeats; no compiled contenders unless --compile")
    add("--seconds", type=float, help="time for each contender; default 10, with --quick 0.2")
    add("--json", type=Path, help="write everything measured to this file; plots go beside it")
    add("--only", default="", metavar="REGEX", help="contenders whose name it is found in")
    add("--compile", action=argparse.BooleanOptionalAction, help="whether torch.compile takes part")
    args = parser.parse_args(argv)
    if args.compile is None:
        args.compile = not args.quick
    if args.seconds is None:
        args.seconds = 0.2 if args.quick else 10.0
    if args.device == "cuda" and not cuda:
        parser.error("--device: got 'cuda', wanted 'cpu': torch sees no CUDA device")
    if args.seconds <= 0:
        parser.error(f"--seconds: got {args.seconds}, wanted > 0")
    try:
        re.compile(args.only)
    except re.error as error:
        parser.error(f"--only: got {args.only!r}, wanted a regular expression: {error}")
    return args


def measure(suites: list[str], settings: Settings) -> dict[str, Any]:
    """Measure, and print each table as soon as it is there."""
    cases = [make(settings) for name, makers in SUITES.items() if name in suites for make in makers]
    measured = [case for case in cases if case.select(settings).contenders]
    if not measured and SCALING not in suites:
        names = "; ".join(sorted({contender.name for case in cases for contender in case.contenders}))
        sys.exit(f"error: --only: got {settings.only!r}, wanted an expression that is found in one of: {names}")
    document = {"schema": SCHEMA, **machine.record(settings.device)}
    products = [case.product for case in measured if case.product]
    ceilings = limits.measure(settings.device, settings.dtype, settings.quick, products)
    document |= {"ceilings": asdict(ceilings)}
    print(tables.ceilings(asdict(ceilings)), flush=True)
    operators = {}
    for case in measured:
        operators[case.name] = run_case(case, settings, ceilings)
        print("\n" + tables.text(case.name, operators[case.name]), flush=True)
    points = sweep(settings, ceilings) if SCALING in suites else []
    return document | {"operators": operators, "scaling": points}


def _plot(document: dict[str, Any], path: Path) -> None:
    try:
        from benchmarks.plots import plot_scaling
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    plot_scaling(document, path)
