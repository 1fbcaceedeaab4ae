"""What is used after training: features that are free of some augmentations, or keep what they change."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mast_ops._checks import check_embedding, check_is, refuse_script, traced_quietly
from mast_ops.head import MaskedSubspaceHead


class SubspaceFeatures(nn.Module):
    """A frozen extractor: backbone, projector, and those dimensions that a task wants.

    A task that an augmentation disturbs wants features free of it: the class of an object, by any light, is
    ``free_of="color"``. A task that asks for what it changes wants features keeping it: which flower by its colour is
    ``keeping="color"``, and by its colour wherever it stands ``keeping="color", free_of="crop"``.

    It is a copy in eval mode that learns nothing, with the masks as they are now. Dimensions whose weight is 0 are left
    out, so that exact masks (``"binary"``) give fewer features. It works under ``torch.export``, ``torch.jit.trace``,
    ``torch.fx`` and ONNX.

    Args:
        backbone: What the head is given.
        head: The trained head.
        keeping: One name of ``head.subspaces`` or several; see :meth:`mast_ops.MaskedSubspaceHead.features`.
        free_of: The same.

    Raises:
        ValueError: No such subspace; none is named, or one twice; or no dimension is left: none keeps the one and is
            free of the other.
        TypeError: What is no module, no head or no name in its place.

    Shape:
        - Input: what the backbone takes.
        - Output: (N, F), F <= D.

    Source: ours.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mast_ops import MaskedSubspaceHead, SubspaceFeatures
        >>> backbone = nn.Flatten()
        >>> head = MaskedSubspaceHead(nn.Linear(12, 100), subspaces=["crop", "color"])
        >>> x = torch.randn(2, 3, 4)
        >>> SubspaceFeatures(backbone, head, free_of="color")(x).shape
        torch.Size([2, 95])
        >>> SubspaceFeatures(backbone, head, keeping="color")(x).shape
        torch.Size([2, 5])
    """

    weight: Tensor
    _dimensions: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: MaskedSubspaceHead,
        *,
        keeping: str | Sequence[str] = (),
        free_of: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_is("backbone", backbone, nn.Module, "a module of torch.nn")
        check_is("head", head, MaskedSubspaceHead, "a MaskedSubspaceHead")
        frozen = copy.deepcopy(head).eval()
        with torch.no_grad():
            weight = frozen.features_weight(frozen.masks(), keeping=keeping, free_of=free_of)
        if not weight.any():
            raise ValueError(f"keeping, free_of: got {keeping!r} and {free_of!r}, wanted some dimension that is both")
        self.backbone = copy.deepcopy(backbone)
        self.projector = frozen.projector
        dimensions = weight.nonzero()[:, 0]
        self.register_buffer("weight", weight[dimensions])
        self.register_buffer("_dimensions", dimensions)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.projector(self.backbone(x))
        if not isinstance(embedding, torch.fx.Proxy):  # which has no shape yet
            with traced_quietly():
                check_embedding("projector's output", embedding)
        return embedding.index_select(1, self._dimensions) * self.weight

    __prepare_scriptable__ = refuse_script

    def train(self, mode: bool = True) -> "SubspaceFeatures":
        """Nothing changes: frozen features have no training mode."""
        return super().train(False)
