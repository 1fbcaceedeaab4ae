"""VICReg on real digits: `python examples/vicreg_plain.py`, and with MAST `python examples/vicreg.py`."""

import argparse

import torch
from tqdm import tqdm

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceVICRegLoss

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

images, labels = digits.load_images()
views = FactorizedViews(digits.AUGMENTATIONS, pairs="mixed", batched=True)
backbone = digits.make_backbone()
projector = MaskedSubspaceHead(digits.make_projector(), views)
optimizer = torch.optim.AdamW([*backbone.parameters(), *projector.parameters()], lr=2e-3)

for _ in (progress := tqdm(range(args.steps))):
    x = images[torch.randint(len(images), (digits.BATCH,))]
    view0, view1, kind = views(x)
    z0, z1 = projector(backbone(view0)), projector(backbone(view1))
    loss = SubspaceVICRegLoss()(z0, z1, kind=kind)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    progress.set_postfix(loss=f"{loss.item():.3f}")

train_set, test_set = (images[::2], labels[::2]), (images[1::2], labels[1::2])
accuracy = digits.probe_accuracy(backbone, train_set, test_set)
print(f"loss {loss.item():.3f}, linear probe on the digits' class {accuracy:.1f} %")
