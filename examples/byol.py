"""BYOL on real digits: `python examples/byol_plain.py`, and with MAST `python examples/byol.py`."""

import argparse
import copy

import torch
from torch import nn
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceCosineLoss

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

images, labels = digits.load_images()
views = FactorizedViews(digits.AUGMENTATIONS, pairs="mixed", batched=True)
backbone = digits.make_backbone()
projector = digits.make_projector()
predictor = MaskedSubspaceHead(digits.make_projector(), views)
target = copy.deepcopy(nn.Sequential(backbone, projector)).requires_grad_(False)
online = nn.Sequential(backbone, projector, predictor)
optimizer = torch.optim.AdamW(online.parameters(), lr=2e-3)

for _ in (progress := tqdm(range(args.steps))):
    x = images[torch.randint(len(images), (digits.BATCH,))]
    view0, view1, kind = views(x)
    pairs = (online(view0), target(view1)), (online(view1), target(view0))
    loss = sum(SubspaceCosineLoss()(p, t, kind=kind) for p, t in pairs) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters(), strict=False):
            slow.lerp_(fast, 0.01)
    progress.set_postfix(loss=f"{loss.item():.3f}")

train_set, test_set = (images[::2], labels[::2]), (images[1::2], labels[1::2])
accuracy = digits.probe_accuracy(backbone, train_set, test_set)
print(f"loss {loss.item():.3f}, linear probe on the digits' class {accuracy:.1f} %")
