"""Matrix products over pieces that fit the cache, gradients by hand: the CPU path, and CUDA's where no kernel is.

Memory beyond inputs, outputs and gradients is a few pieces, whatever K and N.
"""
