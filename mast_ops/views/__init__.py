"""Pairs of views that differ in known augmentations."""

from mast_ops.views.factorized import FactorizedViews, ViewPair

__all__ = ["FactorizedViews", "ViewPair"]
