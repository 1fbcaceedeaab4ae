"""Names and settings that a checkpoint carries, with loaders that know nothing of them."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from mast_ops import MaskedSubspaceHead, NormalizedMasks
from mast_ops.head._state import decode_state

H = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
NAMES = ["crop", "color", "blur"]
WRITTEN = "a loader has written its weights into this head already"


def model(names: list[str], **options: object) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), MaskedSubspaceHead(nn.Linear(16, 8), names, masks="sigmoid", **options))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[nn.Sequential, str]:
    """A model, and the folder of its checkpoint."""
    one, folder = model(NAMES), str(tmp_path_factory.mktemp("checkpoint"))
    dcp.save(one.state_dict(), checkpoint_id=folder)
    return one, folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_comes_back(saved):
    """Into a head of other pairs too."""
    one, folder = saved
    for options in ({}, {"kinds": torch.ones(3, 3, dtype=torch.bool).tril()}):
        other = model(NAMES, **options)
        state = other.state_dict()
        dcp.load(state, checkpoint_id=folder)
        assert torch.equal(other.train()(H).masks, one(H).masks)
        other.load_state_dict(state)
        assert torch.equal(other(H).embedding, one(H).embedding)


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_without_masks_goes_to_the_projector(nested):
    """It was lost without a word under ``strict=False``, which reports keys to whoever looks at them."""
    projector = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
    if nested:
        projector = nn.ModuleDict({"projector": projector, "other": nn.Linear(2, 2)})
    plain = nn.Sequential(nn.ReLU(), projector)
    state = copy.deepcopy(plain.state_dict())
    other = nn.Sequential(nn.ReLU(), MaskedSubspaceHead(copy.deepcopy(projector), NAMES, output_dim=8))
    for tensor in (*other[1].projector.parameters(), *other[1].projector.buffers()):
        tensor.data.zero_()
    found = other.load_state_dict(state, strict=False)
    assert sorted(found.missing_keys) == ["1._extra_state", "1.masks.weight"]
    assert found.unexpected_keys == []
    for name, tensor in other[1].projector.state_dict().items():
        assert torch.equal(tensor, state[f"1.{name}"])
    assert state.keys() == plain.state_dict().keys()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1._extra_state", "1.masks.weight". $'):
        other.load_state_dict(state)
    own = other.state_dict()
    other.load_state_dict(own)
    del own["1.masks.weight"], own["1._extra_state"]
    assert sorted(other.load_state_dict(own, strict=False).missing_keys) == ["1._extra_state", "1.masks.weight"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("names", [["color", "crop", "blur"], ["a name that is longer", "another of them", "x"]])
def test_weights_of_other_names_do_not_pass_when_written_in_place(saved, names):
    """No head sees torch.distributed.checkpoint at work: its own tensors are written, of whatever names."""
    one, folder = saved
    for take in (nn.Module.state_dict, get_model_state_dict):
        other = model(names)
        own = copy.deepcopy(other.state_dict())
        state = take(other)
        dcp.load(state, checkpoint_id=folder)
        for use in (
            lambda x: x(H),
            nn.Module.train,
            nn.Module.eval,
            lambda x: x.load_state_dict(state),  # noqa: B023
            lambda x: set_model_state_dict(x, state),  # noqa: B023
            lambda x: x[1].with_subspaces(names[:2]),
            lambda x: copy.deepcopy(x)(H),
        ):
            with pytest.raises(
                ValueError, match=rf"got a head of subspaces \('crop', .*, wanted .*{names[0]}.*{WRITTEN}"
            ):
                use(other)
        assert_same(other.state_dict(), one.state_dict())  # a checkpoint of it tells whose weights these are
        other.load_state_dict(own)
        assert_same(other.eval().state_dict(), own)
        other(H)


def test_what_is_loaded_as_it_should_be_is_refused_before_anything_is_written(saved):
    one, other = saved[0], model(["color", "crop", "blur"])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"wanted .*'color', 'crop', 'blur'.*nothing was loaded"):
        other.load_state_dict(one.state_dict())
    assert_same(other.state_dict(), before)
    other(H)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_a_state_dict_of_another_dtype_keeps_its_names(dtype):
    """float16 and bfloat16 have every whole number up to 255."""
    one, other = model(NAMES), model(NAMES[::-1])
    state = {name: x.to(dtype) for name, x in one.state_dict().items()}
    model(NAMES).load_state_dict(state)
    with pytest.raises(ValueError, match="got a head of subspaces"):
        other.load_state_dict(state)


def test_an_average_of_names_says_what_it_is():
    def mean(x: Tensor, y: Tensor) -> Tensor:
        return (x.float() + y.float()) / 2

    one, other = model(NAMES), model(["crop", "color", "noise"])
    same, unlike = (
        {name: mean(x, two.state_dict()[name]) for name, x in one.state_dict().items()} for two in (model(NAMES), other)
    )
    model(NAMES).load_state_dict(same)
    with pytest.raises(ValueError, match=r"got torch.float32 of other than whole numbers.*holds names as bytes"):
        model(NAMES).load_state_dict(unlike)


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_an_average_with_itself_is_its_own(dtype, decay):
    """In whole numbers 0.9 * 58 + 0.1 * 58 is 57: timm's ModelEmaV2 averages all of a state dict, in place."""
    one, average = model(NAMES), model(NAMES)
    state = average.state_dict()
    for name, x in one.state_dict().items():
        y = state[name] if dtype is None else state[name].to(dtype)
        mean = decay * y + (1 - decay) * x.to(y.dtype)
        state[name] = state[name].copy_(mean) if dtype is None else mean
    average(H)
    average.load_state_dict(state)
    model(NAMES).load_state_dict(average.state_dict())
    with pytest.raises(ValueError, match=r"_extra_state: got|got a head of subspaces"):
        model(NAMES[::-1]).load_state_dict(state)


