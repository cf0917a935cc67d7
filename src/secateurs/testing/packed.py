"""Coded tensors to try a file format on, and when two of them are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from secateurs.pack.coded import Bools, Coded, Raw, Scaled, Shared
from secateurs.pack.dtypes import DTYPES, FLOATS, in_memory


def same_coded(found: Coded, expected: Coded) -> None:
    """Raises `AssertionError` unless the two are equal, bit for bit; a mask that keeps everything is no mask."""
    kept = None if expected.kept is None or expected.kept.all() else expected.kept
    assert (found.shape, found.dtype, type(found.content)) == (expected.shape, expected.dtype, type(expected.content))
    assert (found.kept is None) == (kept is None)
    assert found.kept is None or kept is None or np.array_equal(found.kept, kept)
    for name, mine in vars(expected.content).items():
        other = vars(found.content)[name]
        if isinstance(mine, np.ndarray):
            assert (other.dtype, other.shape, other.tobytes()) == (mine.dtype, mine.shape, mine.tobytes()), name
        else:
            assert other == mine, name


@st.composite
def coded_tensors(draw: st.DrawFn) -> Coded:
    """Any coded tensor of up to four dimensions: every content, type and density, with and without form."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    kept = draw(st.none() | st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    mask = None if kept is None else _mask(rng, shape, kept, draw(st.booleans()))
    kind = draw(st.sampled_from(["raw", "normal", "shared", "scaled"]))
    return _content(rng, shape, mask, kind, draw(st.sampled_from(DTYPES)))


def sample_tensors() -> dict[str, Coded]:
    """One of each kind, large enough for every coder and encoding to be of use; always the same."""
    rng = np.random.default_rng(0)
    found: dict[str, Coded] = {}
    for place, kind in enumerate(("raw", "shared", "scaled")):
        found[f"{kind}.dense"] = _content(rng, (3, 4, 3, 3), None, kind, "float32")
        for density in (0.02, 0.2):
            mask = _mask(rng, (20, 10 + place, 3, 3), density, False)
            found[f"{kind}.sparse{density}".replace("0.", "")] = _content(rng, mask.shape, mask, kind, "float32")
        mask = np.repeat(rng.random((40, 20)) < 0.1, 8, axis=1)
        found[f"{kind}.groups"] = _content(rng, mask.shape, mask, kind, "float32")
        mask = np.broadcast_to(np.arange(9) % 2 == 0, (6, 4, 9)).reshape(6, 4, 3, 3).copy()
        found[f"{kind}.strided"] = _content(rng, mask.shape, mask, kind, "float32")
        mask = np.zeros((2, 3000), dtype=np.bool_)
        mask[0, [3, 2900]] = mask[1, 2000] = True
        found[f"{kind}.gaps"] = _content(rng, mask.shape, mask, kind, "float32")
    blobs = np.repeat(np.repeat(rng.random((24, 6, 6)) < 0.08, 2, axis=1), 2, axis=2).reshape(24, 144)
    count = int(np.count_nonzero(blobs))
    half = rng.standard_normal(7).astype(np.float16).astype(np.float32)
    found["shared.blobs"] = Coded(blobs.shape, Shared(rng.integers(0, 7, count), half), blobs)
    upper = np.ldexp(np.float32(1), rng.integers(-60, 60, 24)).astype(np.float32)
    found["scaled.blobs"] = Coded(blobs.shape, Scaled(rng.integers(-3, 4, count), upper, 3), blobs)
    for dtype, density in (("float32", 1.0), ("float32", 0.3), ("float32", 0.002), ("bfloat16", 1.0), ("float16", 0.6)):
        mask = _mask(rng, (12, 24, 3, 3), density, False)
        found[f"split.{dtype}.kept{density}".replace("0.", "")] = _content(rng, mask.shape, mask, "normal", dtype)
    found["split.ones"] = Coded((300,), Raw(np.ones(300, dtype=np.float32)))
    found["split.few"] = Coded((20,), Raw(np.ldexp(np.float32(1.75), rng.integers(-2, 2, 20)).astype(np.float32)))
    found["norm.num_batches_tracked"] = Coded((), Raw(np.array([7])), dtype="int64")
    return found


def _mask(rng: np.random.Generator, shape: tuple[int, ...], density: float, rows_alike: bool) -> Bools:
    mask = np.asarray(rng.random(shape) < density)
    return np.broadcast_to(mask[:1], shape).copy() if rows_alike and shape and shape[0] else mask


def _content(rng: np.random.Generator, shape: tuple[int, ...], kept: Bools | None, kind: str, dtype: str) -> Coded:
    count = int(np.prod(shape)) if kept is None else int(np.count_nonzero(kept))
    if kind == "normal" and dtype in FLOATS:
        return Coded(shape, Raw(_normal(rng, count, dtype)), kept, dtype)
    if kind in ("raw", "normal"):
        octets = rng.integers(0, 256, count * in_memory(dtype).itemsize, dtype=np.uint8)
        values = octets % 2 == 1 if dtype == "bool" else octets.view(in_memory(dtype))
        return Coded(shape, Raw(values), kept, dtype)
    coded = dtype if dtype in FLOATS else "float32"
    if kind == "shared":
        levels = int(rng.integers(1, 40))
        codes = np.minimum(rng.geometric(0.2, count) - 1, levels - 1).astype(np.int64)
        return Coded(shape, Shared(codes, rng.standard_normal(levels).astype(np.float32)), kept, coded)
    bits = int(rng.integers(1, 12))
    most = (1 << (bits - 1)) - 1
    axis = int(rng.integers(len(shape))) if shape and rng.random() < 0.5 else None
    scale = rng.random(1 if axis is None else shape[axis]).astype(np.float32)
    return Coded(shape, Scaled(rng.integers(-most, most + 1, count), scale, bits, axis), kept, coded)


def _normal(rng: np.random.Generator, count: int, dtype: str) -> NDArray[Any]:
    """Normal numbers of a floating-point type, a few of them zeros, infinities, NaNs or too small for an exponent."""
    odd = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-7, 1e-40], count)
    numbers = np.where(rng.random(count) < 0.02, odd, rng.standard_normal(count) * 10.0 ** rng.integers(-2, 2))
    if dtype == "bfloat16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(in_memory(dtype))


__all__ = ["coded_tensors", "same_coded", "sample_tensors"]
