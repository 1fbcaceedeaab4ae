"""BYOL on real digits: `python examples/byol_plain.py`, and with MAST `python examples/byol.py`."""

import argparse
import copy

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2 as T
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceCosineLoss

augment = T.Compose(
    [
        T.RandomResizedCrop(digits.SIZE, scale=(0.5, 1.0)),
        T.RandomRotation(45),
        T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        T.ToImage(),
        T.ToDtype(torch.float32, scale=True),
    ]
)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    views = FactorizedViews.from_compose(augment)
    dataset = digits.Digits(views, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)

    backbone = digits.make_backbone()
    projector = digits.make_projector()
    predictor = MaskedSubspaceHead(digits.make_projector(), views)
    target = copy.deepcopy(nn.Sequential(backbone, projector)).requires_grad_(False)
    online = nn.Sequential(backbone, projector, predictor)
    optimizer = torch.optim.AdamW(online.parameters(), lr=2e-3)

    for _ in (progress := tqdm(range(args.epochs))):
        for (x0, x1, kind), _ in loader:
            pairs = (online(x0), target(x1)), (online(x1), target(x0))
            loss = sum(SubspaceCosineLoss()(p, t, kind=kind) for p, t in pairs) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), online.parameters(), strict=False):
                    slow.lerp_(fast, 0.01)
        progress.set_postfix(loss=f"{loss.item():.3f}")

    images, labels = digits.load_images(colored=True)
    train_set, test_set = (images[::2], labels[::2]), (images[1::2], labels[1::2])
    accuracy = digits.probe_accuracy(backbone, train_set, test_set)
    print(f"loss {loss.item():.3f}, linear probe on the digits' class {accuracy:.1f} %")


if __name__ == "__main__":
    main(digits.arguments(__doc__))
