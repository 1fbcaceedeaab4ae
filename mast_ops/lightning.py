"""A callback for Lightning: what masks and uncertainty do while a model trains. Needs Lightning, and for pictures
``mast-ops[plot]``.
"""

import importlib
import sys
import warnings
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mast_ops._checks import check_count, check_flag
from mast_ops.head import MaskedSubspaceHead
from mast_ops.metrics import subspace_metrics
from mast_ops.output import SubspaceOutput

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """The base class of the Lightning that is in use already, or of one that is installed."""
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(package).Callback
        except ImportError:
            pass
    raise ImportError("mast_ops.lightning: got no Lightning, wanted it: pip install lightning")


_Callback: Any = _callback()


class SubspaceMonitor(_Callback):  # type: ignore[misc]  # known at run time
    """Logs :func:`mast_ops.subspace_metrics` of every head of the module, and pictures of its masks.

    Heads are found by themselves, in whatever the module holds, and are looked at in the forward pass of the steps that
    are logged; the module's own code does not change. Heads that no gradient reaches, such as a momentum target's, are
    left out. Of a head that a step calls more than once the last call counts.

    Args:
        every_n_steps: Steps between two looks; 100, since the effective ranks are singular values of K matrices.
        pictures: Whether the masks' picture (:func:`mast_ops.plots.plot_summary`) goes to every logger that takes one:
            those with ``log_image`` (Weights & Biases) or an ``experiment.add_figure`` (TensorBoard). Others get
            numbers alone, which is said once.

    Raises:
        ImportError: On import of this module: neither ``lightning`` nor ``pytorch_lightning`` is installed.
        ValueError, TypeError: ``every_n_steps`` is no whole number >= 1, or ``pictures`` is no bool.

    Source: ours.

    Example:
        >>> import torch, pytorch_lightning as pl
        >>> from mast_ops.lightning import SubspaceMonitor
        >>> trainer = pl.Trainer(callbacks=[SubspaceMonitor(every_n_steps=50)], logger=False, accelerator="cpu")
    """

    def __init__(self, every_n_steps: int = 100, *, pictures: bool = True) -> None:
        super().__init__()
        self.every_n_steps = check_count("every_n_steps", every_n_steps)
        check_flag("pictures", pictures)
        self.pictures = pictures
        self._hooks: list[RemovableHandle] = []
        self._seen: dict[str, tuple[MaskedSubspaceHead, SubspaceOutput]] = {}
        self._warned = False

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        if trainer.loggers and trainer.global_step % self.every_n_steps == 0:
            for name, module in pl_module.named_modules():
                if isinstance(module, MaskedSubspaceHead) and any(p.requires_grad for p in module.parameters()):
                    self._hooks.append(module.register_forward_hook(_Look(self._seen, name)))

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for name, (head, out) in self._seen.items():
            prefix = f"{name}/" if name else ""
            found = subspace_metrics(out, head.subspaces)
            values = {prefix + key: value for key, value in found.items()}
            for logger in trainer.loggers:  # not log_dict, which repeats a value at every step until the next
                logger.log_metrics(values, step=trainer.global_step)
            if self.pictures:
                self._picture(trainer, prefix + "masks", head, out.masks)
        self._seen.clear()

    def _picture(self, trainer: Any, name: str, head: MaskedSubspaceHead, masks: Tensor) -> None:
        loggers = [logger for logger in trainer.loggers if trainer.is_global_zero]
        takers = [logger for logger in loggers if _takes_pictures(logger)]
        if len(takers) < len(loggers) and not self._warned:
            self._warned = True
            others = ", ".join(type(logger).__name__ for logger in loggers if logger not in takers)
            warnings.warn(f"SubspaceMonitor: {others}: takes no pictures, gets numbers alone", stacklevel=2)
        if takers:
            from mast_ops.plots import plot_summary

            figure = plot_summary(masks, head.subspaces)
            for logger in takers:
                if hasattr(logger, "log_image"):
                    logger.log_image(key=name, images=[figure], step=trainer.global_step)
                else:
                    logger.experiment.add_figure(name, figure, trainer.global_step)


class _Look:
    """A forward hook that keeps a head's output, without its graph."""

    def __init__(self, seen: dict[str, tuple[MaskedSubspaceHead, SubspaceOutput]], name: str) -> None:
        self.seen, self.name = seen, name

    def __call__(self, head: nn.Module, inputs: Any, out: SubspaceOutput) -> None:
        assert isinstance(head, MaskedSubspaceHead)
        self.seen[self.name] = head, out.detach()


def _takes_pictures(logger: Any) -> bool:
    return hasattr(logger, "log_image") or hasattr(getattr(logger, "experiment", None), "add_figure")
