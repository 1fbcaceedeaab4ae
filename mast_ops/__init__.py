"""mast-ops: Masked Augmentation Subspace Training for PyTorch."""
