"""Whether one set of features serves tasks that want different invariances: every method, table, JSON and figures.

python -m benchmarks.evidence --quick   # the main methods, short runs, one seed
python -m benchmarks.evidence           # every suite but the tuning of rivals, on 5 seeds
python -m benchmarks.evidence --suite tuning --probe ridge --seeds 0 1
python -m benchmarks.evidence --suite methods --device cuda --data DIR   # a folder of one folder per class

Runs that are done are kept in --out and not done again.
"""

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import machine
from benchmarks.evidence import report
from benchmarks.evidence.methods import SUITES
from benchmarks.evidence.runs import Run, execute, num_classes
from benchmarks.evidence.train import PROBES, Settings, precision

SEEDS = (10, 11, 12, 13, 14)  # none of those that the formulation was tuned on
QUICK = r"vicreg/(composed|factorised|half|fixed|mast-uncertainty)$"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    settings = Settings(args.steps, args.batch, args.device, args.probe)
    folder = str(args.data) if args.data else None
    runs = [
        Run(suite, method, seed, settings, folder, str(args.out / "runs"))
        for suite in args.suite
        for seed in args.seeds
        for method in SUITES[suite]
        if re.search(args.only, method)
    ]
    if not runs:
        sys.exit(f"error: --only: got {args.only!r}, wanted an expression found in one of: {', '.join(report.names())}")
    results: dict[str, dict[str, dict[int, Any]]] = {}
    with tqdm(total=len(runs), unit="run", smoothing=0) as bar:
        for run, result in execute(runs, args.jobs):
            results.setdefault(run.suite, {}).setdefault(run.method, {})[run.seed] = result
            bar.set_postfix_str(f"{run.method} {run.seed}")
            bar.update()
    document = {
        **machine.record(args.device),
        "convolutions": str(precision(args.device)).removeprefix("torch."),
        "command": shlex.join(["python", "-m", "benchmarks.evidence", *argv]),
        "settings": settings._asdict(),
        "num_classes": num_classes(folder),
        "seeds": args.seeds,
        "results": report.sorted_results(results),
    }
    print(report.text(document))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.json or args.out / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    report.figures(document, path.parent)
    print(f"\n{path.name} and figures are in {path.parent}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", nargs="+", choices=SUITES, default=None, help="default: all but tuning; with --quick, methods")
    add("--only", metavar="REGEX", help="methods whose name it is found in")
    add("--seeds", type=int, nargs="+", help="default: 10 to 14; with --quick, 10")
    add("--steps", type=int, help="of each run; default 600, with --quick 300")
    add("--batch", type=int, default=128)
    add("--probe", choices=PROBES, default=PROBES[0], help="ridge: in closed form, for many trials; default: logistic")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--jobs", type=int, help="runs at a time; default: one a core, or one on a GPU")
    add("--data", type=Path, metavar="DIR", help="a folder of images, one folder per class, in place of the digits")
    add("--out", type=Path, default=Path("out/evidence"), help="folder of runs, of JSON and of figures")
    add("--json", type=Path, metavar="FILE", help="where the results go, figures beside them; default: into --out")
    add("--quick", action="store_true")
    args = parser.parse_args(argv)
    args.suite = args.suite or (["methods"] if args.quick else [name for name in SUITES if name != "tuning"])
    args.only = args.only if args.only is not None else (QUICK if args.quick else "")
    args.seeds = args.seeds or ([SEEDS[0]] if args.quick else list(SEEDS))
    args.steps = args.steps or (300 if args.quick else 600)
    args.jobs = args.jobs or (1 if args.device == "cuda" else os.cpu_count() or 1)
    if args.steps < 1 or args.batch < 2 or args.jobs < 1:
        parser.error(f"--steps, --batch, --jobs: got {args.steps}, {args.batch}, {args.jobs}, wanted at least 1, 2, 1")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"--data: got {args.data}, wanted a folder")
    return args


if __name__ == "__main__":
    main()
