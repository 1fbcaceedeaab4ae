"""Multi-crop, as in SwAV and DINO, under VICReg: `python examples/multi_crop_plain.py`, and with MAST
`python examples/multi_crop.py`.

Two global views of an image and four small local ones. The loss is the mean over pairs with a global view.
"""

import argparse

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2 as T
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, MultiViewLoss, SubspaceVICRegLoss

small = T.RandomResizedCrop(digits.SIZE // 2, scale=(0.2, 0.5))
others = [
    T.RandomRotation(45),
    T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
    T.ToImage(),
    T.ToDtype(torch.float32, scale=True),
]
augment = T.Compose([T.RandomResizedCrop(digits.SIZE, scale=(0.5, 1.0)), *others])


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    views = FactorizedViews.from_compose(augment, num_local_views=4, local_augmentations={"resized_crop": small})
    dataset = digits.Digits(views, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)

    backbone = digits.make_backbone()
    projector = MaskedSubspaceHead(digits.make_projector(), views)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *projector.parameters()], lr=2e-3)

    for _ in (progress := tqdm(range(args.epochs))):
        for (*crops, kind), _ in loader:
            outs = [projector(backbone(x)) for x in crops]
            loss = MultiViewLoss(SubspaceVICRegLoss(), views)(outs, kind=kind)
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
