"""One coded tensor as bytes: the cheapest index, the cheapest coder for every stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.base.errors import InputError, explain
from secateurs.pack.bits import smallest, width_of
from secateurs.pack.coded import Coded, Raw, Shared
from secateurs.pack.dtypes import DTYPES, FLOATS, in_memory, narrowest, stored_as, to_table
from secateurs.pack.entropy import CODERS, Stream, encode_stream, estimate_stream
from secateurs.pack.index import ENCODINGS, Index, Mask
from secateurs.pack.record import DENSE, RAW, SCALED, SHARED, SPLIT, Coding, Record
from secateurs.pack.split import LAYOUTS, bounds, split

NEAR = 1.002
"""Indices whose estimated size is within this factor, and 64 bytes, of the least are compared by what they take."""

_NONE = memoryview(b"")


@dataclass(frozen=True)
class Encoded:
    """A record without names and checksum, its coded part (streams, floats), and its raw values, not yet aligned."""

    record: Record
    coded: bytes
    raw: memoryview

    @property
    def size(self) -> int:
        """Bytes that the tensor takes, those of its record included; without its names and padding."""
        return self.bytes + len(self.record.to_bytes(b""))

    @property
    def bytes(self) -> int:
        return len(self.coded) + len(self.raw)


def encode(tensor: Coded, *, thorough: bool = False) -> Encoded:
    """The smallest form of `tensor`; `thorough` tries slow encodings of the index too.

    Raises `InputError` when its parts contradict each other.
    """
    _check(tensor)
    if tensor.kept is None or tensor.kept.all():
        return _with(tensor, None)
    mask = Mask.of(tensor.kept)
    found = [(_estimate(tensor, index), index) for index in _indices(tensor, mask, thorough)]
    least = min(size for size, _ in found)
    near = [_with(tensor, index) for size, index in found if size <= least * NEAR + 64]
    return min(near, key=lambda item: (item.size, item.record.index, item.record.parameters))


def _indices(tensor: Coded, mask: Mask, thorough: bool) -> list[Index]:
    tried = [ENCODINGS[name] for name in ENCODINGS if thorough or not ENCODINGS[name].slow]
    found = [encoding.encode(mask, parameters) for encoding in tried for parameters in encoding.choices(mask)]
    if isinstance(tensor.content, Raw) and not _octets(tensor).any(axis=1).all():
        found = [index for index in found if index.real is None]  # a kept zero would be taken for a filler
    return found


def _estimate(tensor: Coded, index: Index) -> float:
    each = (
        in_memory(tensor.dtype).itemsize
        if isinstance(tensor.content, Raw)
        else width_of(_bound(tensor, index.fillers)) / 8
    )
    return sum(estimate_stream(field.numbers, field.bound) for field in index.fields) + index.fillers * each


def _with(tensor: Coded, index: Index | None) -> Encoded:
    """The tensor with its kept positions in one form."""
    content = tensor.content
    streams = [encode_stream(field.numbers, field.bound) for field in index.fields] if index else []
    record = Record(
        names=(),
        shape=tensor.shape,
        dtype=tensor.dtype,
        content=RAW,
        index=ENCODINGS[index.encoding].code if index else DENSE,
        count=tensor.count,
        parameters=index.parameters if index else (),
    )
    if isinstance(content, Raw):
        return _smaller(record, streams, _octets(tensor) if index is None else _filled(_octets(tensor), index))
    bound = _bound(tensor, index.fillers if index else 0)
    streams.append(encode_stream(_symbols(tensor, index, bound), bound))
    if isinstance(content, Shared):
        numbers, record = content.codebook, replace(record, content=SHARED, levels=content.codebook.size)
    else:
        numbers, record = content.scale, replace(record, content=SCALED, bits=content.bits, axis=content.axis)
    table = narrowest(numbers)
    return _encoded(replace(record, table=table), streams, to_table(numbers, table))


def _smaller(record: Record, streams: list[Stream], octets: NDArray[np.uint8]) -> Encoded:
    """Stored values as they are, or split where that is smaller; `streams` say where they belong."""
    whole = _encoded(record, streams, raw=octets.reshape(-1).data)
    if record.dtype not in LAYOUTS:
        return whole
    parts = split(octets.reshape(-1).view(f"<u{octets.shape[1]}"), record.dtype)
    numbers = zip((parts.exponents, parts.rests), bounds(record.dtype, parts.least, parts.spare), strict=True)
    each = [*streams, *(encode_stream(symbols, bound) for symbols, bound in numbers)]
    apart = _encoded(replace(record, content=SPLIT, least=parts.least, spare=parts.spare), each)
    return apart if apart.size < whole.size else whole


def _encoded(record: Record, streams: list[Stream], floats: bytes = b"", raw: memoryview = _NONE) -> Encoded:
    """The record with its streams, and the bytes of both."""
    codings = tuple(Coding(CODERS[item.coder].code, len(item.table), len(item.payload)) for item in streams)
    coded = [part for stream in streams for part in (stream.table, stream.payload)]
    return Encoded(replace(record, streams=codings), b"".join([*coded, floats]), raw)


def _octets(tensor: Coded) -> NDArray[np.uint8]:
    """The raw values as bytes in the order of the file, `[values, bytes of one]`."""
    assert isinstance(tensor.content, Raw)
    values = np.ascontiguousarray(tensor.content.values)
    kind = stored_as(tensor.dtype)
    octets: NDArray[np.uint8] = values.view(kind.newbyteorder("=")).astype(kind, copy=False).view(np.uint8)
    return octets.reshape(values.size, kind.itemsize)


def _filled(rows: NDArray[np.uint8], index: Index) -> NDArray[np.uint8]:
    """The bytes of kept entries `[kept, item]` with zeros where there are fillers."""
    if index.real is None:
        return rows
    result = np.zeros((index.real.size, rows.shape[1]), dtype=np.uint8)
    result[index.real] = rows
    return result


def _bound(tensor: Coded, fillers: int) -> int:
    """Symbols of the codes are below this: one more when 0 is that of fillers."""
    content = tensor.content
    assert not isinstance(content, Raw)
    levels = content.codebook.size if isinstance(content, Shared) else (1 << content.bits) - 1
    return levels + (fillers > 0)


def _symbols(tensor: Coded, index: Index | None, bound: int) -> NDArray[np.integer[Any]]:
    """Codes as non-negative numbers: signed ones as 0, -1, 1, -2, ...; with fillers all one higher, fillers 0."""
    content = tensor.content
    assert not isinstance(content, Raw)
    codes = content.codes.astype(np.int64)
    codes = codes if isinstance(content, Shared) else (codes << 1) ^ (codes >> 63)
    kind = smallest(width_of(bound))
    if index is None or index.real is None:
        return codes.astype(kind)
    result: NDArray[np.integer[Any]] = np.zeros(index.real.size, dtype=kind)
    result[index.real] = codes + 1
    return result


def _check(tensor: Coded) -> None:
    content = tensor.content
    if tensor.dtype not in DTYPES:
        raise _contradiction(f"its type is {tensor.dtype!r}; known: {', '.join(DTYPES)}")
    if isinstance(content, Raw):
        if content.values.dtype != in_memory(tensor.dtype):
            raise _contradiction(f"values are {content.values.dtype}, a {tensor.dtype} has {in_memory(tensor.dtype)}")
        return
    if tensor.dtype not in FLOATS:
        raise _contradiction(f"it has codes and decodes to {tensor.dtype}")
    low, high = (int(content.codes.min()), int(content.codes.max())) if content.codes.size else (0, 0)
    if isinstance(content, Shared):
        levels = content.codebook.size
        if content.codebook.shape != (levels,) or levels > 1 << 16 or content.codebook.dtype != np.float32:
            raise _contradiction(f"its codebook is {content.codebook.dtype} {list(content.codebook.shape)}")
        if low < 0 or (content.codes.size and high >= levels):
            raise _contradiction(f"codes from {low} to {high} for {levels} values")
        return
    axis = content.axis
    if not 1 <= content.bits <= 32 or max(-low, high) >= 1 << (content.bits - 1):
        raise _contradiction(f"codes from {low} to {high} in {content.bits} bits")
    if axis is not None and not 0 <= axis < len(tensor.shape):
        raise _contradiction(f"scales along axis {axis} of {len(tensor.shape)}")
    channels = 1 if axis is None else tensor.shape[axis]
    if content.scale.shape != (channels,) or content.scale.dtype != np.float32:
        raise _contradiction(f"{content.scale.dtype} scales {list(content.scale.shape)} for {channels} channels")


def _contradiction(evidence: str) -> InputError:
    return InputError(explain("This coded tensor cannot be written", evidence=evidence))


__all__ = ["Encoded", "encode"]
