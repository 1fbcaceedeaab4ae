from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from mast_ops._checks import check_positive
from mast_ops._dials import Dial
from mast_ops.functional.contrastive import against_negatives, check_temperature, nt_xent
from mast_ops.functional.uncertainty import weighted_mean
from mast_ops.losses._base import SubspaceLoss, Terms
from mast_ops.losses._memory import MemoryBank, check_memory_bank_size, say_other_bank
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run


class _Temperature(Dial):
    """A number, or a tensor that is taken as it is; one that is learned is a parameter, as torch.nn has them."""

    @override
    def __set__(self, module: nn.Module, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            check_temperature(value)
            vars(module)["_temperature"] = vars(module)["_given"] = value
        else:
            vars(module).pop("_given", None)
            super().__set__(module, value)

    @override
    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> Any:
        if module is None:
            return self
        if "temperature" in module._parameters:
            return module._parameters["temperature"]
        if "_temperature" not in vars(module):
            raise AttributeError("temperature")
        given = vars(module).get("_given")
        return super().__get__(module, owner) if given is None else given


class SubspaceNTXentLoss(SubspaceLoss):
    """SimCLR's NT-Xent inside every subspace, averaged over samples and subspaces.

    With K = 1 and a mask of ones it equals lightly's ``NTXentLoss``. Predicted variances are used with
    ``difficulty_param`` alone.

    With a memory bank it is MoCo's loss: the anchors are those of the first view, each with its second view as the
    positive and the bank's embeddings as negatives; gradients reach the bank through masks alone. The bank takes the
    second views in after every call in which the first view has a gradient. What it keeps are whole embeddings, so that
    today's masks are compared on both sides. Without a momentum encoder old embeddings go stale: use one.

    Args:
        temperature: Divides the cosines; 0.5 as in lightly. An ``nn.Parameter`` of one element is learned.
        memory_bank_size: Embeddings that the bank keeps and their width, (M, D), such as ``(4096, 128)``; 0, as in
            lightly, for none. A bank fills with the batches of its own rank.
        gather_distributed: Whether the batch is that of all ranks, see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.
        sensitivity_param: Weight of the sensitivity of what masks leave out, see :class:`mast_ops.losses.SubspaceLoss`;
            3 by `benchmarks/evidence`, where 5 held less of the class and 2 less of what augmentations change.
        difficulty_param: Weight of a prediction of difficulty, by which pairs count, see
            :class:`mast_ops.losses.SubspaceLoss`.

    Raises:
        ValueError: ``temperature`` is not a positive number, ``backend`` is unknown, or ``memory_bank_size`` is not 0
            beside ``gather_distributed``. On call: arguments that disagree.

    Source: SimCLR (arXiv 2002.05709), equation 1, and MoCo (arXiv 1911.05722), equation 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceNTXentLoss
        >>> z = torch.eye(4)
        >>> SubspaceNTXentLoss(temperature=0.1)(z, z, masks=torch.ones(2, 4))
        tensor(0.0003)
    """

    temperature = _Temperature(check_positive)
    _temperature: Tensor
    _initial: Tensor | None = None

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | tuple[int, int] = 0,
        *,
        gather_distributed: bool = False,
        backend: Backend = "auto",
        sensitivity_param: float = 3.0,
        difficulty_param: float = 0.0,
    ) -> None:
        super().__init__(
            gather_distributed=gather_distributed,
            backend=backend,
            sensitivity_param=sensitivity_param,
            difficulty_param=difficulty_param,
        )
        self.temperature = temperature
        size = check_memory_bank_size(memory_bank_size)
        if size is not None:
            _check_own(gather_distributed)
        self.memory_bank = None if size is None else MemoryBank(size)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "temperature" and isinstance(value, nn.Parameter):
            check_temperature(value)
            vars(self)["_initial"] = value.detach().clone()
            vars(self).pop("_temperature", None)  # or torch.nn finds the name taken
        if name == "gather_distributed" and getattr(self, "memory_bank", None) is not None:
            _check_own(value)
        super().__setattr__(name, value)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A learned temperature starts anew, as in the constructor: after ``to_empty``, for example."""
        learned = self._parameters.get("temperature")
        if learned is not None:
            if self._initial is None or self._initial.is_meta:
                raise ValueError(
                    "temperature: got a parameter that was made on the meta device, wanted one with a value: set "
                    "criterion.temperature anew, torch.nn.Parameter(torch.tensor(0.5))"
                )
            learned.copy_(self._initial)

    @override
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # No hook: registering one is what torch.compile cannot trace, where a loss is made in the step itself.
        say_other_bank(self, state_dict, prefix, *others)
        super()._load_from_state_dict(state_dict, prefix, *others)

    @override
    def remember(self, pairs: Pairs) -> None:
        if self.memory_bank is not None and pairs.z0.requires_grad:
            self.memory_bank.add(pairs.z1)

    @override
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        learned = self._parameters.get("temperature")
        temperature = self._temperature if learned is None else run.averaged(learned)
        if self.memory_bank is None:
            if pairs.weight is None:
                return {"nt_xent": (1.0, nt_xent(pairs, run, temperature=temperature))}
            losses = nt_xent(pairs, run, temperature=temperature, reduction="none")
        else:
            negatives = self.memory_bank.negatives(pairs.z0)
            losses = against_negatives(pairs, negatives, run, temperature=temperature)
        return {"nt_xent": (1.0, weighted_mean(losses, pairs.weight, run))}


def _check_own(gather_distributed: bool) -> None:
    if gather_distributed:
        raise ValueError("gather_distributed: got True beside a memory bank, wanted False: a bank is of its own rank")
