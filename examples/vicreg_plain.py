"""VICReg on real digits: `python examples/vicreg_plain.py`, and with MAST `python examples/vicreg.py`."""

import argparse

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2 as T
from tqdm import tqdm

import digits
import plain_losses

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
    views = digits.TwoViews(augment)
    dataset = digits.Digits(views, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)

    backbone = digits.make_backbone()
    projector = digits.make_projector()
    optimizer = torch.optim.AdamW([*backbone.parameters(), *projector.parameters()], lr=2e-3)

    for _ in (progress := tqdm(range(args.epochs))):
        for (x0, x1), _ in loader:
            z0, z1 = projector(backbone(x0)), projector(backbone(x1))
            loss = plain_losses.vicreg(z0, z1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")

    images, labels = digits.load_images(colored=True)
    train_set, test_set = (images[::2], labels[::2]), (images[1::2], labels[1::2])
    accuracy = digits.probe_accuracy(backbone, train_set, test_set)
    print(f"loss {loss.item():.3f}, linear probe on the digits' class {accuracy:.1f} %")


if __name__ == "__main__":
    main(digits.arguments(__doc__))
