"""A callable's random draw: made under a seed, so that the same one can be made again."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mast_ops._checks import check_dense, check_values

Augmentation = Callable[..., Any]
_OTHER = 0x9E3779B9  # under torch's own seed numpy would give torch's very bits


def draw(name: str, call: Augmentation, x: Any, seed: int) -> Any:
    """What the callable makes of x, which it may overwrite; copied, as it may hand out one buffer twice."""
    return copied(drawn(name, call, x, seed))


def drawn(name: str, call: Augmentation, x: Any, seed: int) -> Any:
    """The same, not copied."""
    seed_generators(seed, x)
    if hasattr(call, "set_random_seed"):
        call.set_random_seed(seed)
    y = applied(call, x)
    if not is_image(y):
        raise TypeError(f"{name}: got {type(y).__name__} as its result, wanted a PIL image, array or tensor")
    if isinstance(y, Tensor):
        check_dense(name, y)
        check_values(name, y)
    return y


def applied(call: Augmentation, x: Any) -> Any:
    by_name = any(base.__module__.partition(".")[0] == "albumentations" for base in type(call).__mro__)
    return call(image=x)["image"] if by_name else call(x)


def seed_generators(seed: int, x: Any) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device, not only x's
    for device in devices_of(x):
        module = torch.get_device_module(device)
        one = module.default_generators[device.index] if hasattr(module, "default_generators") else module
        one.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed ^ _OTHER)


def states_of(x: Any) -> list[Any]:
    """All that seed_generators seeds, as values that == compares."""
    tensors = [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in devices_of(x))]
    states: list[Any] = [random.getstate(), *(state.tolist() for state in tensors)]
    if numpy := sys.modules.get("numpy"):
        _, words, *rest = numpy.random.get_state()
        states += [words.tolist(), rest]
    return states


@contextmanager
def outer_states_kept(x: Any) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    devices = devices_of(x)
    try:
        with torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):  # torch 2.11: no None
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


def devices_of(x: Any) -> list[torch.device]:
    """That of x, if it has a generator beside the CPU's."""
    return [x.device] if isinstance(x, Tensor) and x.device.type != "cpu" else []


def copied(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x.copy()


def same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, equal_nan=True)
    return type(x) is type(y) and bool(x.tobytes() == y.tobytes())


def alike(x: Any, y: Any) -> bool:
    """To the bit: what does nothing twice gives that."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.dtype == y.dtype and torch.equal(x, y)
    sizes = [getattr(image, "shape", image.size) for image in (x, y)]
    if type(x) is not type(y) or sizes[0] != sizes[1]:
        return False
    if hasattr(x, "getpixel") and x.getpixel(middle := tuple(length // 2 for length in x.size)) != y.getpixel(middle):
        return False
    return bool(x.tobytes() == y.tobytes())


def is_image(x: Any) -> bool:
    return isinstance(x, Tensor) or (hasattr(x, "copy") and hasattr(x, "size") and hasattr(x, "tobytes"))
