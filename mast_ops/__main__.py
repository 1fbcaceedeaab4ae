"""The command line: ``python -m mast_ops inspect CHECKPOINT`` says what the masks of a trained model say."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mast_ops import __version__, inspection
from mast_ops._checks import check_fraction
from mast_ops.checkpoints import StoredHead, load_heads


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        _inspect(args)
    except BrokenPipeError:
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m mast_ops", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="masks, kinds of pairs and uncertainty in a checkpoint")
    add = inspect.add_argument
    add(
        "checkpoint", type=Path, help="a file of torch.save with a state_dict in it, at any depth; nothing in it is run"
    )
    add("--head", metavar="PLACE", help="which head, where the file holds several")
    add("--threshold", type=float, default=0.5, help="a dimension is open from this share of its row's maximum; 0.5")
    add("--plot", type=Path, metavar="FILE", help="draw masks, overlap and sharing (.png, .pdf, .svg)")
    add("--json", type=Path, metavar="FILE", help="write everything that is printed, as numbers")
    return parser


def _inspect(args: argparse.Namespace) -> None:
    check_fraction("--threshold", args.threshold)
    head = _choose(load_heads(args.checkpoint), args.head)
    description = inspection.describe(head, threshold=args.threshold)
    if args.plot:
        from mast_ops.plots import plot_summary  # matplotlib is an extra

        figure = plot_summary(head.masks, head.subspaces, threshold=args.threshold)
        _write(args.plot, lambda path: figure.savefig(path, dpi=120), "--plot")
    if args.json:
        _write(args.json, lambda path: path.write_text(json.dumps(description, indent=1) + "\n"), "--json")
    if not head.is_known:
        print(
            f"note: {head.parameterization} is no parameterisation of mast_ops: these are its bare weights",
            file=sys.stderr,
        )
    print(inspection.text(description))


def _choose(heads: dict[str, StoredHead], name: str | None) -> StoredHead:
    if name is None and len(heads) == 1:
        return next(iter(heads.values()))
    if name not in heads:
        found = ", ".join(repr(place) for place in heads)
        raise ValueError(f"--head: got {name!r}, wanted one of the heads in this file: {found}")
    return heads[name]


def _write(path: Path, write: Callable[[Path], object], option: str) -> None:
    """The whole file or none: written beside its place, then moved there."""
    if not path.parent.is_dir():
        raise ValueError(f"{option}: got {path}, wanted a file in a folder that exists")
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(beside)
        beside.replace(path)
    except ValueError as error:
        raise ValueError(f"{option}: got {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
