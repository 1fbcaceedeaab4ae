"""What users would write, one file a family of operators: ``SUITES`` names the cases of each suite."""

from collections.abc import Callable

from benchmarks.case import Case, Settings
from benchmarks.contenders.contrast import info_nce, nt_xent
from benchmarks.contenders.cosine import cosine
from benchmarks.contenders.factorised import factorised_mean, factorised_none
from benchmarks.contenders.moments import moments
from benchmarks.contenders.own import own
from benchmarks.contenders.pairs import pairs, pairs_mean
from benchmarks.contenders.sparse import sparse

SUITES: dict[str, tuple[Callable[[Settings], Case], ...]] = {
    "pairs": (pairs,),
    "pairs-mean": (pairs_mean,),
    "factorised": (factorised_mean, factorised_none),
    "cosine": (cosine,),
    "info-nce": (info_nce,),
    "nt-xent": (nt_xent,),
    "own": (own,),
    "sparse": (sparse,),
    "moments": (moments,),
}
