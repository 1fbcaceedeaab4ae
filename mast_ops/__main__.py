"""The command line: ``mast-ops inspect CHECKPOINT`` says what the masks of a trained model say."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from mast_ops import __version__, inspection
from mast_ops._checks import check_fraction
from mast_ops._files import write_all
from mast_ops.checkpoints import StoredHead, load_heads

_PICTURES = (".png", ".pdf", ".svg")
_MOST_DRAWN, _LONGEST_DRAWN = 64, 40  # a picture of more takes minutes, and one of longer names has no room for masks


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        _inspect(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error can be said
    except BrokenPipeError:  # who reads it has seen enough
        _drop_what_is_left()
        return 1
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        _print(f"error: {inspection.printable(str(error) or type(error).__name__)}", sys.stderr)
        _drop_what_is_left()
        return 2
    return 0


def _drop_what_is_left() -> None:
    """What the output could not take would make Python complain once more at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    add("--threshold", type=float, default=0.5, help="a dimension is closed below this share of its row's maximum; 0.5")
    add("--plot", type=Path, metavar="FILE", help="draw what the masks close (.png, .pdf, .svg)")
    add("--json", type=Path, metavar="FILE", help="write everything that is printed, as numbers")
    return parser


def _inspect(args: argparse.Namespace) -> None:
    check_fraction("--threshold", args.threshold)
    _check_places(args)
    head = _choose(load_heads(args.checkpoint), args.head)
    description = inspection.describe(head, threshold=args.threshold)
    text = inspection.text(description)
    files: dict[Path, Callable[[Path], object]] = {}
    if args.plot:
        from mast_ops.plots import plot_summary  # matplotlib is an extra

        if len(head.subspaces) > _MOST_DRAWN:
            raise ValueError(f"--plot: got a head of {len(head.subspaces)} subspaces, wanted at most {_MOST_DRAWN}")
        figure = plot_summary(head.masks, _drawn(head.subspaces), threshold=args.threshold)
        files[args.plot] = _writer("--plot", args.plot, lambda path: figure.savefig(path, dpi=120))
    if args.json:
        words = json.dumps(description, indent=1, allow_nan=False) + "\n"
        files[args.json] = _writer("--json", args.json, lambda path: path.write_text(words))
    write_all(files)
    if not head.is_known:
        kind = inspection.printable(head.parameterization)
        _print(f"note: {kind} is no parameterisation of mast_ops: these are its bare weights", sys.stderr)
    _print(text, sys.stdout)


def _drawn(subspaces: Sequence[str]) -> list[str]:
    """Names beside a picture: of a length that leaves room for it, and unlike one another."""
    names = [inspection.printable(name) for name in subspaces]
    names = [name if len(name) <= _LONGEST_DRAWN else f"{name[:_LONGEST_DRAWN]}…" for name in names]
    return names if len(set(names)) == len(names) else [f"{name} ({i})" for i, name in enumerate(names)]


def _check_places(args: argparse.Namespace) -> None:
    """Where files would go: a folder that is there, and no file that is read or written as well."""
    taken = [("the checkpoint", args.checkpoint)]
    for option, path in (("--plot", args.plot), ("--json", args.json)):
        if path is None:
            continue
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise ValueError(f"{option}: got {path}, wanted a file in a folder that exists")
        for what, other in taken:
            if path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other)):
                raise ValueError(f"{option}: got {path}, wanted another file than {what}")
        taken.append((option, path))
    if args.plot and args.plot.suffix.lower() not in _PICTURES:
        raise ValueError(f"--plot: got {args.plot}, wanted a name that ends in {', '.join(_PICTURES)}")


def _writer(option: str, place: Path, write: Callable[[Path], object]) -> Callable[[Path], object]:
    def named(path: Path) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # of signs that a font lacks
                write(path)
        except ValueError as error:
            raise ValueError(f"{option}: got {place}: {error}") from error

    return named


def _print(text: str, stream: TextIO | None) -> None:
    """Also where the stream's encoding lacks some of the signs, or where it was closed before Python began."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _choose(heads: dict[str, StoredHead], name: str | None) -> StoredHead:
    if name is None and len(heads) == 1:
        return next(iter(heads.values()))
    if name not in heads:
        found = ", ".join(repr(place) for place in heads)
        raise ValueError(f"--head: got {name!r}, wanted one of the heads in this file: {found}")
    return heads[name]


if __name__ == "__main__":
    sys.exit(main())
