"""Every public call with every argument spoilt in turn: refused by the argument's name, before any work.

A new name, or an argument of a new kind, joins the tables below by itself or fails here.
"""

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from torch import Tensor, nn

import mast_ops
import mast_ops.functional as MF
from mast_ops import analysis, checkpoints, inspection, masks, plots, recipes
from mast_ops.kinds import kinds_of, names_of_kinds
from mast_ops.losses._base import SubspaceLoss
from mast_ops.regularizers import MaskRegularizer, MaskRegularizerSum

N, K, D, H = 6, 3, 12, 8
NAMES = ["crop", "color", "blur"]
NAN, INF = float("nan"), float("inf")


MODULE = nn.Linear(2, 2)


class Thing:
    def __repr__(self) -> str:
        return "a thing"


def tensors() -> dict[str, Tensor]:
    """A valid tensor for each name of an argument."""
    g = torch.Generator().manual_seed(0)
    z = {name: torch.randn(N, D, generator=g) for name in ("z", "z0", "z1", "out0", "out1", "embedding", "reference")}
    return {
        **z,
        "h": torch.randn(N, H, generator=g),
        "masks": torch.rand(K, D, generator=g) + 0.1,
        "open_probability": torch.rand(K, D, generator=g),
        "kinds": torch.eye(K, dtype=torch.bool),
        "kind": torch.arange(N) % K,
        "sample": torch.arange(N) // 2,
        "sample0": torch.arange(N),
        "sample1": torch.arange(N),
        "weight": torch.rand(N, generator=g),
        "log_variance": torch.randn(N, 1, generator=g),
        "log_variance0": torch.randn(N, 1, generator=g),
        "log_variance1": torch.randn(N, 1, generator=g),
        "temperature": torch.tensor(0.5),
        "scale": torch.tensor(10.0),
        "bias": torch.tensor(-5.0),
        "floor": torch.tensor(0.5),
        "group": torch.arange(N) % K,
        "strength": torch.rand(N, generator=g),
        "explained": torch.rand(K, D, generator=g),
        "x": torch.rand(N, generator=g),
        "y": torch.rand(N, generator=g),
    }


def other(name: str, call: str) -> Any:
    """A valid value for an argument that is neither a tensor nor has a default."""
    if call in ("uncertainty_by_group", "uncertainty_by_strength") and name == "log_variance":
        return torch.zeros(N)
    if call == "plot_uncertainty":
        return {"crop": (torch.rand(N), torch.rand(N))}
    return {
        "num_subspaces": K,
        "dim": D,
        "num_groups": K,
        "start": 1.0,
        "end": 0.0,
        "steps": 4,
        "projector": nn.Linear(H, D),
        "subspaces": NAMES,
        "names": NAMES,
        "lr": 0.1,
        "augmentations": {name: lambda x: x + torch.rand(len(x), 1, 1, 1) for name in NAMES},
        "granularity": "sample",
        "regularizers": [mast_ops.MaskL1()],
        "weights": [1.0],
        "out": mast_ops.SubspaceOutput(torch.randn(N, D), torch.rand(K, D)),
        "path": "nowhere.pt",
        "backbone": nn.Linear(H, H),
        "criterion": mast_ops.SubspaceVICRegLoss(),
        "head": mast_ops.MaskedSubspaceHead(nn.Linear(H, D), NAMES),
        "keeping": NAMES[0],
        "views": mast_ops.FactorizedViews({name: lambda x: x + torch.rand(x.shape) for name in NAMES}),
        "images": torch.rand(3, 8, 8),
    }[name]


class Call(NamedTuple):
    name: str
    function: Callable[..., Any]
    signature: inspect.Signature

    def arguments(self) -> dict[str, Any]:
        """Valid ones for every parameter, those with a default included where its kind has a valid tensor."""
        known, found = tensors(), {}
        for name, parameter in self.signature.parameters.items():
            special = self.name in ("uncertainty_by_group", "uncertainty_by_strength", "plot_uncertainty")
            if name in ("reference", "unnamed"):  # of no use to a loss as it comes
                continue
            if name in known and _takes(parameter, Tensor) and not (special and name in ("log_variance", "curves")):
                found[name] = known[name]
            elif parameter.default is inspect.Parameter.empty or name in ("granularity", "keeping"):
                found[name] = other(name, self.name)
        if self.name == "MaskExpectedL0":
            found["masks"] = masks.HardConcreteMasks(K, D).eval()
        return found

    def __call__(self, arguments: dict[str, Any]) -> Any:
        return self.function(**arguments)


