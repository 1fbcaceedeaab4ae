"""README is short and its lines run; those for codebases run in the surroundings that each gives them.

Peers are imported where they are used: the processes of a group import this file too.
"""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mast_ops
from benchmarks import readme
from benchmarks.distributed.ranks import Ranks
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceNTXentLoss, SubspaceVICRegLoss

ROOT = Path(__file__).parent.parent
N, DIM = 6, 10


def rows() -> dict[str, list[str]]:
    """Lines of code by codebase."""
    page = (ROOT / "examples" / "README.md").read_text()
    table = page.split("<!-- codebases -->")[1].split("<!-- /codebases -->")[0].strip().splitlines()[2:]
    cells = (re.fullmatch(r"\| (.*?) \| (.*) \|", line).groups() for line in table)
    return {name: re.findall(r"`([^`]+)`", code) for name, code in cells}


ROWS = rows()


def row(start: str) -> list[str]:
    (found,) = (lines for name, lines in ROWS.items() if name.startswith(start))
    return found


def split(start: str) -> tuple[list[str], list[str]]:
    """The line that is run once, and those of each step."""
    lines = row(start)
    return lines[:1], lines[1:]


class Scope(dict):
    """Names that lines find, made when first asked for: a batch depends on the transform that an earlier line made."""

    def __missing__(self, name):
        if not hasattr(self.makers, name):
            raise KeyError(name)  # a builtin, or a name that a page should not use
        return self.setdefault(name, getattr(self.makers, name)(self))

    def __init__(self, names=(), makers: type | None = None) -> None:
        super().__init__({name: getattr(mast_ops, name) for name in mast_ops.__all__} | {"torch": torch} | dict(names))
        self.makers = makers or Makers


def drawn(x: torch.Tensor) -> torch.Tensor:
    """One number for each image: x is one, or a batch."""
    return torch.rand(*x.shape[:-3], 1, 1, 1)


class Makers:
    """What a script has before it is changed."""

    @staticmethod
    def augmentations(scope):
        return {"crop": lambda x: x + 0.1 * drawn(x), "color": lambda x: x * (1 + 0.1 * drawn(x))}

    @staticmethod
    def views(scope):
        return FactorizedViews(scope["augmentations"], pairs="mixed", batched=True)

    @staticmethod
    def images(scope):
        return torch.randn(N, 3, 8, 8)

    @staticmethod
    def backbone(scope):
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, DIM))

    @staticmethod
    def projector(scope):
        return nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, DIM))

    predictor = projector

    @staticmethod
    def online(scope):
        return nn.Sequential(scope["backbone"], nn.Linear(DIM, DIM))

    @staticmethod
    def target(scope):
        return Makers.online({"backbone": Makers.backbone(scope)})

    @staticmethod
    def head(scope):
        return MaskedSubspaceHead(scope["projector"], scope["views"].augmentations, kinds=scope["views"].kinds)

    @staticmethod
    def model(scope):
        return nn.Sequential(scope["backbone"], scope["head"])

    @staticmethod
    def criterion(scope):
        return SubspaceVICRegLoss()

    @staticmethod
    def pair(scope):
        return scope["views"](scope["images"])

    @staticmethod
    def view0(scope):
        return scope["pair"][0]

    @staticmethod
    def view1(scope):
        return scope["pair"][1]

    @staticmethod
    def kind(scope):
        return scope["pair"][2]


def execute(lines: list[str], names=(), makers: type | None = None) -> Scope:
    scope = Scope(names, makers)
    exec("\n".join(lines), scope)
    return scope


def assert_trains(scope: Scope, *modules: nn.Module) -> None:
    """The loss is finite and reaches every parameter."""
    assert scope["loss"].isfinite()
    scope["loss"].backward()
    for module in modules:
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


PAGES = [ROOT / name for name in (*readme.PAGES, "benchmarks/results/README.md")]


def test_readme_is_a_front_door():
    """A page that grows past this is one that nobody reads to its end."""
    assert len((ROOT / "README.md").read_bytes()) <= 8192


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    for link in links:
        assert link.startswith("https://") or (page.parent / link.split("#")[0]).exists(), link


def test_every_page_is_reached_from_readme():
    front = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        name = page.relative_to(ROOT).as_posix()
        assert name in front or name == "benchmarks/results/README.md"


