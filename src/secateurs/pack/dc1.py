"""The layout of the released Deep Compression files ("DC1"): 4-bit gaps, 8- or 4-bit codes, no Huffman.

Little-endian. First a uint32 per layer: entries, fillers included. Then for each layer: the codebook, 2^bits float32 of
which the first is 0.0; the bias, float32; the codes, packed, low nibble first; the gaps, 4 bits each, low nibble first.
Han et al., Deep Compression, 2016.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from torch import nn

from secateurs.base.errors import ArtifactError, InputError, explain
from secateurs.pack.bits import packed_bytes, unpack_bits
from secateurs.pack.coded import Coded, Raw, Shared
from secateurs.pack.refuse import refused
from secateurs.pack.varint import Cursor

GAP = 4
"""Bits of a gap."""


@dataclass(frozen=True)
class Layer:
    """What the file does not say of a layer. `bits` of its codes; None: 8 for convolutions, 4 for matrices."""

    name: str
    shape: tuple[int, ...]
    bits: int | None = None

    @property
    def code_bits(self) -> int:
        return (8 if len(self.shape) > 2 else 4) if self.bits is None else self.bits


def layers_of(model: nn.Module) -> list[Layer]:
    """The convolutions and linear layers of a model, in the order of its modules."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return [Layer(name, tuple(item.weight.shape)) for name, item in model.named_modules() if isinstance(item, kinds)]


def read_dc1(source: str | os.PathLike[str] | bytes, layers: Sequence[Layer] | nn.Module) -> dict[str, Coded]:
    """`<layer>.weight` as a shared tensor and `<layer>.bias` `[shape[0]]` for every layer, in the order of the file.

    The file does not say which layers it holds: `layers` does, or a model with these convolutions and linear layers in
    the order of its modules. `sec.pack(model, path, coded=sec.read_dc1(source, model))` makes a packed file of it, and
    `sec.unpack(path, build)` the model.

    Entries with code 0 are fillers or zeros and are not kept; code c of the file is entry c - 1 of the codebook here.
    Raises `ArtifactError` when the file does not fit the layers, `InputError` for layers that no file has.
    """
    layers = layers_of(layers) if isinstance(layers, nn.Module) else layers
    for layer in layers:
        if not 1 <= layer.code_bits <= 16 or not layer.shape or min(layer.shape) < 1:
            raise InputError(explain(f"`{layer.name}` is no layer of such a file", evidence=f"{layer}"))
    cursor = Cursor(source if isinstance(source, bytes) else _content(Path(source)), "the file")
    entries = np.frombuffer(cursor.take(4 * len(layers)), dtype="<u4").tolist()
    found: dict[str, Coded] = {}
    for layer, count in zip(layers, entries, strict=True):
        weight, bias = _layer(cursor, layer, count)
        found |= {f"{layer.name}.weight": weight, f"{layer.name}.bias": bias}
    cursor.end()
    return found


def _layer(cursor: Cursor, layer: Layer, entries: int) -> tuple[Coded, Coded]:
    size, bits = prod(layer.shape), layer.code_bits
    if entries > size:
        raise refused(f"`{layer.name}` has {size:,} weights and {entries:,} entries")
    codebook = _floats(cursor, 1 << bits)
    if codebook[0] != 0:
        raise refused(f"the codebook of `{layer.name}` begins with {codebook[0]}, not with 0")
    bias = _floats(cursor, layer.shape[0])
    codes = unpack_bits(cursor.take(packed_bytes(entries, bits)), entries, bits)
    gaps = unpack_bits(cursor.take(packed_bytes(entries, GAP)), entries, GAP)
    positions = np.cumsum(gaps, dtype=np.int64) + np.arange(entries)
    if entries and positions[-1] >= size:
        raise refused(f"gaps of `{layer.name}` lead to {int(positions[-1]):,} of {size:,}")
    real = codes > 0
    kept = np.zeros(size, dtype=np.bool_)
    kept[positions[real]] = True
    content = Shared(codes[real].astype(np.int64) - 1, codebook[1:])
    return Coded(layer.shape, content, kept.reshape(layer.shape)), Coded(bias.shape, Raw(bias))


def _floats(cursor: Cursor, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(cursor.take(4 * count), dtype="<f4").astype(np.float32)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(explain(f"`{path}` cannot be read", evidence=str(error))) from error


__all__ = ["Layer", "layers_of", "read_dc1"]
