"""Packed files that somebody tampered with, and what reading one must come to: the same content, or a refusal.

Half of the mutants are damaged as they are, and no byte of such a file may be read as anything but what was written.
The others are signed again, so that the damage gets past the checksums and to the decoders.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from secateurs.base.errors import ArtifactError
from secateurs.pack.coded import Coded
from secateurs.pack.container import CHECK, MAGIC, PREFIX, VERSION, crc32, header_bytes, read, to_bytes
from secateurs.pack.dtypes import DTYPES
from secateurs.pack.record import Record
from secateurs.pack.varint import varint
from secateurs.testing.packed import sample_tensors

LIMIT = 1 << 22
"""Bytes to which a mutant may decode."""

SLOW = 5.0
"""Seconds of computing after which a file counts as one that hangs."""

NUMBERS = (0, 1, 2, 3, 7, 8, 63, 255, 256, 65_535, 65_536, 1 << 22, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)


@dataclass(frozen=True)
class Seed:
    """A sound file and the digest of what it holds."""

    data: bytes
    content: str


@dataclass(frozen=True)
class Mutant:
    """A tampered file, how it was made, and whether its checksums were made to fit."""

    data: bytes
    seed: Seed
    how: str
    signed: bool


def mutant(number: int) -> Mutant:
    """The mutant of this number; always the same."""
    rng = random.Random(number)
    seed = rng.choice(sound_files())
    if rng.random() < 0.5:
        how = rng.choice(list(_DAMAGE))
        return Mutant(_DAMAGE[how](rng, seed.data), seed, how, False)
    how = rng.choice(list(_FORGED))
    return Mutant(_FORGED[how](rng, seed.data), seed, how, True)


def outcome(subject: Mutant) -> str:
    """`"refused"`, `"same"` or, for a signed one, `"other"`; anything else says what went wrong."""
    start = time.thread_time()
    try:
        found = digest(subject.data)
    except ArtifactError as error:
        result = "refused" if str(error) else "wrong: a refusal without a reason"
    except Exception as error:  # noqa: BLE001  (any other exception is what is looked for)
        result = f"wrong: {type(error).__name__}: {str(error)[:200]}"
    else:
        same = found == subject.seed.content
        result = "same" if same else "other" if subject.signed else "wrong: altered content was read"
    seconds = time.thread_time() - start
    return result if seconds < SLOW else f"wrong: {seconds:.1f} s"


def digest(data: bytes) -> str:
    """SHA-256 over all names, types, shapes, values, metadata and texts of a file, after everything was decoded."""
    packed = read(data, limit=LIMIT)
    total = hashlib.sha256(repr((sorted(packed.metadata.items()), packed.tied)).encode())
    total.update(repr([(text.name, packed.text(text.name)) for text in packed.texts]).encode())
    for name in packed:
        coded = packed.coded(name)
        with np.errstate(over="ignore", invalid="ignore"):
            values = coded.decode()
        assert values.shape == coded.shape and values.size == prod(coded.shape), f"`{name}` is {values.shape}"
        total.update(repr((name, coded.dtype, coded.shape, type(coded.content).__name__)).encode())
        total.update(values.tobytes() + (b"" if coded.kept is None else coded.kept.tobytes()))
    return total.hexdigest()


@cache
def sound_files() -> tuple[Seed, ...]:
    """Small files of every content, index and coder: one tensor each, and a few with more."""
    tensors = sample_tensors()
    files = [to_bytes({name: tensor}) for name, tensor in tensors.items()]
    small: Mapping[str, Coded] = {
        name: tensors[name] for name in ("raw.dense", "shared.gaps", "scaled.groups", "split.few")
    }
    files.append(to_bytes(small, {"a": [1, "b"]}, tied={"other.name": "raw.dense"}, texts={"note": "node " * 50}))
    files.append(to_bytes({}))
    return tuple(Seed(data, digest(data)) for data in files)


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
    header = rng.choice((_flip, _flip, _splice, _numbers))(rng, data[PREFIX:end])
    return sealed(header, data[end + CHECK :])


def _numbers(rng: random.Random, data: bytes) -> bytes:
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


_FACTS = (
    *("shape", "dtype", "content", "index", "count", "parameters", "levels", "bits", "axis", "least", "spare"),
    "streams",
)
_Change = Callable[[random.Random, bytes], bytes]
_DAMAGE: dict[str, _Change] = {"flip": _flip, "cut": _cut, "extend": _extend, "splice": _splice}
_FORGED: dict[str, _Change] = {"header": _other_header, "body": _other_body, "record": _other_record}


__all__ = ["Mutant", "Seed", "digest", "mutant", "outcome", "sealed", "sound_files"]
