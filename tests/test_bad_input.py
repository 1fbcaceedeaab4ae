"""Bad input is met by an error that names the argument, before any work."""

import pytest
import torch
from torch import nn

import mast_ops.functional as MF
from mast_ops import (
    HardConcreteMasks,
    MaskCoverage,
    MaskedSubspaceHead,
    MaskExpectedL0,
    NormalizedMasks,
    SigmoidMasks,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
)

N, D, K = 4, 6, 3
Z, M = torch.randn(N, D), torch.rand(K, D)
INDEX = torch.tensor([0, 1, 2, 0])
LOSSES = (
    UncertaintyInvarianceLoss,
    SubspaceVICRegLoss,
    SubspaceNTXentLoss,
    SubspaceCosineLoss,
    SubspaceBarlowTwinsLoss,
)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, D))


VIEWS = {
    "other shape": (Z, Z[:, :-1], M, None, ValueError, "out1|z1: got shape"),
    "other rows": (Z, Z[:-1], M, None, ValueError, "z1: got shape"),
    "three axes": (Z[None], Z[None], M, None, ValueError, "z0: got shape"),
    "other dtype": (Z, Z.double(), M, None, ValueError, "z1: got dtype"),
    "other device": (Z, Z.to("meta"), M, None, ValueError, "z1: got device"),
    "integers": (Z.long(), Z.long(), M, None, TypeError, "z0: got dtype torch.int64"),
    "not a tensor": ([1.0], Z, M, None, TypeError, "z0: got list"),
    "empty batch": (Z[:0], Z[:0], M, None, ValueError, "z0: got an empty tensor"),
    "masks of other D": (Z, Z, M[:, :-1], None, ValueError, r"masks: got \(3, 5\)"),
    "masks of one axis": (Z, Z, M[0], None, ValueError, "masks: got shape"),
    "no subspaces": (Z, Z, M[:0], None, ValueError, "masks: got an empty"),
    "masks of other dtype": (Z, Z, M.double(), None, TypeError, "masks: got dtype torch.float64"),
    "masks of integers": (Z, Z, M.long(), None, TypeError, "masks: got dtype torch.int64"),
    "masks elsewhere": (Z, Z, M.to("meta"), None, ValueError, "masks: got device meta"),
    "no masks": (Z, Z, None, None, ValueError, "masks: got None"),
    "masks twice": (SubspaceOutput(Z, M), Z, M, None, ValueError, "masks: got a tensor beside"),
    "heads of other K": (SubspaceOutput(Z, M), SubspaceOutput(Z, M[:2]), None, None, ValueError, "out1.masks"),
    "index too high": (Z, Z, M, INDEX + 1, ValueError, "kind: got indices from 1 to 3, wanted 0 to 2"),
    "index negative": (Z, Z, M, INDEX - 1, ValueError, "kind: got indices from -1"),
    "index of floats": (Z, Z, M, INDEX.float(), TypeError, "kind: got dtype torch.float32"),
    "index of int32": (Z, Z, M, INDEX.int(), TypeError, "kind: got dtype torch.int32"),
    "index of other N": (Z, Z, M, INDEX[:2], ValueError, r"kind: got shape \(2,\)"),
    "index elsewhere": (Z, Z, M, INDEX.to("meta"), ValueError, "kind: got device meta"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", VIEWS)
def test_views_of_every_loss(loss, case):
    out0, out1, masks, kind, error, message = VIEWS[case]
    with pytest.raises(error, match=message):
        loss()(out0, out1, masks=masks, kind=kind)


CALLS = {
    "vicreg of one": (lambda: SubspaceVICRegLoss()(Z[:1], Z[:1], masks=M), ValueError, r"out0: got N=1 sample"),
    "nt-xent of one": (
        lambda: SubspaceNTXentLoss()(Z[:1], Z[:1], masks=M, kind=INDEX[:1]),
        ValueError,
        "z0: got N=1 .*sensitivity_param=0 goes without",
    ),
    "barlow of one": (lambda: SubspaceBarlowTwinsLoss()(Z[:1], Z[:1], masks=M), ValueError, "z0: got N=1"),
    "variance of one": (lambda: MF.subspace_variance(Z[:1], M), ValueError, "z: got N=1"),
    "temperature 0": (lambda: SubspaceNTXentLoss(temperature=0.0), ValueError, "temperature: got 0.0"),
    "temperature < 0": (lambda: MF.subspace_info_nce(Z, Z, M, temperature=-0.1), ValueError, "temperature: got -0.1"),
    "temperature nan": (lambda: SubspaceNTXentLoss(float("nan")), ValueError, "temperature: got nan"),
    "temperature tensor": (lambda: SubspaceNTXentLoss(torch.tensor(-1.0)), ValueError, "temperature: got -1.0"),
    "temperature of two": (lambda: SubspaceNTXentLoss(torch.ones(2)), ValueError, "temperature: got a"),
    "reduction": (
        lambda: MF.subspace_nt_xent(Z, Z, M, temperature=0.1, reduction="sum"),
        ValueError,
        "reduction: got 'sum'",
    ),
    "weight < 0": (lambda: SubspaceVICRegLoss(mu_param=-1), ValueError, "mu_param: got -1"),
    "weight inf": (lambda: SubspaceBarlowTwinsLoss(lambda_param=float("inf")), ValueError, "lambda_param: got inf"),
    "eps": (lambda: SubspaceVICRegLoss(eps=0), ValueError, "eps: got 0"),
    "scope": (lambda: SubspaceVICRegLoss(scope="batch"), ValueError, "scope: got 'batch'"),
    "distance": (lambda: UncertaintyInvarianceLoss(distance="l1"), ValueError, "distance: got 'l1'"),
    "granularity": (
        lambda: MF.uncertainty_invariance(Z, Z, M, log_variance=Z, granularity="pixel"),
        ValueError,
        "granularity: got 'pixel'",
    ),
    "granularity of an output": (
        lambda: UncertaintyInvarianceLoss()(SubspaceOutput(Z, M, Z, granularity="pixel"), Z),
        ValueError,
        "granularity: got 'pixel'",
    ),
    "granularity missing": (
        lambda: MF.uncertainty_invariance(Z, Z, M, log_variance=Z),
        ValueError,
        "granularity: got None beside log_variance, wanted both or neither",
    ),
    "granularity alone": (
        lambda: MF.uncertainty_invariance(Z, Z, M, granularity="sample"),
        ValueError,
        "log_variance: got None beside granularity, wanted both or neither",
    ),
    "granularity missing in an output": (
        lambda: SubspaceVICRegLoss()(SubspaceOutput(Z, M, Z), Z),
        ValueError,
        "granularity: got None beside the log_variance of an output",
    ),
    "log-variance missing in an output": (
        lambda: SubspaceVICRegLoss()(Z, SubspaceOutput(Z, M, granularity="sample")),
        ValueError,
        "log_variance: got None beside the granularity of an output",
    ),
    "granularities disagree": (
        lambda: SubspaceVICRegLoss()(
            SubspaceOutput(Z, torch.ones(D, D), Z, granularity="subspace"),
            SubspaceOutput(Z, torch.ones(D, D), Z, granularity="dimension"),
        ),
        ValueError,
        "out1.granularity: got 'dimension', wanted 'subspace', that of out0",
    ),
    "regularizer weight": (lambda: -1.0 * MaskCoverage(), ValueError, "weight: got -1.0"),
    "floor": (lambda: MaskCoverage(floor=1.5), ValueError, "floor: got 1.5"),
    "expected L0 of soft masks": (lambda: MaskExpectedL0()(SigmoidMasks(2, 3)), TypeError, "masks: got SigmoidMasks"),
    "coverage": (lambda: NormalizedMasks(2, 3, coverage=1.0), ValueError, "coverage: got 1.0"),
    "sensitivity of one": (
        lambda: SubspaceCosineLoss(sensitivity_param=1)(Z[:1], Z[:1], masks=M, kind=INDEX[:1]),
        ValueError,
        "z0: got N=1",
    ),
    "sensitivity's weight": (lambda: SubspaceNTXentLoss(sensitivity_param=-1), ValueError, "sensitivity_param: got -1"),
    "stretch": (lambda: HardConcreteMasks(2, 3, stretch=(0.0, 1.1)), ValueError, "stretch: got"),
    "masks of no dimension": (lambda: SigmoidMasks(2, 0), ValueError, "dim: got 0"),
    "log-variance of other N": (
        lambda: MF.uncertainty_invariance(Z, Z, M, log_variance=Z[:2], granularity="dimension"),
        ValueError,
        r"log_variance: got shape \(2, 6\), wanted 4 rows",
    ),
    "log-variance of another width": (
        lambda: MF.uncertainty_invariance(Z, Z, M, log_variance=Z, granularity="subspace"),
        ValueError,
        r"log_variance: got shape \(4, 6\), wanted \(4, 3\), one per subspace",
    ),
    "log-variance per sample of another width": (
        lambda: UncertaintyInvarianceLoss()(SubspaceOutput(Z, M, Z, granularity="sample"), Z),
        ValueError,
        r"log_variance: got shape \(4, 6\), wanted \(4, 1\), one per sample",
    ),
    "log-variance of another dtype": (
        lambda: MF.uncertainty_invariance(Z, Z, M, log_variance=Z.double(), granularity="dimension"),
        TypeError,
        "log_variance: got dtype torch.float64",
    ),
    "cosine per dimension": (
        lambda: MF.uncertainty_invariance(Z, Z, M, log_variance=Z, granularity="dimension", distance="cosine"),
        ValueError,
        "distance: got 'cosine'",
    ),
    "log-variances disagree": (lambda: MF.combine_log_variance(Z, Z[:2]), ValueError, "log_variance1: got shape"),
    "repeated names": (lambda: MaskedSubspaceHead(mlp(), ["a", "b", "a"]), ValueError, "subspaces: got 'a' more than"),
    "one string": (lambda: MaskedSubspaceHead(mlp(), "crop"), TypeError, "subspaces: got 'crop'"),
    "no names": (lambda: MaskedSubspaceHead(mlp(), []), ValueError, "subspaces: got no names"),
    "names of numbers": (lambda: MaskedSubspaceHead(mlp(), [1, 2]), TypeError, "subspaces: got 1 among"),
    "K = 0": (lambda: MaskedSubspaceHead(mlp(), 0), ValueError, "subspaces: got 0"),
    "uncertainty": (lambda: MaskedSubspaceHead(mlp(), 2, uncertainty="pixel"), ValueError, "uncertainty: got 'pixel'"),
    "parameterisation": (lambda: MaskedSubspaceHead(mlp(), 2, masks="tanh"), ValueError, "masks: got 'tanh'"),
    "parameterisation's shape": (
        lambda: MaskedSubspaceHead(mlp(), 2, masks=SigmoidMasks(3, D)),
        ValueError,
        r"masks: got \(K, D\) = \(3, 6\), wanted \(2, 6\)",
    ),
    "unknown name": (
        lambda: MaskedSubspaceHead(mlp(), ["a"]).features(Z, free_of="b"),
        ValueError,
        "free_of: got 'b'",
    ),
    "unknown index": (lambda: MaskedSubspaceHead(mlp(), 2).subspace_index(2), ValueError, "subspace: got 2"),
    "view of other D": (
        lambda: MaskedSubspaceHead(mlp(), 2).features(Z[:, :2], keeping=0),
        ValueError,
        "embedding: got shape",
    ),
    "width left open": (lambda: MaskedSubspaceHead(nn.Bilinear(8, 8, D), 2), ValueError, "pass output_dim="),
    "input left open": (
        lambda: MaskedSubspaceHead(nn.LazyLinear(D), 2, uncertainty="sample"),
        ValueError,
        "pass input_dim=",
    ),
    "wrong width": (
        lambda: MaskedSubspaceHead(mlp(), 2, output_dim=9)(torch.randn(N, 8)),
        ValueError,
        "output_dim: got 9, wanted 6",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_call(case):
    call, error, message = CALLS[case]
    with pytest.raises(error, match=message):
        call()


def test_index_out_of_range_under_compile():
    compiled = torch.compile(MF.masked_distance, fullgraph=True)
    compiled(Z, Z, M, kind=INDEX)
    with pytest.raises(RuntimeError, match="kind: got an index out of range"):
        compiled(Z, Z, M, kind=INDEX - 1)


def test_checkpoint_of_other_subspaces_is_refused_whole():
    stored = MaskedSubspaceHead(mlp(), ["crop", "color"]).state_dict()
    head = MaskedSubspaceHead(mlp(), ["crop", "blur"])
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(ValueError, match=r"state_dict: got a head of subspaces \('crop', 'color'\), wanted"):
        head.load_state_dict(stored)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
