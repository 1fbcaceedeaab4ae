"""BYOL with lightly: `python examples/lightly_byol_plain.py`, and with MAST `python examples/lightly_byol.py`."""

import argparse
import copy

import torch
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn
from torchvision.transforms import v2 as T
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceCosineLoss

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

augmentations = {
    "crop": T.RandomResizedCrop(digits.SIZE, scale=(0.5, 1.0), antialias=True),
    "rotate": T.RandomRotation(45),
    "color": T.ColorJitter(0.8, 0.8, 0.8, 0.2),
}
transform = FactorizedViews(augmentations, pairs="mixed")


class BYOL(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BYOLProjectionHead(128, 256, 128)
        predictor = BYOLPredictionHead(128, 256, 128)
        self.prediction_head = MaskedSubspaceHead(predictor, transform)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.prediction_head(self.projection_head(self.backbone(x)))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()


model = BYOL(digits.make_backbone())
criterion = SubspaceCosineLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for views, _ in (progress := tqdm(digits.loader(transform, args.steps))):
    update_momentum(model.backbone, model.backbone_momentum, m=0.99)
    update_momentum(model.projection_head, model.projection_head_momentum, m=0.99)
    x0, x1, kind = views
    p0, z0 = model(x0), model.forward_momentum(x0)
    p1, z1 = model(x1), model.forward_momentum(x1)
    loss = 0.5 * (criterion(p0, z1, kind=kind) + criterion(p1, z0, kind=kind))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    progress.set_postfix(loss=f"{loss.item():.3f}")
print(f"loss {loss.item():.3f}")
