"""VICReg in Lightning: `python examples/lightning_vicreg_plain.py`, with MAST `python examples/lightning_vicreg.py`.

In mixed precision, and with a checkpoint from which training goes on.
"""

import argparse

import pytorch_lightning as pl
import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.transforms import VICRegTransform
from torch.utils.data import DataLoader

import digits

transform = VICRegTransform(digits.SIZE)


class VICReg(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = digits.make_backbone()
        projector = VICRegProjectionHead(128, 256, 256)
        self.projection_head = projector
        self.criterion = VICRegLoss()

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def training_step(self, batch, batch_index):
        (x0, x1), _ = batch
        loss = self.criterion(self(x0), self(x1))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(args: argparse.Namespace) -> None:
    pl.seed_everything(args.seed, workers=True, verbose=False)
    dataset = digits.Digits(transform, args.images)
    loader = DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)
    trainer = pl.Trainer(
        max_epochs=args.epochs, precision="bf16-mixed", logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    goes_on = args.checkpoint and args.checkpoint.exists()
    trainer.fit(VICReg(), loader, ckpt_path=args.checkpoint if goes_on else None)
    if args.checkpoint:
        trainer.save_checkpoint(args.checkpoint)
    print(f"loss {trainer.callback_metrics['loss']:.3f}")


if __name__ == "__main__":
    main(digits.arguments(__doc__, checkpoint=True))
