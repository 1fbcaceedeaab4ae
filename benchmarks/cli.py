"""The command: measure suites, print tables, write JSON and plots."""

import argparse
import json
import re
import shlex
import sys
import warnings
from collections.abc import Callable
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
    arguments = {name: value for name, value in vars(args).items() if name != "resume"} | {
        "json": args.json and str(args.json)
    }
    facts = {
        "command": shlex.join(["python", "-m", "benchmarks", *(each for each in argv if each != "--resume")]),
        "arguments": arguments,
    }
    begun = unfinished(args.json, facts, machine.record(args.device)) if args.resume else None

    def save(document: dict[str, Any]) -> None:
        if args.json:
            write(args.json, document | facts)

    document = measure(args.suite, settings, save, begun)
    if args.json and document["scaling"]:
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
    add("--resume", action="store_true", help="go on with the file of --json that a run which was cut off has left")
    add("--only", default="", metavar="REGEX", help="contenders whose name it is found in")
    add("--compile", action=argparse.BooleanOptionalAction, help="whether torch.compile takes part")
    args = parser.parse_args(argv)
    if args.compile is None:
        args.compile = not args.quick
    if args.seconds is None:
        args.seconds = 0.2 if args.quick else 10.0
    if args.device == "cuda" and not cuda:
        parser.error("--device: got 'cuda', wanted 'cpu': torch sees no CUDA device")
    if args.resume and not args.json:
        parser.error("--resume: got no --json, wanted the file to go on with")
    if args.seconds <= 0:
        parser.error(f"--seconds: got {args.seconds}, wanted > 0")
    try:
        re.compile(args.only)
    except re.error as error:
        parser.error(f"--only: got {args.only!r}, wanted a regular expression: {error}")
    return args


def unfinished(path: Path, facts: dict[str, Any], here: dict[str, Any]) -> dict[str, Any] | None:
    """What a run that was cut off has measured by the same command, of the same code, on the same machine."""
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    wanted = {"arguments": facts["arguments"], **{name: here[name] for name in ("machine", "versions", "git")}}
    for name, value in wanted.items():
        if document.get(name) != value:
            sys.exit(f"error: --resume: got {path} with {name} {document.get(name)}, wanted {value}")
    return document


def write(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all, since a run may be ended at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    part.replace(path)


def measure(
    suites: list[str],
    settings: Settings,
    save: Callable[[dict[str, Any]], object] = lambda document: None,
    begun: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure, print each table and save everything as soon as it is there; not again what has ``begun``."""
    cases = [make(settings) for name, makers in SUITES.items() if name in suites for make in makers]
    measured = [case for case in cases if case.select(settings).contenders]
    if not measured and SCALING not in suites:
        names = "; ".join(sorted({contender.name for case in cases for contender in case.contenders}))
        sys.exit(f"error: --only: got {settings.only!r}, wanted an expression that is found in one of: {names}")
    document = begun or {"schema": SCHEMA, **machine.record(settings.device)}
    if begun:
        ceilings = limits.Ceilings(**document["ceilings"])
    else:
        products = [case.product for case in measured if case.product]
        ceilings = limits.measure(settings.device, settings.dtype, settings.quick, products)
        document |= {"ceilings": asdict(ceilings), "operators": {}, "scaling": []}
    print(tables.ceilings(asdict(ceilings)), flush=True)
    for case in measured:
        if case.name not in document["operators"]:
            document["operators"][case.name] = run_case(case, settings, ceilings)
            save(document)
        print("\n" + tables.text(case.name, document["operators"][case.name]), flush=True)
    for point in sweep(settings, ceilings, list(document["scaling"])) if SCALING in suites else ():
        document["scaling"].append(point)
        save(document)
    save(document)
    return document


def _plot(document: dict[str, Any], path: Path) -> None:
    try:
        from benchmarks.plots import plot_scaling
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    plot_scaling(document, path)
