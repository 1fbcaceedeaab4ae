"""The callback for Lightning: numbers and pictures of every head that trains, and nothing left behind."""

import warnings

import pytest
import torch
from torch import nn

from mast_ops import MaskedSubspaceHead, SubspaceVICRegLoss, subspace_metrics

pl = pytest.importorskip("pytorch_lightning")
monitor = pytest.importorskip("mast_ops.lightning")


class Numbers(pl.loggers.Logger):
    """Keeps what it is given; takes no pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    name = version = "numbers"
    experiment = object()

    def log_hyperparams(self, params, *args, **kwargs): ...

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)


class Pictures(Numbers):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, int]] = []

    def log_image(self, key, images, step):
        assert [type(image).__name__ for image in images] == ["Figure"]
        self.pictures.append((key, step))


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.head = MaskedSubspaceHead(nn.Linear(4, 8), ["crop", "color"])
        self.target = MaskedSubspaceHead(nn.Linear(4, 8), ["crop", "color"]).requires_grad_(False)
        self.last = None

    def training_step(self, batch, batch_index):
        (x,) = batch
        self.last = self.head(x)
        self.target(x)
        return SubspaceVICRegLoss()(self.last, self.head(x + 0.1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(loggers, callback, steps=5):
    torch.manual_seed(0)
    model = Model()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8 * steps, 4)), batch_size=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The 'train_dataloader'|.*num_workers")
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=loggers, callbacks=[callback], log_every_n_steps=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, data)
    return model


def test_numbers_and_pictures_of_the_head_that_trains():
    logger = Pictures()
    model = fit([logger], monitor.SubspaceMonitor(every_n_steps=2))
    looked = {step: row for step, row in logger.rows.items() if any("density" in key for key in row)}
    assert sorted(looked) == [1, 3, 5]
    assert logger.pictures == [("head/masks", step) for step in (1, 3, 5)]
    wanted = {f"head/{key}" for key in subspace_metrics(model.last, ["crop", "color"])}
    assert wanted == {key for key in looked[1] if key.startswith("head/")}
    assert not any(key.startswith("target/") for key in looked[1])


def test_nothing_is_left_behind_and_results_are_those_without_it():
    other = fit(False, pl.Callback())
    model = fit([Pictures()], monitor.SubspaceMonitor(every_n_steps=1))
    assert not model.head._forward_hooks
    for got, wanted in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(got, wanted)


def test_a_logger_that_takes_no_pictures_gets_numbers_and_is_named_once():
    logger = Numbers()
    with pytest.warns(UserWarning, match="Numbers: takes no pictures") as caught:
        fit([logger], monitor.SubspaceMonitor(every_n_steps=1))
    assert len([w for w in caught if "takes no pictures" in str(w.message)]) == 1
    assert any("head/density/crop" in row for row in logger.rows.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "SubspaceMonitor")
        fit([Numbers()], monitor.SubspaceMonitor(every_n_steps=1, pictures=False))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "2"])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises((ValueError, TypeError), match="every_n_steps"):
        monitor.SubspaceMonitor(steps)