def _takes(parameter: inspect.Parameter, kind: type) -> bool:
    return kind in _kinds(parameter)


def _kinds(parameter: inspect.Parameter) -> tuple[Any, ...]:
    """The members of the annotation, which may be a union."""
    annotation = parameter.annotation
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def spoilt_tensors(x: Tensor) -> Iterator[tuple[str, object]]:
    yield from (("a number", 3.5), ("a text", "x"), ("a list", [1.0]), ("a thing", Thing()), ("a type", Tensor))
    yield "complex", x.to(torch.complex64)
    yield "of one more axis", x[None]
    yield "of seven axes", x[(None,) * 6]
    if x.dim():
        yield "empty", x[:0]
        yield "sparse", x.to_sparse()
        with warnings.catch_warnings(action="ignore"):
            yield "nested", torch.nested.nested_tensor([x, x])
        yield "jagged", torch.nested.nested_tensor([x, x], layout=torch.jagged)
        yield "a scalar", x.flatten()[0]
        if x.dim() == 2:
            with warnings.catch_warnings(action="ignore"):
                yield "compressed rows", x.to_sparse_csr()
    if x.is_floating_point():
        yield "whole numbers", x.long()
        yield "flags", x > 0
        yield "float8", x.to(torch.float8_e8m0fnu)
        with warnings.catch_warnings(action="ignore"):
            yield "quantized", torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
        if x.dim():
            yield "float8 of signs", x.to(torch.float8_e4m3fn)
    else:
        yield "floats", x.float()
        yield "bytes", x.to(torch.uint8)
    if x.dtype == torch.int64:
        yield "int32", x.int()
    if x.dtype == torch.bool:
        yield "a row of nothing", torch.zeros_like(x)


SCALARS = [None, "1", b"1", 1j, [1.0], (), {}, Thing(), torch.ones(2), float, "nan"]
NUMBERS = [*SCALARS, True, NAN, INF, -INF, -1.0, 10**400]
COUNTS = [*SCALARS, True, NAN, INF, 2.5, 0, -1, 10**400]
FLAGS = [None, "yes", "", 1, 0, 0.0, [True], Thing(), torch.tensor(True)]
CHOICES = [None, "nonsense", "", 1, True, [], ("mean",), Thing(), b"mean"]
PLACES = [None, 1, "nonsense", [], Thing(), torch.ones(2)]
# What is right for one argument though not for others of its annotation.
RIGHT = {
    ("mean", "-1.0"),  # of a normal distribution
    ("bias", "-1.0"),
    ("memory_bank_size", "0"),  # none
    ("num_local_views", "0"),
    ("keeping", "1"),  # an index
    ("free_of", "1"),
    ("keeping", "[]"),  # beside free_of
    ("free_of", "[]"),
    ("subspace_sigmoid", "scale", "-1.0"),
}


