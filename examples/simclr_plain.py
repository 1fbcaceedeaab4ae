"""SimCLR on real digits: `python examples/simclr_plain.py`, and with MAST `python examples/simclr.py`.

In mixed precision, with processes that load data, and with a checkpoint from which training goes on.
"""

import argparse

import torch
from torch import nn
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = digits.TwoViews(augment)
    dataset = digits.Digits(views, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)

    backbone = digits.make_backbone()
    projector = digits.make_projector()
    model = nn.Sequential(backbone, projector).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)

    start = 0
    if args.checkpoint and args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["epoch"]

    for epoch in (progress := tqdm(range(start, args.epochs))):
        for (x0, x1), _ in loader:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                z0, z1 = model(x0.to(device)), model(x1.to(device))
            loss = plain_losses.nt_xent(z0.float(), z1.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if args.checkpoint:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            torch.save(state, args.checkpoint)

    images, labels = digits.load_images(colored=True)
    train_set, test_set = (images[::2], labels[::2]), (images[1::2], labels[1::2])
    accuracy = digits.probe_accuracy(backbone.cpu(), train_set, test_set)
    print(f"loss {loss.item():.3f}, linear probe on the digits' class {accuracy:.1f} %")


if __name__ == "__main__":
    main(digits.arguments(__doc__, checkpoint=True))
