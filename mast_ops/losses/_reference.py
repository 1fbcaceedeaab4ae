"""Two views beside a reference of little augmentation, against which each has a difficulty of its own."""

from typing import NamedTuple

import torch

from mast_ops._checks import check_alike, check_embedding
from mast_ops.output import SubspaceOutput, View
from mast_ops.pairs import Pairs, Uncertainty


class Judged(NamedTuple):
    """Either view with the reference, from which it differs in all augmentations."""

    first: Pairs
    second: Pairs

    @classmethod
    def by(cls, reference: View, out0: View, out1: View, pairs: Pairs) -> "Judged":
        """``pairs`` are the two views' own, of outputs that are checked."""
        embedding = reference.embedding if isinstance(reference, SubspaceOutput) else reference
        check_embedding("reference", embedding)
        check_alike("reference", embedding, "out0", pairs.z0)
        if isinstance(reference, SubspaceOutput):
            check_alike("reference.masks", reference.masks, "out0.masks", pairs.masks)
        differs = torch.ones(1, len(pairs.masks), dtype=torch.bool, device=pairs.z0.device)
        kind = torch.zeros(len(pairs.z0), dtype=torch.int64, device=pairs.z0.device)

        def beside(name: str, out: View) -> Pairs:
            if not isinstance(out, SubspaceOutput) or out.log_variance is None or out.granularity is None:
                raise ValueError(
                    f"reference: got one beside {name} without a predicted variance, wanted two views of a head that "
                    "predicts it, as MaskedSubspaceHead(projector, views, uncertainty='sample') does"
                )
            doubt = Uncertainty(out.log_variance, out.granularity)
            return Pairs.of(out.embedding, embedding, pairs.masks, kinds=differs, kind=kind, uncertainty=doubt)

        return cls(beside("out0", out0), beside("out1", out1))
