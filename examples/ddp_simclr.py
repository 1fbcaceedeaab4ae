"""SimCLR on several processes: `torchrun --nproc-per-node 2 examples/ddp_simclr.py`.

Each process has a GPU, if there are any; a checkpoint is written by the first, and read by all.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

import digits
from mast_ops import MaskedSubspaceHead, SubspaceNTXentLoss, recipes


def main(args: argparse.Namespace) -> None:
    gpus = torch.cuda.is_available()
    rank = dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    torch.manual_seed(args.seed)  # the same weights everywhere

    views = recipes.make_views("simclr", digits.SIZE)
    dataset = digits.Digits(views, args.images)
    sampler = DistributedSampler(dataset, seed=args.seed, drop_last=True)
    loader = DataLoader(dataset, args.batch, sampler=sampler, drop_last=True, num_workers=args.workers)
    model = nn.Sequential(digits.make_backbone(), MaskedSubspaceHead(digits.make_projector(), views)).to(device)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if gpus else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    start = 0
    if args.checkpoint and args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["epoch"]
    parallel = DistributedDataParallel(model)
    criterion = SubspaceNTXentLoss(gather_distributed=True)
    torch.manual_seed(args.seed + 1000 * start + rank)  # other views on every rank, and after going on

    for epoch in (progress := tqdm(range(start, args.epochs), disable=rank > 0)):
        sampler.set_epoch(epoch)
        for (x0, x1, kind), _ in loader:
            # In one call: torch 2.11 refuses two of a model with BatchNorm.
            z0, z1 = parallel(torch.cat([x0, x1]).to(device)).chunk(2)
            loss = criterion(z0, z1, kind=kind.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if args.checkpoint and rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            torch.save(state, args.checkpoint)
    if rank == 0:
        print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    arguments = digits.arguments(__doc__, checkpoint=True)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    main(arguments)
    dist.destroy_process_group()  # once no DDP is left: as the last to hold a gloo group it may never end
