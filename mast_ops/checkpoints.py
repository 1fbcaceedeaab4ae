"""Heads in a checkpoint file, whoever wrote it: only tensors are read, and nothing in the file is run."""

import argparse
import os
import pickle
import re
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mast_ops._checks import check_dense, check_is, check_masks, check_values
from mast_ops.head._predictor import bound_log_variance
from mast_ops.head._state import decode_state
from mast_ops.masks import masks_from_description
from mast_ops.pairs import Granularity

_STATE, _WEIGHT, _BIAS = "_extra_state", "masks.weight", "uncertainty.last.bias"
# What scripts keep beside a state_dict, which does nothing when it is made; paths as those that touch no file.
_HARMLESS = [
    (argparse.Namespace, "argparse.Namespace"),
    (types.SimpleNamespace, "types.SimpleNamespace"),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    *((PurePosixPath, f"{module}.PurePosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.PureWindowsPath") for module in ("pathlib", "pathlib._local")),
    # Lightning's hyperparameters
    *((dict, f"{module}.utilities.data.AttributeDict") for module in ("lightning_fabric", "lightning.fabric")),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
]
_DEEPEST = 8  # dictionaries inside one another


class StoredHead(NamedTuple):
    """A :class:`mast_ops.MaskedSubspaceHead` as a file holds it."""

    subspaces: tuple[str, ...]
    masks: Tensor
    """(K, D); the bare weights where ``parameterization`` is none of this library."""
    parameterization: str
    settings: dict[str, Any]
    kinds: Tensor | None
    """(S, K) bool: which augmentations differ in pairs of each kind; None for a head that was told names alone."""
    granularity: Granularity | None
    log_variance: Tensor | None
    """What the last layer's bias alone predicts: (1,) per sample, (K,) per subspace or (D,) per dimension."""
    is_known: bool
    """Whether ``parameterization`` is one of this library."""


def load_heads(path: str | Path) -> dict[str, StoredHead]:
    """Every head in a file that ``torch.save`` wrote, by its place in the file's dictionaries and modules.

    The file may hold a ``state_dict``, or dictionaries that hold one at some depth: those of Lightning, or
    ``{"model": ..., "optimizer": ...}``. It is read with ``weights_only=True``, on the CPU. Beside tensors and plain
    containers it may hold paths, the namespaces of argparse and types, and Lightning's hyperparameters.

    Args:
        path: The file.

    Raises:
        ValueError: It is missing, a folder, no checkpoint, damaged, or holds more than tensors and plain containers, no
            head, or one that contradicts itself or has masks or biases that are not finite.
        TypeError: ``path`` is no path.

    Source: ours.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from mast_ops import MaskedSubspaceHead
        >>> from mast_ops.checkpoints import load_heads
        >>> model = nn.ModuleDict({"head": MaskedSubspaceHead(nn.Linear(4, 8), subspaces=["crop", "color"])})
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save({"model": model.state_dict()}, file.name)
        ...     heads = load_heads(file.name)
        >>> heads["model.head"].subspaces, heads["model.head"].masks.shape
        (('crop', 'color'), torch.Size([2, 8]))
    """
    check_is("path", path, str | os.PathLike, "the path of a file")
    check_is("path", os.fspath(path), str, "the path of a file, as text")
    heads: dict[str, StoredHead] = {}
    contents = _read(Path(path))
    for place, state in _dictionaries(contents, (), set()):
        for key in state:
            if isinstance(key, str) and (key == _STATE or key.endswith(f".{_STATE}")):
                prefix = key.removesuffix(_STATE)
                if f"{prefix}{_WEIGHT}" in state:
                    name = ".".join(part for part in (*place, prefix.rstrip(".")) if part)
                    if name in heads:
                        raise ValueError(f"checkpoint: got two heads at {name!r}, wanted one at each place")
                    heads[name] = _head(name, state, prefix)
    if not heads:
        what = f"got {path}, a {type(contents).__name__} with no MaskedSubspaceHead in it"
        raise ValueError(f"checkpoint: {what}, wanted the state_dict of one")
    return heads


