"""What somebody may do to the bytes of a packed file: damage them, or forge them so that all checksums fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from secateurs.base.errors import ArtifactError
from secateurs.pack.container import CHECK, GRAPH, MAGIC, PREFIX, VERSION, crc32, header_bytes, read
from secateurs.pack.dtypes import DTYPES
from secateurs.pack.record import Record
from secateurs.pack.varint import varint

Change = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, 2, 3, 7, 8, 63, 255, 256, 65_535, 65_536, 1 << 22, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)


def _flip(rng: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice((1, 4, 100)))


def _splice(rng: random.Random, data: bytes) -> bytes:
    """A piece goes, comes twice, or is overwritten."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 2, 4, 16, 64))]
    at = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:start] + data[start + len(piece) :]
    if kind == 1:
        return data[:at] + piece + data[at:]
    filling = piece if kind == 2 else bytes(len(piece)) if rng.random() < 0.5 else b"\xff" * len(piece)
    return data[:at] + filling + data[at + len(filling) :]


def _other_header(rng: random.Random, data: bytes) -> bytes:
    """Bytes of the header changed, and its checksum and the lengths made to fit."""
    end = PREFIX + int.from_bytes(data[len(MAGIC) + 4 : len(MAGIC) + 8], "little")
    header = rng.choice((_flip, _flip, _splice, absurd_number))(rng, data[PREFIX:end])
    return sealed(header, data[end + CHECK :])


def absurd_number(rng: random.Random, data: bytes) -> bytes:
    """A byte replaced by a varint that may be absurd."""
    at = rng.randrange(len(data))
    return data[:at] + varint(rng.choice(NUMBERS)) + data[at + 1 :]


def _other_body(rng: random.Random, data: bytes) -> bytes:
    """Bytes of tensors changed, and their checksums made to fit."""
    packed = read(data)
    start = packed.layouts[0].start if packed.layouts else len(data)
    if start == len(data):
        return data
    body = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        body[rng.randrange(start, len(body))] ^= 1 << rng.randrange(8)
    return _resigned(packed.header, bytes(body), list(packed.records), data)


def _other_record(rng: random.Random, data: bytes) -> bytes:
    """A fact of a tensor replaced by another, and all checksums made to fit."""
    packed = read(data)
    records = list(packed.records)
    if not records:
        return sealed(b"\0\0\0", b"")
    place = rng.randrange(len(records))
    records[place] = _changed(rng, records[place])
    return _resigned(packed.header, data, records, data)


def _other_names(rng: random.Random, data: bytes) -> bytes:
    """Two tensors change their names, one takes a further name of another, or has one of its own."""
    packed = read(data)
    records = list(packed.records)
    if not records:
        return sealed(b"\0\0\0", b"")
    one, other = rng.randrange(len(records)), rng.randrange(len(records))
    mine, theirs = records[one].names, records[other].names
    kind = rng.randrange(3)
    if kind == 0:
        records[one], records[other] = replace(records[one], names=theirs), replace(records[other], names=mine)
    elif kind == 1:
        records[one] = replace(records[one], names=(*mine, theirs[-1]))
    else:
        name = rng.choice(("x", mine[0] + ".x", "__class__", mine[0].upper()))
        records[one] = replace(records[one], names=rng.choice(((name,), (*mine, name), (name, *mine))))
    return _resigned(packed.header, data, records, data)


def _changed(rng: random.Random, record: Record) -> Record:
    name = rng.choice(_FACTS)
    near = rng.choice((-2, -1, 1, 2))
    if name == "dtype":
        return replace(record, dtype=rng.choice(DTYPES))
    if name in ("shape", "parameters"):
        items = list(getattr(record, name)) or [1]
        at = rng.randrange(len(items))
        items[at] = rng.choice((max(0, items[at] + near), *NUMBERS))
        return _with(record, name, tuple(items))
    if name == "streams":
        streams = list(record.streams)
        if streams:
            at = rng.randrange(len(streams))
            part = rng.choice(("coder", "table", "payload"))
            old = getattr(streams[at], part)
            value = rng.randrange(4) if part == "coder" else max(0, old + near)
            streams[at] = replace(streams[at], **{part: value})
        return replace(record, streams=tuple(streams))
    if name == "axis":
        return replace(record, axis=rng.choice((None, 0, 1, 2, 5)))
    if name in ("content", "index"):
        return _with(record, name, rng.randrange(6))
    if name in ("bits", "least", "spare"):
        return _with(record, name, rng.choice((rng.randrange(256), getattr(record, name) + near & 255)))
    return _with(record, name, rng.choice((max(0, getattr(record, name) + near), *NUMBERS)))


def _with(record: Record, name: str, value: Any) -> Record:
    change: dict[str, Any] = {name: value}
    return replace(record, **change)


def with_program(data: bytes, program: bytes) -> bytes:
    """The file with this text as its program, and checksums that fit.

    The text is not deflated; blanks behind it put every tensor at a position that suits its padding, as before.
    """
    packed = read(data)
    stored = packed.header
    parts: dict[str, bytes] = {}
    for text in packed.texts:
        parts[text.name] = bytes(packed.data[stored : stored + text.stored])
        stored += text.stored
    blanks = 0
    while True:
        parts[GRAPH] = program + b" " * blanks
        length, crc = len(parts[GRAPH]), crc32(parts[GRAPH])
        texts = [
            replace(text, stored=length, plain=length, crc=crc) if text.name == GRAPH else text for text in packed.texts
        ]
        header = header_bytes(texts, packed.records)
        moved = PREFIX + len(header) + CHECK + sum(text.stored for text in texts) - stored
        if moved % _ALIGNED == 0:
            return sealed(header, b"".join(parts[text.name] for text in texts) + data[stored:])
        blanks += -moved % _ALIGNED


def _resigned(header_end: int, body: bytes, records: list[Record], data: bytes) -> bytes:
    """The body behind a header of these records, each with the checksum of the bytes where it now lies."""
    packed = read(data)
    texts = packed.texts
    rest = body[header_end:]
    at = PREFIX + len(header_bytes(texts, records)) + CHECK + sum(text.stored for text in texts)
    base = PREFIX + len(header_bytes(texts, records)) + CHECK
    for place, record in enumerate(records):
        try:
            layout = record.layout(at)
        except (IndexError, ArtifactError):
            break
        records[place] = replace(record, crc=crc32(rest[at - base : layout.end - base]))
        at = layout.end
    return sealed(header_bytes(texts, records), rest)


def sealed(header: bytes, rest: bytes) -> bytes:
    """A file of this header and these bytes behind it, with lengths and checksum that fit."""
    whole = PREFIX + len(header) + CHECK + len(rest)
    prefix = MAGIC + VERSION.to_bytes(4, "little") + len(header).to_bytes(4, "little") + whole.to_bytes(8, "little")
    return prefix + header + crc32(prefix, header).to_bytes(CHECK, "little") + rest


_ALIGNED = 64
"""Where raw values may lie: at multiples of it."""
_FACTS = (
    *("shape", "dtype", "content", "index", "count", "parameters", "levels", "bits", "axis", "least", "spare"),
    "streams",
)
DAMAGE: dict[str, Change] = {"flip": _flip, "cut": _cut, "extend": _extend, "splice": _splice}
FORGED: dict[str, Change] = {
    "header": _other_header, "body": _other_body, "record": _other_record, "names": _other_names,
}  # fmt: skip


__all__ = ["DAMAGE", "FORGED", "NUMBERS", "Change", "absurd_number", "sealed", "with_program"]
