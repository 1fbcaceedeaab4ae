"""Every operator against what its users would write by hand: ``python -m benchmarks --help``."""