def _read(path: Path) -> object:
    wanted = f"checkpoint: got {path}, wanted a state_dict, or dictionaries with one in them, that torch.save wrote"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{wanted}: there is no such file") from None
    except (OSError, ValueError) as error:  # a name too long, with a NUL, in a folder that one may not enter, in a ring
        raise ValueError(f"{wanted}: it cannot be looked up ({error})") from error
    if path.is_dir():
        raise ValueError(
            f"{wanted}: it is a folder; dcp_to_torch_save makes a file of one of torch.distributed.checkpoint"
        )
    if not path.is_file():
        raise ValueError(f"{wanted}: it is no file, but a device or a pipe")
    try:
        harmless = torch.serialization.safe_globals([*_HARMLESS])
        with (
            harmless,
            warnings.catch_warnings(action="ignore"),
        ):  # of how the file was pickled, or that it is of TorchScript
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to run what is in it
        refused = re.search(
            r"(?:GLOBAL|Trying to call reduce for unrecognized function|Unsupported class) (\S+)", str(error)
        )
        what = f" ({refused[1]})" if refused else ""
        raise ValueError(
            f"{wanted}: it is another kind of file, or holds more than tensors and containers{what}; "
            "save the model's state_dict() alone, in a file of its own"
        ) from error
    except Exception as error:  # of many kinds, from zip, the file system and torch
        raise ValueError(f"{wanted}: it is damaged or another kind of file ({type(error).__name__})") from error


def _dictionaries(
    value: object, place: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    if not isinstance(value, Mapping) or id(value) in seen or len(place) > _DEEPEST:
        return
    seen.add(id(value))
    yield place, value
    for key, entry in value.items():
        name = str(key) if isinstance(key, str | int) else type(key).__name__
        yield from _dictionaries(entry, (*place, name), seen)


def _head(name: str, state: Mapping[Any, Any], prefix: str) -> StoredHead:
    try:
        described = decode_state(_plain(state[f"{prefix}{_STATE}"]))
        names, granularity, settings = tuple(described["subspaces"]), described["uncertainty"], described["masks"]
        weight: Any = _plain(state[f"{prefix}{_WEIGHT}"])
        check_masks(weight, name=_WEIGHT)
        _check_stored(_WEIGHT, weight)
        if len(weight) != len(names):
            raise ValueError(f"{_WEIGHT}: got masks of {len(weight)} subspaces, wanted {len(names)}")
        masks = masks_from_description(settings, weight)
        values = weight.detach() if masks is None else masks().detach()
        _check_finite(_WEIGHT, values)
        log_variance = _log_variance(_plain(state.get(f"{prefix}{_BIAS}")), granularity, weight)
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: {f'{name}: ' if name else ''}{error}") from error
    table = described["kinds"]
    return StoredHead(
        subspaces=names,
        masks=values,
        parameterization=settings["kind"],
        settings={key: value for key, value in settings.items() if key != "kind"},
        kinds=None if table is None else torch.tensor(table),
        granularity=granularity,
        log_variance=log_variance,
        is_known=masks is not None,
    )


def _plain(value: object) -> object:
    """A tensor without the attributes that a file may give it, which would be called in the place of its methods."""
    return Tensor.detach(value).as_subclass(Tensor) if isinstance(value, Tensor) else value


def _log_variance(bias: object, granularity: Granularity | None, weight: Tensor) -> Tensor | None:
    if granularity is None:
        if bias is not None:
            raise ValueError(f"{_BIAS}: got one, wanted none in a head without uncertainty")
        return None
    width = {"sample": 1, "subspace": weight.shape[0], "dimension": weight.shape[1]}[granularity]
    if not isinstance(bias, Tensor) or not bias.is_floating_point():
        raise ValueError(f"{_BIAS}: got {type(bias).__name__}, wanted a floating-point tensor of shape ({width},)")
    if tuple(bias.shape) != (width,):
        raise ValueError(f"{_BIAS}: got shape {tuple(bias.shape)}, wanted ({width},) for one per {granularity}")
    _check_stored(_BIAS, bias)
    _check_finite(_BIAS, bias)
    return bound_log_variance(bias.detach().float())


def _check_stored(name: str, tensor: Tensor) -> None:
    """A tensor whose numbers are all in the file: a view may repeat a few of them a million million times."""
    check_dense(name, tensor)
    check_values(name, tensor)
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > held:
        raise ValueError(f"{name}: got {tensor.numel()} numbers of which the file holds {held}, wanted all of them")


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(f"{name}: got NaN or infinity, wanted finite values")
