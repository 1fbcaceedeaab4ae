"""Features after training: free of an augmentation, or keeping what it changes."""

import pytest
import torch
from torch import nn

from mast_ops import MaskedSubspaceHead, SubspaceFeatures

NAMES = ["crop", "color", "blur"]


def parts(**options) -> tuple[nn.Module, MaskedSubspaceHead]:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
    head = MaskedSubspaceHead(nn.Sequential(nn.Linear(16, 40), nn.BatchNorm1d(40)), NAMES, **options)
    return backbone, head


def test_keeping_and_free_of_mean_what_they_say():
    """Each mask opens all but two dimensions: what one of them closes changes with its augmentation."""
    head = parts()[1].eval()
    masks = head.masks().detach()
    embedding = torch.randn(5, 40)
    assert torch.equal(head.features(embedding, free_of="color"), embedding * masks[1])
    kept = head.features(embedding, keeping="color")
    assert torch.equal(kept + head.features(embedding, free_of="color"), embedding)
    assert (kept != 0).any(0).sum() == 2
    both = head.features(embedding, keeping="color", free_of=["crop", "blur"])
    assert torch.equal(both, kept * masks[0] * masks[2])
    assert torch.equal(both, kept)  # rows start with closed entries of their own


@pytest.mark.parametrize("masks", ["binary", "normalized", "sigmoid", "relu", "softplus", "hard_concrete"])
def test_weights_are_between_nothing_and_the_mask(masks):
    head = parts(masks=masks)[1].eval()
    weight = head.features_weight(head.masks(), keeping="crop")
    assert weight.min() == 0
    assert weight.max() <= 1


def test_dead_mask_keeps_all():
    head = parts(masks="relu")[1]
    assert head.features_weight(torch.zeros(3, 40), keeping=0).tolist() == [1] * 40


@pytest.mark.parametrize(
    "options", [{"free_of": "color"}, {"keeping": "color"}, {"keeping": "crop", "free_of": "blur"}]
)
def test_extractor_is_a_frozen_copy_of_the_dimensions_that_count(options):
    backbone, head = parts()
    extractor = SubspaceFeatures(backbone, head, **options)
    x = torch.randn(6, 3, 4)
    backbone.eval(), head.eval()
    full = head.features(head(backbone(x)), **options).detach()
    expected = full[:, (full != 0).any(0)]
    for mode in (True, False):
        extractor.train(mode)
        torch.testing.assert_close(extractor(x), expected)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    with torch.no_grad():
        head.projector[0].weight.zero_()
    torch.testing.assert_close(extractor(x), expected)
    other = SubspaceFeatures(*parts(), **options)
    other.load_state_dict(extractor.state_dict())
    torch.testing.assert_close(other(x), expected)


def test_export():
    extractor = SubspaceFeatures(*parts(), keeping="color")
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(extractor, (torch.randn(4, 3, 4),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 3, 4)
    torch.testing.assert_close(program.module()(x), extractor(x))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("trace", [torch.jit.trace, lambda module, _: torch.fx.symbolic_trace(module)])
def test_traces(trace):
    extractor, x = SubspaceFeatures(*parts(), keeping="color"), torch.randn(7, 3, 4)
    torch.testing.assert_close(trace(extractor, x[:4])(x), extractor(x))


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    extractor = SubspaceFeatures(*parts(), free_of="color")
    x = torch.randn(4, 3, 4)
    torch.onnx.export(extractor, (x,), tmp_path / "features.onnx", dynamo=True)
    model = onnx.load(tmp_path / "features.onnx")
    (found,) = reference.ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), extractor(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, ValueError, "keeping, free_of: got no subspace"),
        ({"keeping": "hue"}, ValueError, "keeping: got 'hue', wanted one of 'crop'"),
        ({"keeping": "crop", "free_of": ["blur", "crop"]}, ValueError, "wanted each subspace once"),
        ({"keeping": ["crop", "blur"]}, ValueError, "wanted some dimension that is both"),
        ({"keeping": None}, TypeError, "keeping: got None, wanted a name"),
        ({"free_of": 1.5}, TypeError, "free_of: got 1.5"),
        ({"free_of": [1.5]}, TypeError, "free_of: got 1.5"),
    ],
)
def test_wrong_names_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        SubspaceFeatures(*parts(), **options)


def test_wrong_modules_are_refused():
    backbone, head = parts()
    with pytest.raises(TypeError, match="backbone: got"):
        SubspaceFeatures(3, head, keeping="crop")
    with pytest.raises(TypeError, match="head: got Linear"):
        SubspaceFeatures(backbone, nn.Linear(2, 2), keeping="crop")
