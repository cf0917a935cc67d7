"""The file: a checked header, then the bytes of one tensor after the other. `docs/format.md` specifies every byte.

Where a tensor's bytes begin is not stored: it follows from the lengths in the header, so parts cannot overlap.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.base.errors import ArtifactError, InputError, explain
from secateurs.base.files import write_bytes
from secateurs.pack.coded import Coded
from secateurs.pack.decode import decode, widened
from secateurs.pack.encode import encode
from secateurs.pack.record import SPLIT, STREAMS, Layout, Record, read_record, require_name
from secateurs.pack.refuse import refused
from secateurs.pack.varint import Cursor, varint

MAGIC = b"\x89SEC\r\n\x1a\n"
VERSION = 3
"""The newest; version 2 is the same without split values, and what is written when there are none."""

CONTENTS = {2: SPLIT, VERSION: len(STREAMS)}
"""How many contents a version knows."""

PREFIX = len(MAGIC) + 4 + 4 + 8
"""Bytes before the header: magic, version, length of the header, length of the file."""

CHECK = 4
"""Bytes of a checksum (CRC-32)."""

SMALL = 1 << 17
"""Entries that sparse tensors keep together, at most, for slow encodings to be tried."""

METADATA, GRAPH = "metadata", "graph"
LONGEST_TEXT_NAME = 64
LEAST_LIMIT = 1 << 28
LIMIT_FACTOR = 1024
"""A file may decode to this many times its size, or to `LEAST_LIMIT` bytes if that is more, unless told otherwise."""
JSON_FACTOR = 32
"""What a text of JSON takes once it is parsed: an empty list, three bytes of text with its comma, takes 80."""


@dataclass(frozen=True)
class Text:
    """A text beside the tensors: where it stands, how long it is when inflated, its checksum."""

    name: str
    stored: int
    plain: int
    crc: int
    header: int = field(default=0, compare=False)


def to_bytes(
    tensors: Mapping[str, Coded],
    metadata: Mapping[str, Any] | None = None,
    *,
    tied: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """The file that holds `tensors` in their order; the same input gives the same bytes.

    `tied`: other names of tensors. `metadata`: anything that is JSON. `texts`: further texts by name.
    Raises `InputError` for names, tensors or metadata that a file cannot hold.
    """
    return b"".join(_chunks(tensors, metadata, tied, texts))


def _chunks(
    tensors: Mapping[str, Coded],
    metadata: Mapping[str, Any] | None,
    tied: Mapping[str, str] | None,
    texts: Mapping[str, str] | None,
) -> list[bytes | memoryview]:
    """The file in pieces."""
    aliases = _aliases(tensors, tied or {})
    bodies = [_body(name, text) for name, text in _texts(metadata, texts or {}).items()]
    thorough = is_small(tensors)
    encoded = [encode(tensor, thorough=thorough) for tensor in tensors.values()]
    records = [replace(item.record, names=(name, *aliases[name])) for name, item in zip(tensors, encoded, strict=True)]
    at = (
        PREFIX
        + len(header_bytes([item[0] for item in bodies], records))
        + CHECK
        + sum(text.stored for text, _ in bodies)
    )
    chunks: list[bytes | memoryview] = []
    for place, (record, item) in enumerate(zip(records, encoded, strict=True)):
        layout = record.layout(at)
        mine = (item.coded, bytes(layout.padding), item.raw)
        records[place] = replace(record, crc=crc32(*mine))
        chunks += mine
        at = layout.end
    header = header_bytes([item[0] for item in bodies], records)
    version = next(version for version in CONTENTS if all(item.content < CONTENTS[version] for item in records))
    prefix = MAGIC + version.to_bytes(4, "little") + len(header).to_bytes(4, "little") + at.to_bytes(8, "little")
    check = crc32(prefix, header).to_bytes(CHECK, "little")
    return [prefix, header, check, *(data for _, data in bodies), *chunks]


def is_small(tensors: Mapping[str, Coded]) -> bool:
    """Whether sparse tensors keep so few entries that slow encodings of their index are tried."""
    return sum(tensor.count for tensor in tensors.values() if tensor.kept is not None) <= SMALL


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Coded],
    metadata: Mapping[str, Any] | None = None,
    *,
    tied: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Writes `to_bytes(...)` as the file `path`, whole or not at all. Raises `InputError` and `WriteError`."""
    write_bytes(path, *_chunks(tensors, metadata, tied, texts))
    return Path(path)


def read(source: str | os.PathLike[str] | bytes, *, limit: int | None = None) -> Packed:
    """A packed file as a mapping of names to tensors. Only the header is read; tensors are decoded when asked for.

    `limit`: bytes to which all tensors together may decode. Raises `ArtifactError` for a file that is cut short, has
    an altered header, or says that it holds more; what is wrong with a single tensor shows when it is asked for.
    """
    data = memoryview(source) if isinstance(source, bytes) else _mapped(Path(source))
    where = "" if isinstance(source, bytes) else str(source)
    try:
        return _read(data, max(LEAST_LIMIT, LIMIT_FACTOR * len(data)) if limit is None else limit, where)
    except ArtifactError as error:
        raise _located(error, where) from error


