"""The bytes of one tensor back into a coded tensor; every number is checked before it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.pack.bits import Numbers
from secateurs.pack.coded import Bools, Coded, Raw, Scaled, Shared
from secateurs.pack.dtypes import from_table, in_memory, stored_as
from secateurs.pack.entropy import decode_stream
from secateurs.pack.index.encoding import Positions
from secateurs.pack.record import RAW, SHARED, SPLIT, Layout, Record
from secateurs.pack.refuse import refused
from secateurs.pack.split import Split, bounds, joined


def decode(data: memoryview, record: Record, layout: Layout) -> Coded:
    """The tensor whose bytes lie in `data` as `layout` says; raw values are views of it where nothing was filled in.

    Codes are of the smallest type that holds them. Raises `ArtifactError` on bytes that `encode` does not write.
    """
    if any(data[layout.bounds[-1] : layout.raw]):
        raise refused(f"the padding of `{record.names[0]}` is not zero")
    streams = _Streams(data, record, layout)
    positions, maybe = _positions(record, streams)
    floats = from_table(data[layout.bounds[-2] : layout.bounds[-1]], record.table)
    content: Raw | Shared | Scaled
    if record.content in (RAW, SPLIT):
        values = _raw(data[layout.raw : layout.end], record) if record.content == RAW else _joined(streams, record)
        if maybe is not None:
            positions, values = _without_fillers(record, positions, maybe, values, _is_zero(values))
        content = Raw(values)
    else:
        levels = record.levels if record.content == SHARED else (1 << record.bits) - 1
        symbols = streams.read(record.stored, levels + (maybe is not None))
        codes: NDArray[Any] = symbols
        if maybe is not None:
            positions, codes = _without_fillers(record, positions, maybe, symbols, symbols == 0)
            codes = codes - codes.dtype.type(1)
        content = _coded(record, codes, floats)
    return Coded(record.shape, content, _kept(record, positions), record.dtype)


def widened(tensor: Coded) -> Coded:
    """The same with codes of 64 bits, as those who make coded tensors give them."""
    content = tensor.content
    return (
        tensor
        if isinstance(content, Raw)
        else replace(tensor, content=replace(content, codes=content.codes.astype("i8")))
    )


class _Streams:
    """Gives the streams of a record, one after the other."""

    def __init__(self, data: memoryview, record: Record, layout: Layout) -> None:
        self.data, self.bounds, self.rest = data, layout.bounds, iter(enumerate(record.streams))

    def read(self, count: int, bound: int) -> Numbers:
        place, stream = next(self.rest)
        start, middle, end = self.bounds[2 * place : 2 * place + 3]
        return decode_stream(stream.coder, self.data[start:middle], self.data[middle:end], count, bound)


def _positions(record: Record, streams: _Streams) -> tuple[Positions | None, Bools | None]:
    """Where the stored entries belong (None: everywhere), and which of them may be fillers."""
    encoding = record.encoding
    if encoding is None:
        return None, None
    return encoding.decode(record.grid, record.count, record.parameters, streams.read)


def _without_fillers(
    record: Record, positions: Positions | None, maybe: Bools, values: NDArray[Any], zero: Bools
) -> tuple[Positions | None, NDArray[Any]]:
    """Fillers are the entries that stand for zero; there must be as many as were said, and where they can be."""
    real = ~zero
    if positions is None or int(np.count_nonzero(real)) != record.count or (zero & ~maybe).any():
        raise refused(f"`{record.names[0]}` has fillers where there can be none")
    return positions[real], values[real]


def _kept(record: Record, positions: Positions | None) -> Bools | None:
    if positions is None:
        return None
    kept = np.zeros(record.size, dtype=np.bool_)
    kept[positions] = True
    return kept.reshape(record.shape)


def _raw(data: memoryview, record: Record) -> NDArray[Any]:
    values = np.frombuffer(data, dtype=stored_as(record.dtype))
    if record.dtype == "bool":
        if values.size and int(values.max()) > 1:
            raise refused(f"`{record.names[0]}` holds a truth value of {int(values.max())}")
        return values.view(np.bool_)
    return values.astype(in_memory(record.dtype), copy=False)


def _joined(streams: _Streams, record: Record) -> NDArray[Any]:
    exponents, rests = bounds(record.dtype, record.least, record.spare)
    parts = Split(
        streams.read(record.stored, exponents), streams.read(record.stored, rests), record.least, record.spare
    )
    kind = in_memory(record.dtype)
    return joined(parts, record.dtype).astype(f"=u{kind.itemsize}", copy=False).view(kind)


def _is_zero(values: NDArray[Any]) -> Bools:
    """Which values have no bit set."""
    if not values.size:
        return np.zeros(0, dtype=np.bool_)
    some: Bools = np.any(values.view(np.uint8).reshape(values.size, -1), axis=1)
    return ~some


def _coded(record: Record, codes: NDArray[Any], floats: NDArray[np.float32]) -> Shared | Scaled:
    if record.content == SHARED:
        return Shared(codes, floats)
    wide = codes.astype(np.int64)
    return Scaled((wide >> 1) ^ -(wide & 1), floats, record.bits, record.axis)


__all__ = ["decode", "widened"]
