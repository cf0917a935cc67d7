"""Quantise, share weights, code by entropy: one small file, and back."""