class Packed(Mapping[str, NDArray[Any]]):
    """An open file: `packed[name]` is a tensor, decoded at the first access; raw dense ones are views of the file.

    bfloat16 and float8 come as unsigned bits. Shared and scaled tensors come as float32, before they are rounded to
    their own type (`packed.record(name).dtype`), as `sec.unpack` does. The file must stay as it is while it is open.
    """

    def __init__(
        self, data: memoryview, texts: Sequence[Text], records: Sequence[Record], body: int, where: str = ""
    ) -> None:
        self.data, self.texts, self.records, self.where = data, tuple(texts), tuple(records), where
        self._decoded: dict[int, NDArray[Any]] = {}
        self._places = {name: place for place, record in enumerate(self.records) for name in record.names}
        self.layouts: list[Layout] = []
        """Where the bytes of each record are."""
        at = body + sum(text.stored for text in self.texts)
        for record in self.records:
            self.layouts.append(record.layout(at))
            at = self.layouts[-1].end
        self.header = body
        """Bytes before the texts: prefix, header, checksum."""
        self.end = at

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        if place not in self._decoded:
            self._decoded[place] = _values(self._coded(place))
        return self._decoded[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<{len(self.records)} packed tensors in {self.end:,} bytes>"

    def coded(self, name: str) -> Coded:
        """The tensor as it was given to `write`; one that keeps every entry has no mask. Raises `ArtifactError`."""
        return widened(self._coded(self._places[name]))

    def decoded(self, name: str) -> NDArray[Any]:
        """The tensor, decoded anew and not kept here. Raises `ArtifactError`."""
        return _values(self._coded(self._places[name]))

    def record(self, name: str) -> Record:
        """What the header says of a tensor."""
        return self.records[self._places[name]]

    @property
    def tied(self) -> dict[str, str]:
        """Further names of tensors, and the first name of each."""
        return {name: record.names[0] for record in self.records for name in record.names[1:]}

    @property
    def metadata(self) -> dict[str, Any]:
        """What was given to `write`. Raises `ArtifactError`."""
        text = self.text(METADATA)
        try:
            found = {} if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _located(refused(f"the metadata is not JSON: {error!r}"[:200]), self.where) from error
        if not isinstance(found, dict):
            raise _located(refused(f"the metadata is a {type(found).__name__}"), self.where)
        return found

    def text(self, name: str) -> str | None:
        """A text by its name; None when the file has none of it. Raises `ArtifactError`."""
        at = self.header
        for text in self.texts:
            if text.name == name:
                try:
                    return _inflated(self.data[at : at + text.stored], text)
                except ArtifactError as error:
                    raise _located(error, self.where) from error
            at += text.stored
        return None

    def verify(self) -> None:
        """Reads and decodes everything. Raises `ArtifactError` at the first part that is not sound."""
        for text in self.texts:
            self.text(text.name)
        assert isinstance(self.metadata, dict)
        for place in range(len(self.records)):
            _values(self._coded(place))

    def _coded(self, place: int) -> Coded:
        record, layout = self.records[place], self.layouts[place]
        try:
            found = crc32(self.data[layout.start : layout.end])
            if found != record.crc:
                raise refused(f"the checksum of `{record.names[0]}` is {found:08x}, {record.crc:08x} was written")
            return decode(self.data, record, layout)
        except ArtifactError as error:
            raise _located(error, self.where) from error


def _values(tensor: Coded) -> NDArray[Any]:
    """The tensor; scales out of proportion give infinities, silently, as they do wherever it was made."""
    with np.errstate(over="ignore", invalid="ignore"):
        return tensor.decode()


def crc32(*parts: bytes | memoryview) -> int:
    """The checksum over all parts, one after the other."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def header_bytes(texts: Sequence[Text], records: Sequence[Record]) -> bytes:
    """The header that lists these; its length does not depend on their checksums."""
    parts = [varint(len(texts))]
    for text in texts:
        name = text.name.encode()
        parts += [varint(len(name)), name, varint(text.stored), varint(text.plain), text.crc.to_bytes(4, "little")]
    parts.append(varint(len(records)))
    before = b""
    for record in records:
        parts.append(record.to_bytes(before))
        before = record.names[-1].encode()
    return b"".join(parts)


def _body(name: str, text: str) -> tuple[Text, bytes]:
    """A text, deflated where that is shorter."""
    plain = text.encode()
    deflated = zlib.compress(plain, 9)
    data = deflated if len(deflated) < len(plain) else plain
    return Text(name, len(data), len(plain), crc32(data)), data


def _inflated(data: memoryview, text: Text) -> str:
    if crc32(data) != text.crc:
        raise refused(f"the checksum of the {text.name} is not the one that was written")
    plain = bytes(data)
    if text.stored < text.plain:
        inflate = zlib.decompressobj()
        try:
            plain = inflate.decompress(plain, text.plain)
        except zlib.error as error:
            raise refused(f"the {text.name} cannot be inflated: {error}") from error
        if len(plain) != text.plain or not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
            raise refused(f"the {text.name} does not inflate to {text.plain:,} bytes")
    try:
        return plain.decode()
    except UnicodeDecodeError as error:
        raise refused(f"the {text.name} is not UTF-8") from error


def _texts(metadata: Mapping[str, Any] | None, texts: Mapping[str, str]) -> dict[str, str]:
    found = {name: texts[name] for name in sorted(texts)}
    if metadata:
        try:
            plain = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(explain("The metadata is not JSON", evidence=str(error))) from error
        found = {METADATA: plain, **found}
    for name in found:
        require_name(name, LONGEST_TEXT_NAME)
    return found


def _aliases(tensors: Mapping[str, Coded], tied: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The further names of every tensor."""
    for name in (*tensors, *tied):
        require_name(name)
    for alias, name in tied.items():
        if alias in tensors or name not in tensors:
            raise InputError(
                explain(f"`{alias}` cannot be tied to `{name}`", evidence=f"there are {len(tensors)} tensors")
            )
    return {name: tuple(alias for alias, first in tied.items() if first == name) for name in tensors}


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            explain(f"`{path}` cannot be opened", evidence=str(error), next_step="give a file that `pack` wrote")
        ) from error


