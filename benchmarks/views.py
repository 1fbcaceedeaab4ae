"""Pairs of views against plain views by the same transforms, as many: what sharing draws costs a data loader.

python -m benchmarks.views --json benchmarks/results/views.json
python -m benchmarks.views --only item-96 batch-96 --seconds 60

SimCLR's recipe: torchvision's transforms on one PIL image, kornia's on a batch of 64. Needs both (the dev extra). All
that a machine does beside it hits both in turn; the ratio is the median over rounds, each of which makes both.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import machine
from benchmarks.tables import number, revision, table
from benchmarks.timing import Repeat, Sample, interleave
from mast_ops import FactorizedViews, recipes
from mast_ops.views._steps import local_name

BATCH = 64
PAIRS = 12  # calls for one image in a repeat: more than a deck


class Case(NamedTuple):
    title: str
    size: int
    source: tuple[int, int] | None = None  # of the PIL image, width first; None: a batch of `size`
    local_size: int | None = None  # of six more views, for multi-crop


CASES = {
    "item-96": Case("torchvision, one image of 96 pixels, as in STL-10", 96, (96, 96)),
    "item-224": Case("torchvision, 224 pixels of one image of 500 x 375", 224, (500, 375)),
    "multi-crop": Case("multi-crop: 2 views of 224 pixels and 6 of 96, of one image of 500 x 375", 224, (500, 375), 96),
    "batch-32": Case(f"kornia, batch of {BATCH}, 32 pixels", 32),
    "batch-64": Case(f"kornia, batch of {BATCH}, 64 pixels", 64),
    "batch-96": Case(f"kornia, batch of {BATCH}, 96 pixels", 96),
    "batch-224": Case(f"kornia, batch of {BATCH}, 224 pixels", 224),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        "python -m benchmarks.views", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the two, in each case")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    document = machine.record("cpu") | {"command": shlex.join(["python", "-m", "benchmarks.views", *argv]), "cases": {}}
    for name in args.only:
        case = CASES[name]
        views, x = on_item(case) if case.source else on_batch(case)
        pairs = PAIRS if case.source else 1
        document["cases"][name] = {"title": case.title, "images": pairs if case.source else BATCH}
        document["cases"][name] |= measure(views, x, pairs, args.seconds)
        if args.json:
            args.json.write_text(json.dumps(document, indent=1) + "\n")
        print(f"{name}: {document['cases'][name]['ratio']['median']:.2f}", flush=True)
    print(markdown(document))


def on_item(case: Case) -> tuple[FactorizedViews, Any]:
    from PIL import Image

    width, height = case.source or (case.size, case.size)
    coarse = torch.randint(256, (height // 16 + 1, width // 16 + 1, 3), dtype=torch.uint8).numpy()
    options: dict[str, Any] = {}
    if case.local_size is not None:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(case.local_size, scale=(0.05, 0.14), antialias=True)
        options = {"num_local_views": 6, "local_augmentations": {"crop": crop}}
    return recipes.make_views("simclr", case.size, **options), Image.fromarray(coarse).resize((width, height))


def on_batch(case: Case) -> tuple[FactorizedViews, Any]:
    """The same recipe as `mast_ops.recipes` has, of kornia."""
    from kornia import augmentation

    size, strength = case.size, 0.5 if case.size <= 32 else 1.0
    augmentations = {
        "crop": augmentation.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        "flip": augmentation.RandomHorizontalFlip(p=0.5),
        "color": augmentation.ColorJitter(*(strength * part for part in (0.8, 0.8, 0.8, 0.2)), p=0.8),
        "gray": augmentation.RandomGrayscale(p=0.2),
    }
    if size > 32:
        kernel = size // 10 // 2 * 2 + 1
        augmentations["blur"] = augmentation.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5)
    finalize = augmentation.Normalize(torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
    return FactorizedViews(augmentations, batched=True, finalize=finalize), torch.rand(BATCH, 3, size, size)


def measure(views: FactorizedViews, x: Any, pairs: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of both, and the ratio, each with its quartiles over the rounds."""
    last = [views._finalize] if views._finalize else []
    steps = [*views._calls.values(), *last]
    local_steps = [*(views._local_calls.get(local_name(name), call) for name, call in views._calls.items()), *last]

    def plain() -> None:
        for view in [steps] * views.num_views + [local_steps] * views.num_local_views:
            y = x
            for step in view:
                y = step(y)

    for _ in range(10):  # the first uses, with their trials
        views(x)
        plain()
    taken = interleave({"plain": timed(plain, pairs), "ours": timed(lambda: views(x), pairs)}, seconds, 5, lambda: None)
    times = {name: [1e3 * sample.total / pairs for sample in samples] for name, samples in taken.items()}
    ratios = [ours / plain for ours, plain in zip(times["ours"], times["plain"], strict=True)]
    return {name: spread(values) for name, values in (times | {"ratio": ratios}).items()} | {"rounds": len(ratios)}


def timed(call: Callable[[], object], times: int) -> Repeat:
    def repeat(number: int) -> Sample:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return Sample(0.0, time.perf_counter() - start)

    return repeat


def spread(values: list[float]) -> dict[str, float]:
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": first, "q3": third}


def markdown(document: dict[str, Any]) -> str:
    """One line a case, under a caption."""
    where, versions = document["machine"], document["versions"]
    lines = []
    for case in document["cases"].values():
        plain, ours, ratio = (case[name] for name in ("plain", "ours", "ratio"))
        times = [number(each["median"]) for each in (plain, ours)]
        quartiles = f"{ratio['q1']:.2f} - {ratio['q3']:.2f}, {case['rounds']} rounds"
        lines.append([case["title"], *times, f"**{ratio['median']:.2f}** ({quartiles})"])
    caption = (
        f"{where['cpu']}, {where['threads']} thread{'s' * (where['threads'] > 1)} of {where['cores']} cores, torch "
        f"{versions['torch']}; {revision(document)}; quartiles in brackets. `{document['command']}`"
    )
    return f"{caption}\n\n" + table(["SimCLR's recipe", "plain views, ms", "ours, ms", "ratio"], lines)


if __name__ == "__main__":
    main()
