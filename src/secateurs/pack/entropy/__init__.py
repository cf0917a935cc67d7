"""Coders of integer streams: one file each, and the choice of the cheapest."""

from secateurs.pack.entropy import ans, huffman, packed
from secateurs.pack.entropy.choice import decode_stream, encode_stream, estimate_stream
from secateurs.pack.entropy.coder import CODERS, Coder, Stream

__all__ = [
    "CODERS", "Coder", "Stream", "ans", "decode_stream", "encode_stream", "estimate_stream", "huffman", "packed",
]  # fmt: skip
