"""What a file's header says of one tensor, and where its bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any

from secateurs.base.errors import InputError, explain
from secateurs.pack.dtypes import DTYPES, FLOATS, TABLES, stored_as
from secateurs.pack.index import ENCODINGS, Encoding, Grid
from secateurs.pack.refuse import refused
from secateurs.pack.split import LAYOUTS
from secateurs.pack.varint import Cursor, varint

RAW, SHARED, SCALED, SPLIT = 0, 1, 2, 3
STREAMS = (0, 1, 1, 2)
"""Streams of each content, behind those of the index: codes; or exponents and rests of values that are split."""

DENSE = 0
"""Code of the index of a tensor that keeps everything: there is none."""

LONGEST_NAME = 1024
MOST_DIMS = 64
PAGE = 64
"""Alignment in bytes of raw values of at least `LARGE` bytes; smaller ones are aligned to their items."""

LARGE = 4096


@dataclass(frozen=True)
class Coding:
    """One stream: the code of its coder, the bytes of its table and of its symbols."""

    coder: int
    table: int
    payload: int


@dataclass(frozen=True)
class Record:
    """The facts of one tensor. `streams` are those of the index fields, then those of its content.

    `levels`: entries of a codebook. `bits` and `axis`: of scaled integers. `table`: the type that stores
    codebook or scales. `least` and `spare`: of split values. `crc`: CRC-32 of all its bytes.
    `header`: bytes that this record takes in the header.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    content: int
    index: int = DENSE
    count: int = 0
    parameters: tuple[int, ...] = ()
    levels: int = 0
    bits: int = 0
    axis: int | None = None
    table: str = TABLES[0]
    least: int = 0
    spare: int = 0
    streams: tuple[Coding, ...] = ()
    crc: int = 0
    header: int = field(default=0, compare=False)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def grid(self) -> Grid:
        return Grid.of(self.shape)

    @property
    def encoding(self) -> Encoding | None:
        return None if self.index == DENSE else encoding_of(self.index)

    @property
    def stored(self) -> int:
        """Entries with a stored value, fillers included."""
        encoding = self.encoding
        return self.size if encoding is None else encoding.stored(self.parameters, self.count)

    @property
    def floats(self) -> int:
        """Numbers of the codebook or of the scale."""
        if self.content == SCALED:
            return 1 if self.axis is None else self.shape[self.axis]
        return self.levels

    @property
    def float_bytes(self) -> int:
        """Bytes of the codebook or of the scale."""
        return self.floats * stored_as(self.table).itemsize

    @property
    def decoded(self) -> int:
        """Bytes of the whole tensor, as they count for the limit."""
        return claimed(self.shape, self.dtype)

    @property
    def raw_bytes(self) -> int:
        return self.stored * stored_as(self.dtype).itemsize if self.content == RAW else 0

    def layout(self, start: int) -> Layout:
        """Where its parts are when its bytes begin at `start`."""
        lengths = [length for stream in self.streams for length in (stream.table, stream.payload)]
        bounds = list(accumulate([*lengths, self.float_bytes], initial=start))
        align = PAGE if self.raw_bytes >= LARGE else stored_as(self.dtype).itemsize
        raw = bounds[-1] + (-bounds[-1] % align if self.raw_bytes else 0)
        return Layout(tuple(bounds), raw, raw + self.raw_bytes)

    def to_bytes(self, before: bytes) -> bytes:
        """As it stands in the header; `before` is the name before it, of which the common beginning is left out."""
        parts = [varint(len(self.names))]
        for name in self.names:
            raw = name.encode()
            shared = next((i for i, (a, b) in enumerate(zip(raw, before, strict=False)) if a != b), None)
            shared = min(len(raw), len(before)) if shared is None else shared
            parts += [varint(shared), varint(len(raw) - shared), raw[shared:]]
            before = raw
        parts += [varint(len(self.shape)), *map(varint, self.shape)]
        parts.append(bytes([DTYPES.index(self.dtype), self.content | TABLES.index(self.table) << 4, self.index]))
        if self.index != DENSE:
            parts += [varint(self.count), *map(varint, self.parameters)]
        if self.content == SHARED:
            parts.append(varint(self.levels))
        if self.content == SCALED:
            parts.append(bytes([self.bits, 0 if self.axis is None else self.axis + 1]))
        if self.content == SPLIT:
            parts.append(bytes([self.least, self.spare]))
        for stream in self.streams:
            parts += [bytes([stream.coder]), varint(stream.table), varint(stream.payload)]
        return b"".join(parts) + self.crc.to_bytes(4, "little")


@dataclass(frozen=True)
class Layout:
    """`bounds`: where tables and payloads begin, then the floats, then their end. Raw values: from `raw` to `end`."""

    bounds: tuple[int, ...]
    raw: int
    end: int

    @property
    def start(self) -> int:
        return self.bounds[0]

    @property
    def padding(self) -> int:
        return self.raw - self.bounds[-1]


