"""What every parameterisation of masks shares."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mast_ops._checks import check_count, check_number, check_positive, listed, refuse_script, shown
from mast_ops._dials import Checked, Checks
from mast_ops.masks._decay import keep_from_decay


class MaskParameterization(Checked, ABC):
    """K masks over D dimensions, grown from one free parameter per entry, ``weight`` of shape (K, D).

    ``weight`` stays in float32 when the model around it goes to half precision (``model.bfloat16()``): its steps are
    too small for half a mantissa. Embeddings in half precision take float32 masks.

    ``weight`` does not decay, in whatever group of an optimizer of torch (or a subclass) it stands: decay pulls it to
    zero, which is no neutral place. Sharded parameters are kept too. Where a framework flattens parameters (FSDP1
    without ``use_orig_params``, DeepSpeed), or brings an optimizer that is no subclass of torch's, it decays as the
    rest does: there :func:`mast_ops.param_groups` makes groups without decay.

    Args:
        num_subspaces: K, >= 1.
        dim: D, >= 1.
        mean: Mean of the normal distribution that ``weight`` starts from, finite.
        std: Its standard deviation; > 0, so that no two subspaces start alike.

    Raises:
        ValueError: ``num_subspaces`` or ``dim`` < 1, ``mean`` is not finite, or ``std`` is not a positive number.
        TypeError: One of them is no number.
    """

    checks: ClassVar[Checks] = {"mean": check_number, "std": check_positive}
    weight: nn.Parameter
    observes = False
    """Whether losses tell it, through ``observe``, what each augmentation explains: see :class:`AllocatedMasks`."""

    def __init__(self, num_subspaces: int, dim: int, *, mean: float, std: float) -> None:
        super().__init__()
        check_count("num_subspaces", num_subspaces)
        check_count("dim", dim)
        self.mean, self.std = check_number("mean", mean), check_positive("std", std)
        self.make_weight(num_subspaces, dim)
        self.reset_parameters()
        keep_from_decay(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        keep_from_decay(self)  # a copy, or one from a file

    def make_weight(self, num_subspaces: int, dim: int) -> None:
        """Registers ``weight``, without values."""
        self.weight = nn.Parameter(torch.empty(num_subspaces, dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts anew, as in the constructor: after ``to_empty``, for example. Sharded weights start as rank 0's."""
        weight: Tensor = self.weight
        if not hasattr(weight, "device_mesh"):
            self.start(weight)
            return
        from torch.distributed.tensor import DTensor, distribute_tensor  # half a second of import, which few need

        assert isinstance(weight, DTensor)
        whole = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        self.start(whole)
        weight.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements))

    def start(self, weight: Tensor) -> None:
        """Gives ``weight``, a plain (K, D) tensor, the values that training starts from."""
        nn.init.normal_(weight, self.mean, self.std)

    @property
    def num_subspaces(self) -> int:
        return _number(self.weight.shape[0])

    @property
    def dim(self) -> int:
        return _number(self.weight.shape[1])

    @abstractmethod
    def forward(self) -> Tensor:
        """The masks, (K, D), in the dtype of ``weight``."""

    __prepare_scriptable__ = refuse_script

    def observe(self, explained: Tensor, weight: Tensor | None = None, *, gathered: bool = False) -> None:
        """What losses call where ``observes`` is True; see :meth:`AllocatedMasks.observe`."""
        raise NotImplementedError(f"{type(self).__name__}: observes is True, wanted a method observe")

    def settings(self) -> dict[str, float | list[float]]:
        """What turns ``weight`` into masks beside the class: a checkpoint carries it."""
        return {}

    def select(self, rows: Sequence[int | None]) -> Self:
        """A copy with these rows of ``weight``, in this order; None is a row that starts anew.

        Raises:
            ValueError: No rows, or one that is not there.
        """
        entries = listed(rows)
        if entries is None:
            raise TypeError(f"rows: got {shown(rows)}, wanted a list of indices")
        rows = entries
        if not rows:
            raise ValueError("rows: got none, wanted at least one")
        for row in rows:
            if row is not None and not check_count("rows", row, least=0) < self.num_subspaces:
                raise ValueError(f"rows: got {row}, wanted 0 to {self.num_subspaces - 1}, or None")
        chosen = copy.deepcopy(self)
        chosen.make_weight(len(rows), self.dim)
        chosen.to(self.weight.device, self.weight.dtype)
        chosen.requires_grad_(self.weight.requires_grad)
        chosen.reset_parameters()  # a row that starts anew starts as its class has it
        for i, row in enumerate(rows):
            if row is not None:
                chosen.weight.data[i] = self.weight.data[row]
        return chosen

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(x: Tensor) -> Tensor:
            moved = fn(x)
            return x.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"num_subspaces={self.num_subspaces}, dim={self.dim}"


def _number(size: int) -> int:
    """Python's own, where torch.jit.trace gives a tensor: weights have the sizes that they have."""
    return int(size) if isinstance(size, Tensor) else size
