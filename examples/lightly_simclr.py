"""SimCLR with lightly: `python examples/lightly_simclr_plain.py`, and with MAST `python examples/lightly_simclr.py`."""

import argparse

import torch
from lightly.models.modules import SimCLRProjectionHead
from torch import nn
from torchvision.transforms import v2 as T
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceNTXentLoss

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


class SimCLR(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        projector = SimCLRProjectionHead(128, 128, 128)
        self.projection_head = MaskedSubspaceHead(projector, transform)

    def forward(self, x):
        return self.projection_head(self.backbone(x))


model = SimCLR(digits.make_backbone())
criterion = SubspaceNTXentLoss(temperature=0.5)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for views, _ in (progress := tqdm(digits.loader(transform, args.steps))):
    x0, x1, kind = views
    z0, z1 = model(x0), model(x1)
    loss = criterion(z0, z1, kind=kind)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    progress.set_postfix(loss=f"{loss.item():.3f}")
print(f"loss {loss.item():.3f}")