def spoilt(call: Call, parameter: inspect.Parameter, valid: dict[str, Any]) -> Iterator[tuple[str, object]]:
    name, optional = parameter.name, parameter.default is None
    values: list[tuple[str, object]] = []
    for kind in _kinds(parameter):
        if kind is type(None):
            optional = True
        elif kind is Tensor and name == "weights":
            values += [(repr(x), x) for x in PLACES]
        elif kind is Tensor:
            values += spoilt_tensors(valid[name] if isinstance(valid.get(name), Tensor) else tensors()[name])
        elif kind is float:
            values += [(repr(x), x) for x in NUMBERS if not {(name, repr(x)), (call.name, name, repr(x))} & RIGHT]
        elif kind is int:
            values += [(repr(x), x) for x in COUNTS if (name, repr(x)) not in RIGHT]
        elif kind is bool:
            values += [(repr(x), x) for x in FLAGS]
        elif get_origin(kind) is Literal:
            values += [(repr(x), x) for x in CHOICES]
        elif name in ("subspaces", "names"):
            bad = ["crop", [], ["a", ""], ["a", " ", "b"], ["a", "a", "b"], [1, 2, 3], {"a", "b", "c"}, Thing(), b"abc"]
            values += [(repr(x), x) for x in (*bad, 2.5, True)]
        elif name in ("stretch", "projector", "modules", "augmentations", "pairs", "finalize", "generator", "curves",
                      "regularizers", "weights", "masks", "memory_bank_size", "out", "out0", "out1", "path",
                      "ax", "backbone", "head", "keeping", "reference", "free_of", "views", "criterion",
                      "local_augmentations"):  # fmt: skip
            values += [(repr(x), x) for x in PLACES if (name, repr(x)) not in RIGHT]
        elif name == "images":
            values += [("[]", [])]  # the views refuse what is none, and call it their x
        else:
            raise AssertionError(f"{call.name}: {name}: {kind}: say above how to spoil it")
    tensor_or_number = _takes(parameter, Tensor) and _takes(parameter, float)
    for what, value in values:
        if value is None and optional:
            continue
        one = isinstance(value, Tensor) and what not in ("float8", "quantized") and value.numel() == 1
        if tensor_or_number and (what == "a number" or one):
            continue
        if isinstance(value, str) and any(get_origin(k) is Literal and value in get_args(k) for k in _kinds(parameter)):
            continue
        if name == "masks" and call.name == "MaskedSubspaceHead" and value is None:
            continue
        yield what, value


def calls() -> dict[str, Call]:
    found = {}
    spaces = ((mast_ops, mast_ops.__all__), (MF, MF.__all__), (masks, masks.__all__))
    spaces += ((analysis, _own(analysis)), (plots, _own(plots)))
    for space, names in spaces:
        for name in names:
            thing = getattr(space, name)
            if not callable(thing) or name in ("SubspaceOutput", "ViewPair") or inspect.isabstract(thing):
                continue
            if name in ("describe_masks", "make_masks", "masks_from_description"):  # the head's, not a user's
                continue
            if thing in [call.function for call in found.values()]:  # masks are in two places
                continue
            if "args" not in (signature := inspect.signature(thing)).parameters:  # of a module that takes nothing
                found[f"{space.__name__.removeprefix('mast_ops.')}.{name}"] = Call(name, thing, signature)
            if isinstance(thing, type) and issubclass(thing, SubspaceLoss | MaskRegularizer):
                forward = inspect.signature(thing().forward)
                found[f"{name}()"] = Call(name, lambda thing=thing, **options: thing()(**options), forward)
    groups = inspect.signature(mast_ops.param_groups)
    of_one = groups.replace(parameters=[x for x in groups.parameters.values() if x.name != "modules"])
    found["mast_ops.param_groups"] = Call(
        "param_groups", lambda **options: mast_ops.param_groups(MODULE, **options), of_one
    )
    found["MaskRegularizerSum"] = Call("MaskRegularizerSum", MaskRegularizerSum, inspect.signature(MaskRegularizerSum))
    found["load_heads"] = Call("load_heads", checkpoints.load_heads, inspect.signature(checkpoints.load_heads))
    return found


def _own(module: Any) -> list[str]:
    return [
        name
        for name, x in vars(module).items()
        if inspect.isfunction(x) and x.__module__ == module.__name__ and not name.startswith("_")
    ]


CALLS = calls()
ALSO = {"out0": "z0", "out1": "z1", "path": "checkpoint"}  # what else an error may call an argument
AGREE = {"of one more axis", "of seven axes", "empty", "a scalar"}  # here either of two that disagree may be named


def wrongly_met(call: Call, parameter: inspect.Parameter) -> list[str]:
    """What was accepted, or refused in other words than by the name of the argument, or after work began."""
    valid = call.arguments()
    found = []
    for what, value in spoilt(call, parameter, valid):
        before = torch.get_rng_state()
        try:
            with warnings.catch_warnings(action="ignore"):
                call({**valid, parameter.name: value})
            found.append(f"{what}: accepted")
        except Exception as error:
            names = list(call.signature.parameters) if what in AGREE else [parameter.name]
            starts = tuple(f"{name}{end}" for name in (*names, ALSO.get(parameter.name, "-")) for end in ":[.")
            if not isinstance(error, TypeError | ValueError) or not str(error).startswith(starts):
                found.append(f"{what}: {type(error).__name__}: {error}")
        if not torch.equal(torch.get_rng_state(), before):
            found.append(f"{what}: refused after something was drawn")
    return found