def test_readme_snippet_trains():
    """The names that a reader has already are made here, all else is the snippet's."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names = {"crop": lambda x: x + drawn(x), "jitter": lambda x: x * drawn(x), "blur": lambda x: x - drawn(x)}
    scope = execute([snippet], names)
    assert scope["extract"](scope["images"]).shape == (N, 1)  # of 10 dimensions the mask closes one
    assert_trains(scope, scope["head"], scope["backbone"])


SCRIPTS = ("a SimCLR", "a BYOL", "a VICReg", "lightly", "Lightning", "solo-learn", "stable-pretraining")  # whole ones
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def test_no_script_changes_in_more_lines_than_readme_says():
    """New lines of the scripts in examples/; of a row its lines, the import, and the views where it has none."""
    gained = [
        sum(line.startswith("+") for line in readme.diff(path.name.removesuffix("_plain.py")).splitlines())
        for path in (ROOT / "examples").glob("*_plain.py")
    ]
    assert len(gained) == 7
    told = [len(row(start)) + 1 + (not any("FactorizedViews(" in line for line in row(start))) for start in SCRIPTS]
    front, page = ((ROOT / name).read_text() for name in ("README.md", "examples/README.md"))
    fewest, most = re.search(r"(\w+) to (\w+)\s+lines\s+of\s+your\s+script", front).groups()
    assert f"## {fewest} lines, or {most}" in page
    assert min(gained + told) == NUMBERS.index(fewest.lower())
    assert max(gained + told) <= NUMBERS.index(most)


def test_every_row_is_run():
    """A row that is added here is run below."""
    tests = Path(__file__).read_text()
    assert len(ROWS) == 17
    for name, lines in ROWS.items():
        assert lines, name
        assert any(name.startswith(start) for start in re.findall(r'(?:row|split)\("([^"]+)"\)', tests)), name


@pytest.mark.parametrize("lines", [row("a SimCLR"), row("a VICReg")], ids=["simclr", "vicreg"])
def test_scripts(lines):
    scope = execute(lines)
    assert_trains(scope, scope["projector"], scope["backbone"])


def test_byol_script():
    scope = execute(row("a BYOL"))
    assert_trains(scope, scope["predictor"], scope["online"])
    assert all(p.grad is None for p in scope["target"].parameters())


def test_moco_script():
    """The queue holds 128 numbers a key."""

    class Wider(Makers):
        @staticmethod
        def projector(scope):
            return nn.Linear(DIM, 128)

        @staticmethod
        def target(scope):
            return nn.Sequential(Makers.backbone(scope), nn.Linear(DIM, 128))

    scope = execute(row("a MoCo"), makers=Wider)
    assert scope["criterion"].memory_bank.position == N
    assert_trains(scope, scope["projector"], scope["backbone"])


def samples(scope):
    """As a data loader gives what the transform makes of each image, with labels."""
    loader = torch.utils.data.DataLoader([(scope["transform"](x), 0) for x in torch.randn(N, 3, 8, 8)], N)
    return next(iter(loader))


class Body(nn.Module):
    """512 features, as lightly's examples have."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 512))

    def forward(self, x):
        return self.projection_head(self.backbone(x))


def test_lightly():
    from lightly.models.modules import SimCLRProjectionHead

    model = Body()
    makers = type("_", (Makers,), {"batch": staticmethod(samples)})
    names = {"SimCLRProjectionHead": SimCLRProjectionHead, "self": model, "model": model}
    scope = execute(row("lightly"), names, makers)
    assert scope["kind"].shape == (N,)
    assert_trains(scope, model)


