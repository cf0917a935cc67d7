"""The models that the benchmarks run: built on the spot with random weights, nothing is downloaded."""