PARAMETERS = [
    (name, parameter.name)
    for name, call in CALLS.items()
    for parameter in call.signature.parameters.values()
    if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
]


@pytest.mark.parametrize("name", CALLS)
def test_right_calls_are_answered(name):
    if name == "load_heads":
        pytest.skip("it wants a file")
    with warnings.catch_warnings(action="ignore"):
        CALLS[name](CALLS[name].arguments())
    plt.close("all")


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_wrong_calls_are_refused_by_name(name, parameter):
    call = CALLS[name]
    assert wrongly_met(call, call.signature.parameters[parameter]) == []
    assert plt.get_fignums() == []


def test_whatever_is_met_wrongly_is_found():
    """The test above can fail."""

    def careless(start: float, masks: Tensor) -> Tensor:
        return torch.rand(2) * start * masks[0, 0]

    call = Call("careless", careless, inspect.signature(careless))
    met = {name: wrongly_met(call, parameter) for name, parameter in call.signature.parameters.items()}
    assert "nan: accepted" in met["start"]
    assert "'1': refused after something was drawn" in met["start"]
    assert any(line.startswith("a text: TypeError") for line in met["masks"])


def test_modules_that_are_none_are_refused():
    for modules in ((None,), ("x",), (iter([]),), (torch.ones(2),)):
        with pytest.raises(TypeError, match=r"^modules: got"):
            mast_ops.param_groups(*modules, lr=0.1)


def _real(x: Any) -> bool:
    """Of a dtype and layout that images come in."""
    return (
        isinstance(x, Tensor)
        and not x.is_nested
        and x.layout == torch.strided
        and x.dim() == 4
        and len(x) > 0
        and (x.is_complex() or x.dtype in (torch.float32, torch.int64, torch.bool))
    )


