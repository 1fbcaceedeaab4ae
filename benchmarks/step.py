"""A whole training step with MAST against the same step without: what a user pays for it.

python -m benchmarks.step                                          # ResNet-18, 64 pixels, batch 64: a CPU's size
python -m benchmarks.step --model resnet50 --size 224 --batch 1024 --dtype bfloat16 --device cuda

Plain steps have lightly's loss. Both take views that are there already, so that no augmentation is timed. Needs timm
and lightly (the dev extra).
"""

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.tables import number, table
from benchmarks.timing import Sample, interleave
from mast_ops import MaskedSubspaceHead, SubspaceNTXentLoss, SubspaceVICRegLoss

SUBSPACES = ("crop", "flip", "color", "gray", "blur")
HIDDEN = 2048


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    torch.manual_seed(0)
    views = torch.randn(2, args.batch, 3, args.size, args.size, device=args.device)
    kind = torch.randint(len(SUBSPACES), (args.batch,), device=args.device)
    names = ("plain", "MAST", "MAST, uncertainty") if args.base == "vicreg" else ("plain", "MAST")
    steps = {name: make_step(args, name, views, kind) for name in names}
    for step in steps.values():
        step()  # the first one allocates, and tunes convolutions
    peaks = {name: peak(step, args.device) for name, step in steps.items()}
    samples = interleave(
        {name: timed(step, args.device) for name, step in steps.items()}, args.seconds, 5, lambda: None
    )
    seconds = {name: statistics.median(sample.total for sample in taken) for name, taken in samples.items()}
    document = machine.record(args.device) | {
        "command": shlex.join(["python", "-m", "benchmarks.step", *argv]),
        "arguments": vars(args) | {"json": args.json and str(args.json)},
        "seconds": {name: [sample.total for sample in taken] for name, taken in samples.items()},
        "peak_bytes": peaks,
    }
    print(
        f"{args.base}, {args.model}, {args.size} pixels, batch {args.batch}, "
        f"K={len(SUBSPACES)}, D={args.dim}, {args.dtype}"
    )
    rows = []
    for name in names:
        memory = "-" if peaks[name] is None else number(peaks[name] / 1e6)
        share = 100 * seconds[name] / seconds["plain"]
        rows.append([name, number(1e3 * seconds[name]), f"{share:.1f} %", memory])
    print(table(["step", "ms", "of the plain step's time", "peak MB"], rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base", choices=["vicreg", "simclr"], default="vicreg")
    add("--model", default="resnet18", help="of timm")
    add("--size", type=int, default=64, help="pixels")
    add("--batch", type=int, default=64)
    add("--dim", type=int, default=2048, help="D")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of autocast")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seconds", type=float, default=20.0, help="for each kind of step")
    add("--json", type=Path)
    return parser.parse_args(argv)


def make_step(args: argparse.Namespace, name: str, views: Tensor, kind: Tensor) -> Callable[[], None]:
    import timm

    backbone = timm.create_model(args.model, pretrained=False, num_classes=0)
    width = backbone.num_features
    projector: nn.Module = nn.Sequential(
        nn.Linear(width, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, args.dim)
    )
    if name != "plain":
        uncertainty: Any = "subspace" if "uncertainty" in name else None
        projector = MaskedSubspaceHead(
            projector, SUBSPACES, kinds=torch.eye(len(SUBSPACES)).bool(), uncertainty=uncertainty
        )
    criterion = make_criterion(args.base, plain=name == "plain")
    model = nn.Sequential(backbone, projector).to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    dtype = getattr(torch, args.dtype)

    def step() -> None:
        half = torch.autocast(args.device, dtype) if dtype != torch.float32 else contextlib.nullcontext()
        with half:
            out0, out1 = (model(view) for view in views)
            loss = criterion(out0, out1) if name == "plain" else criterion(out0, out1, kind=kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def make_criterion(base: str, plain: bool) -> nn.Module:
    if not plain:
        return SubspaceVICRegLoss() if base == "vicreg" else SubspaceNTXentLoss()
    from lightly.loss import NTXentLoss, VICRegLoss

    criterion: nn.Module = VICRegLoss() if base == "vicreg" else NTXentLoss()
    return criterion


def timed(step: Callable[[], None], device: str) -> Callable[[int], Sample]:
    def repeat(number: int) -> Sample:
        wait(device)
        start = time.perf_counter()
        step()
        wait(device)
        return Sample(0.0, time.perf_counter() - start)

    return repeat


def peak(step: Callable[[], None], device: str) -> int | None:
    """Bytes at the peak of a step; on a CPU nothing counts them cheaply."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    wait(device)
    return torch.cuda.max_memory_allocated()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
