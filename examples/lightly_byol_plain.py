"""BYOL with lightly: `python examples/lightly_byol_plain.py`, and with MAST `python examples/lightly_byol.py`."""

import argparse
import copy

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import digits

transform = BYOLTransform(BYOLView1Transform(digits.SIZE), BYOLView2Transform(digits.SIZE))


class BYOL(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BYOLProjectionHead(128, 256, 128)
        predictor = BYOLPredictionHead(128, 256, 128)
        self.prediction_head = predictor
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.prediction_head(self.projection_head(self.backbone(x)))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    dataset = digits.Digits(transform, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)
    model = BYOL(digits.make_backbone())
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    for _ in (progress := tqdm(range(args.epochs))):
        for views, _ in loader:
            update_momentum(model.backbone, model.backbone_momentum, m=0.99)
            update_momentum(model.projection_head, model.projection_head_momentum, m=0.99)
            x0, x1 = views
            p0, z0 = model(x0), model.forward_momentum(x0)
            p1, z1 = model(x1), model.forward_momentum(x1)
            loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main(digits.arguments(__doc__))
