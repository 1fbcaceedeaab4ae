"""VICReg with kornia's augmentations on the batch, and a backbone of timm: `python examples/kornia_timm_vicreg.py`.

What is fixed goes to `finalize`; masks have a group of their own in the optimizer.
"""

import argparse

import kornia.augmentation as K
import timm
import torch
from timm.layers import Mlp
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceVICRegLoss, param_groups

MEAN = STD = torch.full((3,), 0.5)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = digits.Digits(to_tensor, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)
    views = FactorizedViews(
        {
            "crop": K.RandomResizedCrop((digits.SIZE, digits.SIZE), scale=(0.5, 1.0)),
            "rotate": K.RandomRotation(45.0, p=1.0),
            "color": K.ColorJiggle(0.8, 0.8, 0.8, 0.2, p=0.8),
        },
        batched=True,
        finalize=K.Normalize(MEAN, STD),
    )

    backbone = timm.create_model("resnet10t", num_classes=0).to(device)
    head = MaskedSubspaceHead(Mlp(backbone.num_features, 256, 128), views).to(device)
    optimizer = torch.optim.AdamW(param_groups(backbone, head, lr=2e-3, weight_decay=0.05, decay_vectors=False))

    for _ in (progress := tqdm(range(args.epochs))):
        for images, _ in loader:
            view0, view1, kind = views(images.to(device))
            # Not on a CPU: torch 2.13 now and then has NaN there, as a bfloat16 gradient of layers of one pixel.
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                out0, out1 = head(backbone(view0)), head(backbone(view1))
            loss = SubspaceVICRegLoss()(out0, out1, kind=kind)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main(digits.arguments(__doc__))
