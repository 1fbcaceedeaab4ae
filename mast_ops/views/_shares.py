"""How many pairs of each kind there are: shares, and a batch that keeps to them."""

from typing import Any

import torch
from torch import Tensor

from mast_ops._checks import check_dense, check_values


def checked_shares(weights: Any, num_kinds: int) -> Tensor:
    wanted = f"{num_kinds} finite numbers >= 0, one for each kind of pair, not all of them 0"
    if isinstance(weights, Tensor):
        check_dense("weights", weights)
        check_values("weights", weights)
        if weights.is_complex() or weights.dtype == torch.bool:
            raise TypeError(f"weights: got dtype {weights.dtype}, wanted {wanted}")
    elif isinstance(weights, list | tuple) and any(isinstance(one, bool) for one in weights):
        raise TypeError(f"weights: got {weights!r}, wanted {wanted}")
    try:
        given = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"weights: got {weights!r}, wanted {wanted}") from None
    if tuple(given.shape) != (num_kinds,):
        raise ValueError(f"weights: got shape {tuple(given.shape)}, wanted {wanted}")
    if not (given.isfinite().all() and (given >= 0).all() and (given > 0).any()):
        raise ValueError(f"weights: got {given.tolist()}, wanted {wanted}")
    shares = given / given.max()  # before the sum, which may be infinite
    return shares / shares.sum()


def proportioned(weights: Tensor, num_pairs: int, generator: torch.Generator | None) -> Tensor:
    """Kinds of so many pairs, int64, in random order: systematic sampling (Madow 1949).

    The kinds lie end to end on a line of length num_pairs, each as long as its expected count, and a kind's count is
    how many points of a grid of step 1, put down at random, fall on it. So of neighbours in the table, too, there
    are as many as expected or one off.
    """
    ends = num_pairs * weights.cumsum(0)
    # Half of the offset's step from any whole number: an end that is whole but for rounding counts as whole.
    offset = (torch.randint(2**32, (), generator=generator, device="cpu").double() + 0.5) / 2**32
    counts = (ends + offset).long().diff(prepend=torch.zeros(1, dtype=torch.int64, device="cpu"))
    kind = torch.repeat_interleave(torch.arange(len(weights), device="cpu"), counts)
    return kind[torch.randperm(num_pairs, generator=generator, device="cpu")]
