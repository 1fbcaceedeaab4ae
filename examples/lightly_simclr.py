"""SimCLR with lightly: `python examples/lightly_simclr_plain.py`, and with MAST `python examples/lightly_simclr.py`."""

import argparse

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceNTXentLoss

transform = FactorizedViews.from_compose(SimCLRTransform(digits.SIZE, min_scale=0.5, gaussian_blur=0.0))


class SimCLR(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        projector = SimCLRProjectionHead(128, 128, 128)
        self.projection_head = MaskedSubspaceHead(projector, transform)

    def forward(self, x):
        return self.projection_head(self.backbone(x))


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    dataset = digits.Digits(transform, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)
    model = SimCLR(digits.make_backbone())
    criterion = SubspaceNTXentLoss(temperature=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    for _ in (progress := tqdm(range(args.epochs))):
        for views, _ in loader:
            x0, x1, kind = views
            z0, z1 = model(x0), model(x1)
            loss = criterion(z0, z1, kind=kind)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main(digits.arguments(__doc__))