LOSSES = [name for name in mast_ops.__all__ if name.endswith("Loss") and name != "MultiViewLoss"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_kind_that_no_name_says_is_told_its_name(name):
    """A tensor there could be class labels, which are valid kinds: it is not guessed what it is."""
    known, loss = tensors(), getattr(mast_ops, name)()
    views, wanted = (known["z0"], known["z1"]), r": got Tensor by position .* by name, .*kind=kind\)$"
    with pytest.raises(TypeError, match=f"^{name}{wanted}"):
        loss(*views, known["kind"])
    with pytest.raises(TypeError, match=f"^MultiViewLoss{wanted}"):
        mast_ops.MultiViewLoss(loss)(views, views, known["kind"])
    with pytest.raises(TypeError, match=r"^targets: got Tensor, wanted .* kind=kind$"):
        mast_ops.MultiViewLoss(loss)(views, known["kind"])


HEAD = mast_ops.MaskedSubspaceHead(nn.Linear(H, D), NAMES, uncertainty="subspace")
VIEWS = mast_ops.FactorizedViews({name: lambda x: x + torch.rand(len(x), 1, 1, 1) for name in NAMES}, batched=True)
ITEM_VIEWS = mast_ops.FactorizedViews({name: lambda x: x + torch.rand(x.shape) for name in NAMES})
TWO = nn.Sequential(*({type("Random" + name, (nn.Module,), {"forward": lambda _, x: x + torch.rand(len(x), 1, 1, 1)})()
                       for name in ("Shift", "Shade")}))  # fmt: skip
ALLOCATED = masks.AllocatedMasks(K, D)
OUT = HEAD(torch.randn(N, H))
TWO_TERMS = mast_ops.MaskCoverage() + mast_ops.MaskOverlap()
STORED = checkpoints.StoredHead(tuple(NAMES), torch.rand(K, D), "own", {}, None, None, None, False)
THINGS = [None, 3, "nonsense", b"x", 2.5, True, Thing(), ["crop"], {}]
known = tensors()
PICTURES = torch.rand(2, 3, 4, 4)


def tensors_like(name: str) -> list[Any]:
    return [value for _, value in spoilt_tensors(known[name])]


def with_field(name: str) -> Callable[[Any], Any]:
    """A loss of an output that has something else in this field."""
    return lambda x: mast_ops.SubspaceVICRegLoss()(OUT._replace(**{name: x}), OUT)


def monitor(**options: Any) -> Any:
    from mast_ops.lightning import SubspaceMonitor

    return SubspaceMonitor(**options)


METHODS: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "head: h": (HEAD, THINGS),
    "subspace_index: subspace": (HEAD.subspace_index, [None, "x", 2.5, True, -1, K, Thing(), [], torch.tensor(0)]),
    "features: embedding": (
        lambda x: HEAD.features(x, free_of=0),
        [*THINGS, *tensors_like("z"), known["z"].to("meta")],
    ),
    "features_weight: masks": (lambda x: HEAD.features_weight(x, free_of=0), tensors_like("masks")),
    "with_subspaces: subspaces": (HEAD.with_subspaces, [None, "crop", [], ["x"], [1], {"crop"}, 2.5, Thing()]),
    "with_subspaces: new": (
        lambda x: HEAD.with_subspaces(["crop"], new=x),
        [None, 1, "crop", ["x"], ["crop"], [[]], Thing()],
    ),
    "with_subspaces: kinds": (
        lambda x: HEAD.with_subspaces(["crop", "noise", "blur"], new=["noise"], kinds=x),
        [*tensors_like("kinds"), torch.eye(K, dtype=torch.bool, device="meta")],
    ),
    "select: rows": (HEAD.masks.select, [None, 1, "x", [], [True], [2.5], ["x"], [-1], [K], Thing()]),
    "observe: explained": (ALLOCATED.observe, [None, *tensors_like("explained"), known["explained"].to("meta")]),
    "observe: weight": (
        lambda x: ALLOCATED.observe(known["explained"], x),
        [value for what, value in spoilt_tensors(torch.ones(K))] + [torch.ones(K, device="meta")],
    ),
    "observe: gathered": (lambda x: ALLOCATED.observe(known["explained"], gathered=x), FLAGS),
    "views: x": (
        VIEWS,
        [
            *THINGS,
            torch.zeros(2, 3),
            torch.zeros(0, 3, 4, 4),
            *(x for _, x in spoilt_tensors(PICTURES) if not _real(x)),
        ],
    ),
    "views of an item: x": (
        ITEM_VIEWS,
        [*THINGS, torch.tensor(1.0), PICTURES, PICTURES[0].to_sparse(), numpy.array(["a"]), numpy.zeros((0, 3))],
    ),
    "from_compose: image": (
        lambda x: mast_ops.FactorizedViews.from_compose(TWO, image=x, batched=True),
        [3, "x", [], torch.zeros(3), torch.zeros(0, 3, 4, 4), Thing()],
    ),
    "weights of views: weights": (
        lambda x: mast_ops.FactorizedViews({"a": lambda x: x}, pairs="all", weights=x),
        [[True], torch.ones(1, dtype=torch.bool), torch.ones(1).to_sparse(), torch.ones(1, device="meta"), [NAN], [0]],
    ),
    "kinds_of: pairs": (lambda x: kinds_of(x, K), [*PLACES, True, NAN, torch.eye(K, dtype=torch.bool, device="meta")]),
    "kinds_of: num_augmentations": (lambda x: kinds_of("mixed", x), COUNTS),
    "names_of_kinds: kinds": (lambda x: names_of_kinds(x, NAMES), tensors_like("kinds")),
    "names_of_kinds: augmentations": (lambda x: names_of_kinds(known["kinds"], x), [None, 1, "abc", [], [1, 2, 3]]),
    "make_views: name": (recipes.make_views, CHOICES),
    "make_views: size": (lambda x: recipes.make_views("simclr", x), COUNTS),
    "make_views: finalize": (lambda x: recipes.make_views("simclr", finalize=x), [None, nn.Identity()]),
    "describe: head": (inspection.describe, [None, 1, "x", HEAD, Thing()]),
    "describe: threshold": (lambda x: inspection.describe(STORED, threshold=x), NUMBERS),
    "monitor: every_n_steps": (lambda x: monitor(every_n_steps=x), COUNTS),
    "monitor: pictures": (lambda x: monitor(pictures=x), FLAGS),
    "chunk: chunks": (OUT.chunk, COUNTS),
    "chunk: dim": (lambda x: OUT.chunk(2, x), [None, "x", 1, -1, True, False, torch.ones(2)]),
    "split: split_size": (OUT.split, [*COUNTS, [N, 1], [-1, N + 1], [2.5, 3.5], ["x"]]),
    "to: dtype": (OUT.to, [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]),
    "a sum's weights: weights": (
        lambda x: setattr(TWO_TERMS, "weights", x),
        [None, 1, "ab", [1.0], [1.0, NAN], [1.0, "x"], [1.0, True], Thing(), torch.ones(2)],
    ),
    "a term's weight: weights": (lambda x: TWO_TERMS.weights.__setitem__(0, x), NUMBERS),
    "times: weight": (lambda x: mast_ops.MaskL1() * x, NUMBERS),
    "plus: other": (lambda x: mast_ops.MaskL1() + x, [*THINGS, torch.ones(2)]),
    "plus, from the right: other": (lambda x: x + mast_ops.MaskL1(), [*THINGS, torch.ones(2), nn.Linear(1, 1)]),
    "multi view: outs": (
        lambda x: mast_ops.MultiViewLoss(mast_ops.SubspaceVICRegLoss())(x, masks=known["masks"]),
        [None, *THINGS, known["z"], [known["z"]], OUT],
    ),
    **{
        f"a loss's output: {name}": (with_field(name), values)
        for name, values in {
            "embedding": tensors_like("z"),
            "masks": [None, *tensors_like("masks")],
            "log_variance": tensors_like("log_variance"),
            "kinds": tensors_like("kinds"),
            "granularity": CHOICES,
            "observer": [1, "x", Thing(), nn.Linear(1, 1)],
            "knows_kinds": [None, 1, 0, [True], Thing(), torch.tensor(True)],
        }.items()
    },
}
ALSO_OF_OUTPUTS = {
    "embedding": ("z0", "z1", "out0", "log_variance"),
    "log_variance": ("log_variance0", "log_variance1"),
}