@pytest.mark.parametrize("write", [lambda x, y: x.data.copy_(y), lambda x, y: x.numpy().__setitem__(..., y.numpy())])
def test_whoever_writes_in_place_is_seen(write):
    """Neither is counted as a new version of the tensor."""
    one, other = model(NAMES), model(NAMES[::-1])
    for name, x in other.state_dict().items():
        write(x, one.state_dict()[name])
    with pytest.raises(ValueError, match=WRITTEN):
        other(H)


def test_settings_that_a_schedule_changes_are_those_of_the_next_checkpoint():
    """It was that of the first, and a head then refused its own."""
    head = MaskedSubspaceHead(nn.Linear(16, 8), NAMES, masks=NormalizedMasks(3, 8, coverage=0.5))
    head.state_dict()
    head.masks.coverage = 0.75
    state = copy.deepcopy(head.state_dict())
    assert decode_state(state["_extra_state"])["masks"]["coverage"] == 0.75
    head.load_state_dict(state)
    head.masks.coverage = 0.875
    with pytest.raises(ValueError, match=r"got masks of .*0\.75.*wanted .*0\.875.*nothing was loaded. Give .*settings"):
        head.load_state_dict(state)


@pytest.mark.parametrize("masks", ["binary", "hard_concrete"])
def test_a_temperature_is_of_training_alone(masks):
    """A run that anneals it resumes in a head that starts where the schedule does."""
    head, other = (MaskedSubspaceHead(nn.Linear(16, 8), NAMES, masks=masks).eval() for _ in range(2))
    head.masks.temperature = 0.25
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.masks(), head.masks())


def test_a_head_that_handed_out_its_state_works_on():
    """Exported, compiled, copied, and in inference mode."""
    head = model(NAMES)
    with torch.inference_mode():
        head.state_dict()
    head[1].state_dict()["_extra_state"].add_(0)  # somebody wrote what it says already
    wanted = head(H)
    for same in (
        copy.deepcopy(head),
        torch.export.export(head, (H,)).module(),
        torch.compile(head, fullgraph=True, backend="eager"),
    ):
        assert torch.equal(same(H)[1], wanted.masks)


def assert_same(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    torch.testing.assert_close(state, wanted, rtol=0, atol=0)
