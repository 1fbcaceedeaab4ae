"""The plain formulas, differentiated by autograd: what every other backend is tested against.

They may hold N x N scores for each subspace, or a D x D covariance, in memory.
"""