@pytest.mark.parametrize("name", METHODS)
def test_wrong_calls_of_methods_are_refused_by_name(name):
    method, values = METHODS[name]
    argument = name.rpartition(" ")[2]
    names = (argument, f"out0.{argument}", f"out1.{argument}", *ALSO_OF_OUTPUTS.get(argument, ()))
    wanted = rf"^({'|'.join(map(re.escape, names))})\b"
    for value in values:
        before = torch.get_rng_state()
        with warnings.catch_warnings(action="ignore"), pytest.raises((TypeError, ValueError), match=wanted):
            method(value)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_in_a_dictionary_is_told_its_entry():
    """As data sets of Hugging Face give it, or a pair of images and labels."""
    batch = {"label": torch.zeros(2), "image": PICTURES}
    with pytest.raises(
        TypeError, match=r"^x: got dict, wanted .*; its entry 'image' is one: views\(batch\['image'\]\)$"
    ):
        VIEWS(batch)
    with pytest.raises(TypeError, match=r"its entry 0 is one: views\(batch\[0\]\)$"):
        VIEWS([PICTURES, torch.zeros(2)])
    with pytest.raises(TypeError, match=r"its entry 'image' is one"):
        ITEM_VIEWS({"index": torch.zeros(1), "image": PICTURES[0]})
    with pytest.raises(TypeError, match=r"batched=False for one image$"):
        VIEWS({"label": 3})


@pytest.mark.parametrize(("own", "stored"), [(0, (8, D)), ((8, D), 0), ((8, D), (4, D))])
def test_a_checkpoint_of_another_memory_bank_names_its_argument(own, stored):
    loss, other = (mast_ops.SubspaceNTXentLoss(memory_bank_size=size) for size in (own, stored))
    got = "no bank" if stored == 0 else re.escape(f"a bank of {stored}")
    wanted = "none" if own == 0 else re.escape(f"one of {own}")
    with pytest.raises(
        RuntimeError, match=f"memory_bank_size: got a checkpoint with {got}, wanted {wanted}, as this loss"
    ):
        nn.ModuleDict({"loss": loss}).load_state_dict(nn.ModuleDict({"loss": other}).state_dict())
    if 0 in (own, stored):
        loss.load_state_dict(other.state_dict(), strict=False)
    loss.load_state_dict(loss.state_dict())
    copy.deepcopy(loss).load_state_dict(loss.state_dict())
