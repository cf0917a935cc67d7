"""The patterns: one file each."""

from secateurs.sparsity.patterns import block, filter, kernel, n_m, rows, simd, strided, vector, weight

__all__ = ["block", "filter", "kernel", "n_m", "rows", "simd", "strided", "vector", "weight"]