def test_lightning():
    """In a run of its trainer: what is logged is there afterwards."""
    import pytorch_lightning as pl

    class Module(Body, pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.projection_head, self.criterion = nn.Linear(512, DIM), SubspaceVICRegLoss()
            execute(once, {"self": self, "views": views})

        def training_step(self, batch, batch_index):
            return execute(step, {"self": self, "batch": batch})["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    once, step = split("Lightning")
    views = FactorizedViews(Makers.augmentations(None), pairs="mixed")
    loader = torch.utils.data.DataLoader([(views(x), 0) for x in torch.randn(2 * N, 3, 8, 8)], N)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    assert {"density/crop", "effective_rank/color", "overlap/crop-color"} <= trainer.callback_metrics.keys()


class BaseMethod(nn.Module):
    """solo-learn's, as far as its methods' training steps see it: features of every crop, and the classifier's loss."""

    def training_step(self, batch, batch_idx):
        _, crops, target = batch
        feats = [self.backbone(x) for x in crops]
        return {"feats": feats, "loss": nn.functional.cross_entropy(feats[0].detach()[:, :2], target)}


def test_solo_learn():
    scope = Scope()
    model = BaseMethod()
    model.backbone, model.projector, model.temperature = scope["backbone"], scope["projector"], 0.1
    once, step = split("solo-learn")
    execute(once, {"self": model, "views": scope["views"]})
    batch = torch.arange(N), scope["pair"], torch.zeros(N, dtype=torch.long)
    names = {"self": model, "BaseMethod": BaseMethod, "batch": batch, "batch_idx": 0}
    assert_trains(execute(step, names), model)


def test_stable_pretraining():
    scope = Scope()
    once, step = split("stable-pretraining")
    exec("\n".join(once), scope)
    model = nn.Module()
    model.backbone, model.projector, model.simclr_loss = scope["backbone"], scope["projector"], SubspaceNTXentLoss()
    done = execute(step, {"self": model, "batch": {"views": scope["pair"]}})
    done["loss"] = done["out"]["loss"]
    assert_trains(done, model)


def test_timm():
    import timm
    from timm.layers import Mlp

    scope = execute(row("timm"), {"timm": timm, "Mlp": Mlp})
    assert scope["head"](scope["backbone"](torch.randn(2, 3, 32, 32))).embedding.shape == (2, 128)


def on_a_rank(rank: int, lines: list[str]):
    """Every rank has other images, and the same model."""
    from torch.distributed.fsdp import fully_shard

    scope = Scope({"DistributedDataParallel": nn.parallel.DistributedDataParallel, "fully_shard": fully_shard})
    scope["model"]  # made before the ranks part
    torch.manual_seed(1 + rank)
    exec("\n".join(lines), scope)
    scope["loss"].backward()
    grads = [p.grad for p in scope["model"].parameters()]
    return scope["loss"].item(), [getattr(g, "full_tensor", lambda g=g: g)() for g in grads]


@pytest.mark.parametrize("lines", [row("DDP"), row("FSDP2")], ids=["ddp", "fsdp2"])
def test_many_gpus(lines):
    ranks = Ranks(2)
    try:
        results = ranks(on_a_rank, lines)
    finally:
        ranks.close()
    for result in results:
        if isinstance(result, Exception):
            raise result
    (loss0, grads0), (loss1, grads1) = results
    assert loss0 == pytest.approx(loss1)
    torch.testing.assert_close(grads0, grads1)


def test_compile(monkeypatch):
    """With the front end alone: what Inductor makes of losses and head is tested where they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    scope = execute(row("`torch.compile`"))
    scope["loss"] = scope["criterion"](scope["model"](scope["view0"]), scope["model"](scope["view1"]))
    assert_trains(scope, scope["head"])


def test_autocast():
    scope = Scope({"device": "cpu", "scaler": torch.amp.GradScaler("cpu")})
    scope["optimizer"] = torch.optim.SGD(scope["model"].parameters(), lr=0.1)
    before = scope["head"].masks.weight.detach().clone()
    exec("\n".join(row("autocast")), scope)
    assert scope["loss"].dtype == torch.float32
    assert not torch.equal(scope["head"].masks.weight, before)


def test_parameter_groups():
    scope = execute(row("parameter groups"))
    assert {group["name"]: group["weight_decay"] for group in scope["optimizer"].param_groups}["masks"] == 0


def test_any_logger():
    seen = {}
    scope = Scope()
    names = {"out": scope["model"](scope["images"]), "head": scope["head"], "logger": SimpleNamespace(log=seen.update)}
    execute(row("any logger"), names)
    assert all(isinstance(value, float) for value in seen.values())
    assert "density/crop" in seen


def test_other_augmentations():
    assert execute(row("other augmentations"))["head"].subspaces == ("color", "noise")


def test_what_is_in_a_checkpoint(tmp_path):
    torch.save(Scope()["model"].state_dict(), tmp_path / "checkpoint.pt")
    (line,) = row("what is in")
    words = [sys.executable if word == "python" else word for word in line.split()]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "crop" in done.stdout
    assert (tmp_path / "masks.png").stat().st_size > 0