def _read(data: memoryview, limit: int, where: str) -> Packed:
    if len(data) < PREFIX + CHECK or data[: len(MAGIC)] != MAGIC:
        raise refused(f"it has {len(data):,} bytes and begins with {bytes(data[:8])!r}, not with {MAGIC!r}")
    prefix = Cursor(data[:PREFIX], "the prefix")
    prefix.take(len(MAGIC))
    version, length, whole = (int.from_bytes(prefix.take(size), "little") for size in (4, 4, 8))
    if version not in CONTENTS:
        raise refused(
            f"it says version {version}, this version of Secateurs reads {' and '.join(map(str, CONTENTS))}",
            what="The file has a format that is not known here",
            next_step="read it with the version of Secateurs that wrote it, or newer",
        )
    if whole != len(data) or length > len(data) - PREFIX - CHECK:
        raise refused(f"it has {len(data):,} bytes, {whole:,} were written, {length:,} of them as header")
    body = PREFIX + length
    stored = int.from_bytes(data[body : body + CHECK], "little")
    if crc32(data[:body]) != stored:
        raise refused(f"the checksum of its header is {crc32(data[:body]):08x}, {stored:08x} was written")
    texts, records = _read_header(bytes(data[PREFIX:body]), limit, CONTENTS[version])
    packed = Packed(data, texts, records, body + CHECK, where)
    if packed.end != len(data):
        raise refused(f"its parts end at byte {packed.end:,} of {len(data):,}")
    return packed


def _read_header(header: bytes, limit: int, contents: int) -> tuple[list[Text], list[Record]]:
    """Texts and records; together they may not decode to more than `limit` bytes."""
    cursor = Cursor(header, "the header")
    texts: list[Text] = []
    records: list[Record] = []
    before, left = b"", max(0, limit)
    for _ in range(cursor.number(len(header))):
        texts.append(_read_text(cursor, left))
        _check_parsed(texts[-1], max(limit, LEAST_LIMIT))
        left -= texts[-1].plain
    for _ in range(cursor.number(len(header))):
        records.append(read_record(cursor, before, left, contents))
        before = records[-1].names[-1].encode()
        left -= records[-1].decoded
    cursor.end()
    for names in ([text.name for text in texts], [name for record in records for name in record.names]):
        if len(set(names)) != len(names):
            raise refused(f"a name occurs twice: {max(names, key=names.count)!r}")
    return texts, records


def _read_text(cursor: Cursor, limit: int) -> Text:
    start = cursor.at
    try:
        name = cursor.take(cursor.number(LONGEST_TEXT_NAME)).decode()
    except UnicodeDecodeError as error:
        raise refused("the name of a text is not UTF-8") from error
    stored, plain = cursor.number(), cursor.number(limit)
    if stored > plain:
        raise refused(f"a text of {plain:,} bytes takes {stored:,}")
    return Text(name, stored, plain, int.from_bytes(cursor.take(CHECK), "little"), cursor.at - start)


def _check_parsed(text: Text, limit: int) -> None:
    if text.name in (METADATA, GRAPH) and text.plain * JSON_FACTOR > limit:
        raise refused(
            f"the {text.name} of {text.plain:,} bytes, once it is parsed, is above the limit of {limit:,} bytes",
            next_step="if you trust the file, read it with a larger `limit`",
        )


def _located(error: ArtifactError, where: str) -> ArtifactError:
    return ArtifactError(explain(str(error), where=where)) if where else error


__all__ = [
    "CHECK", "GRAPH", "MAGIC", "METADATA", "PREFIX", "VERSION", "Packed", "Text", "crc32", "header_bytes", "is_small",
    "read", "to_bytes", "write",
]  # fmt: skip
