"""Many runs, each kept in a file as soon as it is done, so that an interrupted suite goes on where it stopped."""

import functools
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.evidence import data
from benchmarks.evidence.evaluate import Renderings, evaluate, subspaces, uncertainty
from benchmarks.evidence.factors import AUGMENTATIONS, Scenes
from benchmarks.evidence.methods import SUITES, canonical
from benchmarks.evidence.train import Settings, train


class Run(NamedTuple):
    suite: str
    method: str
    seed: int
    settings: Settings
    folder: str | None
    """Of images; None for the digits."""
    out: str

    @property
    def path(self) -> Path:
        parts = [*canonical(self.suite, self.method), self.seed, self.settings.steps, self.settings.batch]
        if self.settings.probe != "logistic":
            parts.append(self.settings.probe)
        if self.folder is not None:
            parts.append(hashlib.sha256(str(Path(self.folder).resolve()).encode()).hexdigest()[:8])
        name = " ".join(map(str, parts)).replace("/", "-").replace(" ", "_")
        return Path(self.out) / f"{name}.json"


def execute(runs: list[Run], jobs: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Results in the order in which they are there; those of an earlier call are read."""
    by_path: dict[Path, list[Run]] = {}
    for run in runs:
        by_path.setdefault(run.path, []).append(run)
    waiting = []
    for path, same in by_path.items():
        if path.exists():
            result = json.loads(path.read_text())
            yield from ((run, result) for run in same)
        else:
            waiting.append(same[0])
    for run, result in _each(waiting, jobs):
        yield from ((other, result) for other in by_path[run.path])


def _each(runs: list[Run], jobs: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if jobs == 1 or not runs:
        yield from map(_work, runs)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of workers, NumPy's threads too: beside each other they wait
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_work, runs)


def _work(run: Run) -> tuple[Run, dict[str, Any]]:
    method = SUITES[run.suite][run.method]
    train_scenes, test_scenes = _scenes(run.folder)
    start = time.perf_counter()
    trained = train(method, train_scenes, run.seed, run.settings)
    seconds = time.perf_counter() - start
    probe = run.settings.probe
    renderings = _renderings(run.folder, method.augmentations)
    result = {"seconds": seconds, "history": trained.history, **evaluate(trained, renderings, probe)}
    if trained.head is not None:
        result["subspaces"] = subspaces(trained, renderings, probe)
        if method.uncertainty in ("sample", "subspace"):
            result["uncertainty"] = uncertainty(trained, test_scenes)
    keep(run.path, result)
    return run, result


def keep(path: Path, result: dict[str, Any]) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result) + "\n")
    beside.rename(path)


@functools.cache
def num_classes(folder: str | None) -> int:
    """Without loading digits or images."""
    return 10 if folder is None else sum(path.is_dir() for path in Path(folder).iterdir())


@functools.cache
def _scenes(folder: str | None) -> tuple[Scenes, Scenes]:
    return data.load(None if folder is None else Path(folder))


@functools.cache
def _renderings(folder: str | None, augmentations: tuple[str, ...] = AUGMENTATIONS) -> Renderings:
    return Renderings(*_scenes(folder), augmentations)
