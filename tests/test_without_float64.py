"""Analysis, metrics and pictures on a device that has no float64, as MPS: played by tensors that say they are there."""

from collections.abc import Iterator

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from mast_ops import SubspaceOutput, analysis, subspace_metrics
from mast_ops._precision import _has_float64, exact
from mast_ops.functional.uncertainty import _log_harmonic_mean

MPS = torch.device("mps")


class There(torch.Tensor):
    """A tensor that says it is on MPS; its values are on the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=MPS)

    def __init__(self, values):
        self.values = values

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        assert all(isinstance(x, cls) or x.dim() == 0 for x in tensors), f"{function} of tensors on two devices"
        target = torch.device(kwargs.pop("device", None) or MPS)
        args, kwargs = tree_map(lambda x: x.values if isinstance(x, cls) else x, (args, kwargs))
        return tree_map(lambda x: _put(x, target), function(*args, **kwargs))


class Factories(TorchDispatchMode):
    """What is made on MPS from nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if any(isinstance(x, There) for x in torch.utils._pytree.tree_leaves((args, kwargs))):
            return There.__torch_dispatch__(function, types, args, kwargs)
        target = torch.device(kwargs.get("device") or "cpu")
        if target.type == "mps":
            kwargs["device"] = "cpu"
        return tree_map(lambda x: _put(x, target), function(*args, **kwargs))


class Moves(TorchFunctionMode):
    """What this build of PyTorch refuses for MPS, or for classes of tensors, before it dispatches anything."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        values = args[0].values if args and isinstance(args[0], There) else None
        if function is torch.Tensor.to and (values is not None or args[1:] == (MPS,)):
            (to,) = args[1:]
            if to == MPS:
                return args[0] if values is not None else _put(args[0], MPS)
            return _put(values.to(to), MPS if isinstance(to, torch.dtype) else torch.device(to))
        if function in (torch.Tensor.tolist, torch.Tensor.__int__) and values is not None:
            return function(values)
        if function is torch.Tensor.__getitem__ and values is not None:
            index = tree_map(lambda x: x.values if isinstance(x, There) else x, args[1])
            return _put(values[index], MPS)
        return function(*args, **(kwargs or {}))


def _put(x: object, target: torch.device) -> object:
    if not isinstance(x, torch.Tensor) or target.type != "mps":
        return x
    if x.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    return There(x)


@pytest.fixture(autouse=True)
def _mps() -> Iterator[None]:
    with Factories(), Moves():
        yield


MASKS, Z = torch.rand(3, 8), torch.randn(6, 8)
X, Y, GROUP = torch.rand(6), torch.rand(6), torch.tensor([0, 1, 2, 0, 1, 2])
MEASURES = {
    "open dimensions": (analysis.open_dimensions, (MASKS,)),
    "density": (analysis.mask_density, (MASKS,)),
    "overlap": (analysis.mask_overlap, (MASKS,)),
    "closedness": (analysis.closedness, (MASKS,)),
    "closing_sets": (analysis.closing_sets, (MASKS,)),
    "by group": (lambda x, group: analysis.uncertainty_by_group(x, group, 4), (X, GROUP)),
    "by strength": (lambda x, y: analysis.uncertainty_by_strength(x, y, bins=3), (X, Y)),
    "spearman": (analysis.spearman, (X, Y)),
}


def test_the_device_that_is_played_has_no_float64():
    with pytest.raises(TypeError, match="float64"):
        There(MASKS).double()
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, dtype=torch.float64, device="mps")
    assert (There(MASKS) + torch.zeros(3, 1, device="mps")).device == MPS


@pytest.mark.parametrize("measure", MEASURES)
def test_analysis_is_the_same_and_stays_there(measure):
    function, arguments = MEASURES[measure]
    wanted, got = function(*arguments), function(*map(There, arguments))
    pairs = zip(wanted, got, strict=True) if isinstance(wanted, tuple) else [(wanted, got)]
    for there, here in ((there, here) for here, there in pairs):
        assert there.device == MPS
        torch.testing.assert_close(there.values, here, equal_nan=True)


@pytest.mark.parametrize(
    ("granularity", "log_variance"),
    [(None, None), ("sample", torch.randn(6, 1)), ("subspace", torch.randn(6, 3)), ("dimension", torch.randn(6, 8))],
)
def test_metrics_are_the_same(granularity, log_variance):
    def values(put):
        variance = None if log_variance is None else put(log_variance)
        out = SubspaceOutput(put(Z), put(MASKS), variance, put(torch.eye(3, dtype=torch.bool)), granularity)
        return subspace_metrics(out, kind=put(GROUP))

    assert values(There) == pytest.approx(values(lambda x: x))


def test_a_mean_over_ranks_takes_the_cpu():
    class OfRanks:
        distributed = True
        total = staticmethod(lambda x: 2 * x)  # of a second rank with the same batch

    log_variance = torch.randn(6, 3)
    got, wanted = (_log_harmonic_mean(x, OfRanks()) for x in (There(log_variance), log_variance))
    assert got.device == MPS
    torch.testing.assert_close(got.values, wanted)
    torch.testing.assert_close(wanted, -(-log_variance).exp().mean(0, keepdim=True).log())


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_any_device_is_asked_for_float64(error, monkeypatch):
    """As an XPU without it: "Required aspect fp64 is not supported on the device"."""

    def ones(*_, dtype, device):
        raise error(f"{device} has no {dtype}")

    monkeypatch.setattr(torch, "ones", ones)
    _has_float64.cache_clear()
    assert not _has_float64("xpu:0")
    assert exact(There(MASKS)).device.type == "cpu"
    _has_float64.cache_clear()


def test_pictures_are_drawn():
    pytest.importorskip("matplotlib")
    from mast_ops.plots import plot_summary

    figure = plot_summary(There(MASKS), ["crop", "color", "blur"])
    assert len(figure.axes) == 5  # with the bar of colours
