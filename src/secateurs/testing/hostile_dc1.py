"""Files of the released Deep Compression layout that were tampered with, and a slow reader to compare with.

Such a file has no checksum: what was altered must be refused, or read as what it now says.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from functools import cache
from math import prod

import numpy as np

from secateurs.base.errors import ArtifactError
from secateurs.pack.coded import Coded
from secateurs.pack.container import read, to_bytes
from secateurs.pack.dc1 import Layer, read_dc1
from secateurs.testing.damage import DAMAGE, NUMBERS

LAYERS = (Layer("conv", (3, 2, 3, 3)), Layer("fc", (4, 30)), Layer("narrow", (2, 9), 3), Layer("one", (1,), 1))


@dataclass(frozen=True)
class Buffer:
    """Bytes, and the layers that they are read as."""

    data: bytes
    layers: tuple[Layer, ...]


def buffer(rng: random.Random) -> tuple[Buffer, Buffer, str]:
    """A sound file, the same tampered with, and how."""
    sound = rng.choice(sound_buffers())
    how = rng.choice([*DAMAGE, "count", "layers"])
    if how == "count":
        place, number = 4 * rng.randrange(len(sound.layers)), rng.choice((*NUMBERS[:12], rng.randrange(40)))
        data = sound.data[:place] + struct.pack("<I", number) + sound.data[place + 4 :]
        return sound, replace(sound, data=data), how
    if how == "layers":
        return sound, replace(sound, layers=_other_layers(rng, sound.layers)), how
    return sound, replace(sound, data=DAMAGE[how](rng, sound.data)), how


def came_of(subject: Buffer, *, packs: bool = False) -> dict[str, bytes] | None:
    """`{name: float32 values}` as `read_dc1` gives them, and a packed file made of it (`packs`); None if refused.

    Raises `AssertionError` when the slow reader reads something else, or does not refuse what was refused here.
    """
    expected, found = slowly_read(subject), _read(subject)
    assert (expected is None) == (found is None), f"refused by {'the slow reader' if expected is None else 'ours'} only"
    if expected is None or found is None:
        return None
    packed = read(to_bytes(found)) if packs else None
    for name, tensor in found.items():
        assert tensor.decode().tobytes() == expected[name], f"`{name}` is read as something else"
        assert packed is None or packed[name].tobytes() == expected[name], f"`{name}` is packed as something else"
    return expected


def _read(subject: Buffer) -> dict[str, Coded] | None:
    try:
        return read_dc1(subject.data, subject.layers)
    except ArtifactError:
        return None


def slowly_read(subject: Buffer) -> dict[str, bytes] | None:
    """The layout again, entry by entry from one large integer; None where the file does not fit the layers."""
    data, layers = subject.data, subject.layers
    at = 4 * len(layers)
    if len(data) < at:
        return None
    found: dict[str, bytes] = {}
    for place, layer in enumerate(layers):
        entries, bits, size = (
            int.from_bytes(data[4 * place : 4 * place + 4], "little"),
            layer.code_bits,
            prod(layer.shape),
        )
        ends = [
            at := at + length for length in (4 << bits, 4 * layer.shape[0], -(-entries * bits // 8), -(-entries // 2))
        ]
        start = ends[0] - (4 << bits)
        if at > len(data) or entries > size:
            return None
        codebook, bias = data[start : ends[0]], data[ends[0] : ends[1]]
        codes, gaps = (int.from_bytes(data[a:b], "little") for a, b in ((ends[1], ends[2]), (ends[2], ends[3])))
        if codebook[:4] not in (b"\0\0\0\0", b"\0\0\0\x80") or codes >> entries * bits or gaps >> entries * 4:
            return None
        values = [b"\0\0\0\0"] * size
        position = -1
        for entry in range(entries):
            position += (gaps >> entry * 4 & 15) + 1
            code = codes >> entry * bits & (1 << bits) - 1
            if position >= size:
                return None
            if code:
                values[position] = codebook[4 * code : 4 * code + 4]
        found |= {f"{layer.name}.weight": b"".join(values), f"{layer.name}.bias": bias}
    return found if at == len(data) else None


@cache
def sound_buffers() -> tuple[Buffer, ...]:
    """Small files: few entries, many, all, none."""
    rng = np.random.default_rng(0)
    return tuple(Buffer(_written(rng, LAYERS, share), LAYERS) for share in (0.0, 0.1, 0.5, 1.0))


def _written(rng: np.random.Generator, layers: tuple[Layer, ...], share: float) -> bytes:
    heads, bodies = [], []
    for layer in layers:
        bits, size = layer.code_bits, prod(layer.shape)
        positions = np.flatnonzero(rng.random(size) < share)
        gaps = np.diff(positions, prepend=-1) - 1
        gaps = gaps[: next((place for place, gap in enumerate(gaps) if gap > 15), len(gaps))]
        codes = rng.integers(0, 1 << bits, len(gaps))
        codebook = np.concatenate([[0], rng.standard_normal((1 << bits) - 1)])
        body = codebook.astype("<f4").tobytes() + rng.standard_normal(layer.shape[0]).astype("<f4").tobytes()
        for numbers, width in ((codes, bits), (gaps, 4)):
            whole = sum(int(number) << width * place for place, number in enumerate(numbers))
            body += whole.to_bytes((len(numbers) * width + 7) // 8, "little")
        heads.append(len(gaps))
        bodies.append(body)
    return struct.pack(f"<{len(heads)}I", *heads) + b"".join(bodies)


def _other_layers(rng: random.Random, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Layers that the file was not made for: in another order, one gone, one of another shape or width."""
    found = list(layers)
    place = rng.randrange(len(found))
    kind = rng.randrange(4)
    if kind == 0:
        rng.shuffle(found)
    elif kind == 1:
        del found[place]
    elif kind == 2:
        shape = list(found[place].shape)
        at = rng.randrange(len(shape))
        shape[at] = max(1, shape[at] + rng.choice((-1, 1, 7)))
        found[place] = replace(found[place], shape=tuple(shape))
    else:
        found[place] = replace(found[place], bits=rng.randrange(1, 11))
    return tuple(found)


__all__ = ["Buffer", "buffer", "came_of", "slowly_read", "sound_buffers"]
