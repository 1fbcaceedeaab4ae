"""What suites share whose models train side by side, on views that are rendered once for all of them."""

import argparse
import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.evidence.runs import keep
from benchmarks.evidence.train import LR, Settings

SEEDS = (10, 11, 12)
Wanted = TypeVar("Wanted")


class Descent:
    """The main suite's optimizer and schedule, over all that trains in some modules."""

    def __init__(self, modules: Iterable[nn.Module], steps: int) -> None:
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=LR)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, LR, total_steps=steps)

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()


def parser(name: str, doc: str | None, quick: str) -> argparse.ArgumentParser:
    """Of a suite, ``benchmarks.evidence.NAME``, with the options that all of them have."""
    made = argparse.ArgumentParser(
        f"python -m benchmarks.evidence.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--seeds", type=int, nargs="+", default=list(SEEDS))
    add("--steps", type=int, default=600)
    add("--batch", type=int, default=128)
    add("--out", type=Path, default=Path("out") / name, help="runs that are done are kept here")
    add("--json", type=Path, metavar="FILE", help="where the results go; default: into --out")
    add("--quick", action="store_true", help=quick)
    return made


def settings_of(args: argparse.Namespace) -> Settings:
    return Settings(args.steps, args.batch, "cpu", "ridge")


def kept(
    paths: dict[Wanted, Path], make: Callable[[list[Wanted]], Iterable[dict[str, Any]]]
) -> Iterable[tuple[Wanted, dict[str, Any]]]:
    """Each result, from its file; those that are missing are made together, and written first."""
    if missing := [one for one, path in paths.items() if not path.exists()]:
        for one, result in zip(missing, make(missing), strict=True):
            keep(paths[one], result)
    return [(one, json.loads(path.read_text())) for one, path in paths.items()]


def document(name: str, argv: list[str], args: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    return {
        **machine.record("cpu"),
        "command": shlex.join(["python", "-m", f"benchmarks.evidence.{name}", *argv]),
        "settings": settings_of(args)._asdict(),
        "seeds": args.seeds,
        "results": results,
    }


def write(made: dict[str, Any], args: argparse.Namespace) -> None:
    path = args.json or args.out / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n")