def read_record(cursor: Cursor, before: bytes, limit: int, contents: int = len(STREAMS)) -> Record:
    """The record at the cursor, of one of the first so many contents.

    Raises `ArtifactError` where it makes no sense or its tensor is above `limit` bytes.
    """
    start = cursor.at
    names = []
    count = cursor.number(cursor.left)
    if not count:
        raise refused("a tensor has no name")
    for _ in range(count):
        shared = cursor.number(len(before))
        before = before[:shared] + cursor.take(cursor.number(LONGEST_NAME - shared))
        names.append(_name(before))
    shape = tuple(cursor.number() for _ in range(cursor.number(MOST_DIMS)))
    dtype, content, index = cursor.byte(), cursor.byte(), cursor.byte()
    table, content = divmod(content, 16)
    coded = content in (SHARED, SCALED)
    if dtype >= len(DTYPES) or content >= contents or table >= (len(TABLES) if coded else 1):
        raise refused(f"`{names[0]}` has content {content} of type {dtype} with numbers of type {table}")
    if (coded and DTYPES[dtype] not in FLOATS) or (content == SPLIT and DTYPES[dtype] not in LAYOUTS):
        raise refused(f"`{names[0]}` has content {content} of type {dtype} with numbers of type {table}")
    if claimed(shape, DTYPES[dtype]) > limit:
        raise _too_large(f"`{names[0]}` of shape {list(shape)}", limit)
    count, fields = prod(shape), 0
    parameters: tuple[int, ...] = ()
    if index != DENSE:
        encoding = encoding_of(index)
        count = cursor.number(count)
        parameters = tuple(cursor.number() for _ in range(encoding.parameters))
        encoding.check(parameters, Grid.of(shape), count)
        fields = encoding.fields
    levels = cursor.number(1 << 16) if content == SHARED else 0
    bits, axis = (cursor.byte(), cursor.byte()) if content == SCALED else (1, 0)
    if not 1 <= bits <= 32 or axis > len(shape):
        raise refused(f"`{names[0]}` has integers of {bits} bits with scales along axis {axis - 1}")
    least, spare = _split(cursor, DTYPES[dtype]) if content == SPLIT else (0, 0)
    streams = tuple(Coding(cursor.byte(), cursor.number(), cursor.number()) for _ in range(fields + STREAMS[content]))
    crc = int.from_bytes(cursor.take(4), "little")
    return Record(
        tuple(names), shape, DTYPES[dtype], content, index, count, parameters, levels,
        bits if content == SCALED else 0, axis - 1 if axis else None, TABLES[table], least, spare, streams,
        crc, cursor.at - start,
    )  # fmt: skip


def _split(cursor: Cursor, dtype: str) -> tuple[int, int]:
    """The least exponent, and the bits left out of all fractions."""
    wide, fraction = LAYOUTS[dtype]
    least, spare = cursor.byte(), cursor.byte()
    if least >= 1 << wide or spare > fraction:
        raise refused(f"a {dtype} has exponents from {least} on and fractions less {spare} bits")
    return least, spare


def claimed(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor, dimensions of 0 counting as 1: no shape is free, whatever else it is multiplied by."""
    return prod(max(1, size) for size in shape) * stored_as(dtype).itemsize


def encoding_of(code: int) -> Encoding:
    """The index encoding that a file calls `code`. Raises `ArtifactError`."""
    for name in ENCODINGS:
        if ENCODINGS[name].code == code:
            return ENCODINGS[name]
    raise refused(f"there is no index encoding {code}")


def check_name(name: str, longest: int = LONGEST_NAME) -> str | None:
    """What is wrong with the name of a tensor, if anything: it must be words joined by dots and no path."""
    given: Any = name
    if not isinstance(given, str):
        return "it is no text"
    if not name or len(name.encode("utf-8", "surrogatepass")) > longest:
        return f"it has {len(name)} characters"
    if any(part == "" for part in name.split(".")):
        return "a word between its dots is empty"
    odd = next((c for c in name if c in "/\\" or ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000), None)
    return None if odd is None else f"it holds {odd!r}"


def require_name(name: str, longest: int = LONGEST_NAME) -> None:
    """Raises `InputError` for a name that a file cannot hold, such as one of more than `longest` bytes."""
    if wrong := check_name(name, longest):
        raise InputError(
            explain(
                f"{name!r} cannot be the name of a packed tensor",
                evidence=wrong,
                next_step="use words joined by dots, as in a state dict",
            )
        )


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise refused("the name of a tensor is not UTF-8") from error
    if wrong := check_name(name):
        raise refused(f"a tensor is named {name[:60]!r}: {wrong}")
    return name


def _too_large(subject: str, limit: int) -> Exception:
    return refused(
        f"{subject} is above the limit of {limit:,} bytes",
        what="This file says that it holds more than is read",
        next_step="if you trust it, read it with a larger `limit`, in bytes",
    )


__all__ = [
    "DENSE", "RAW", "SCALED", "SHARED", "SPLIT", "STREAMS", "Coding", "Layout", "Record", "read_record", "require_name",
]  # fmt: skip
