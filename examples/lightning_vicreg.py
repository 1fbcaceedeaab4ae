"""VICReg in Lightning: `python examples/lightning_vicreg_plain.py`, with MAST `python examples/lightning_vicreg.py`."""

import argparse

import pytorch_lightning as pl
import torch
from lightly.models.modules.heads import VICRegProjectionHead
from torchvision.transforms import v2 as T

import digits
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceVICRegLoss

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
pl.seed_everything(args.seed)

augmentations = {
    "crop": T.RandomResizedCrop(digits.SIZE, scale=(0.5, 1.0), antialias=True),
    "rotate": T.RandomRotation(45),
    "color": T.ColorJitter(0.8, 0.8, 0.8, 0.2),
}
transform = FactorizedViews(augmentations, pairs="mixed")


class VICReg(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = digits.make_backbone()
        projector = VICRegProjectionHead(128, 256, 256)
        self.projection_head = MaskedSubspaceHead(projector, transform)
        self.criterion = SubspaceVICRegLoss()

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def training_step(self, batch, batch_index):
        (x0, x1, kind), _ = batch
        loss = self.criterion(self(x0), self(x1), kind=kind)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=1)
trainer.fit(VICReg(), digits.loader(transform, args.steps))
print(f"loss {trainer.callback_metrics['loss']:.3f}")
