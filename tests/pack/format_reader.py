"""A second reader of packed files, slow and in plain Python, written from `docs/format.md` alone.

It shares no code with the package, on purpose: it is what the package's own reader is compared with.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

TYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16"),
    *("float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64"),
)
SIZES = (1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 1, 1, 8)
RELATIVE, BITMAP, CSR, GROUPS, STRIDED, CONTEXT = 1, 2, 3, 4, 5, 6
LAYOUTS = {9: (5, 10), 10: (8, 7), 11: (8, 23)}
PARAMETERS = {RELATIVE: 2, BITMAP: 1, CSR: 0, GROUPS: 1, STRIDED: 0, CONTEXT: 2}
STREAMS = {RELATIVE: 1, BITMAP: 1, CSR: 2, GROUPS: 2, STRIDED: 2, CONTEXT: 1}


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def u(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def varint(self) -> int:
        total = shift = 0
        while True:
            octet = self.u(1)
            total |= (octet & 127) << shift
            shift += 7
            if octet < 128:
                return total


@dataclass
class Tensor:
    """`entries`: per position the bytes of a raw value, or a float; None where nothing is kept."""

    names: list[str]
    shape: list[int]
    type: str
    entries: list[bytes | float | None]


@dataclass
class File:
    texts: dict[str, str] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def metadata(self) -> Any:
        return json.loads(self.texts["metadata"]) if "metadata" in self.texts else {}


def read(data: bytes) -> File:
    source = Bytes(data)
    assert source.take(8) == b"\x89SEC\r\n\x1a\n"
    version = source.u(4)
    assert version in (2, 3)
    length = source.u(4)
    assert source.u(8) == len(data)
    header = Bytes(source.take(length))
    assert zlib.crc32(data[: source.at]) == source.u(4)
    file = File()
    texts = []
    for _ in range(header.varint()):
        name = header.take(header.varint()).decode()
        texts.append((name, header.varint(), header.varint(), header.u(4)))
    records = []
    before = b""
    for _ in range(header.varint()):
        record, before = read_record(header, before)
        assert record["content"] < (3 if version == 2 else 4)
        records.append(record)
    assert header.at == len(header.data)
    for name, stored, plain, crc in texts:
        part = source.take(stored)
        assert zlib.crc32(part) == crc
        file.texts[name] = (part if stored == plain else zlib.decompress(part)).decode()
        assert len(file.texts[name].encode()) == plain
    for record in records:
        file.tensors.append(read_tensor(source, record))
    assert source.at == len(data)
    return file


def read_record(header: Bytes, before: bytes) -> tuple[dict[str, Any], bytes]:
    names = []
    for _ in range(header.varint()):
        common = header.varint()
        before = before[:common] + header.take(header.varint())
        names.append(before.decode())
    shape = [header.varint() for _ in range(header.varint())]
    kind, content, index = header.u(1), header.u(1), header.u(1)
    stored, content = divmod(content, 16)
    assert stored < 3 if content in (1, 2) else stored == 0
    record: dict[str, Any] = {
        "stored": stored,
        "names": names,
        "shape": shape,
        "type": kind,
        "content": content,
        "index": index,
    }
    record["kept"] = header.varint() if index else prod(shape)
    record["parameters"] = [header.varint() for _ in range(PARAMETERS[index])] if index else []
    if content == 1:
        record["levels"] = header.varint()
    if content == 2:
        record["bits"], record["axis"] = header.u(1), header.u(1)
    if content == 3:
        record["least"], record["spare"] = header.u(1), header.u(1)
    streams = (STREAMS[index] if index else 0) + (0, 1, 1, 2)[content]
    record["streams"] = [(header.u(1), header.varint(), header.varint()) for _ in range(streams)]
    record["crc"] = header.u(4)
    return record, before


def read_tensor(source: Bytes, record: dict[str, Any]) -> Tensor:
    start = source.at
    shape = record["shape"]
    streams = iter([(coder, source.take(table), source.take(payload)) for coder, table, payload in record["streams"]])
    floats: list[float] = []
    if record["content"] in (1, 2):
        count = record["levels"] if record["content"] == 1 else shape[record["axis"] - 1] if record["axis"] else 1
        floats = [read_float(source, record["stored"]) for _ in range(count)]
    positions = read_positions(record, streams)
    stored = len(positions)
    fillers = stored - record["kept"]
    values: list[bytes | float | None]
    if record["content"] == 0:
        size = SIZES[record["type"]]
        if stored:
            align = 64 if stored * size >= 4096 else size
            assert not any(source.take(-source.at % align))
        values = [source.take(size) for _ in range(stored)]
        real = [any(value) if fillers else True for value in values]  # type: ignore[arg-type]
    elif record["content"] == 3:
        wide, fraction = LAYOUTS[record["type"]]
        least, spare = record["least"], record["spare"]
        exponents = read_stream(next(streams), stored, 2**wide - least)
        rests = read_stream(next(streams), stored, 2 ** (1 + fraction - spare))
        values = []
        for exponent, rest in zip(exponents, rests, strict=True):
            sign, low = divmod(rest * 2**spare, 2**fraction)
            bits = (sign * 2**wide + least + exponent) * 2**fraction + low
            values.append(bits.to_bytes(SIZES[record["type"]], "little"))
        real = [any(value) if fillers else True for value in values]  # type: ignore[arg-type]
    else:
        bound = (record["levels"] if record["content"] == 1 else 2 ** record["bits"] - 1) + (fillers > 0)
        symbols = read_stream(next(streams), stored, bound)
        real = [symbol > 0 or not fillers for symbol in symbols]
        values = [
            value_of(record, floats, symbol - (fillers > 0), position) if is_real else None
            for symbol, position, is_real in zip(symbols, positions, real, strict=True)
        ]
    assert sum(real) == record["kept"]
    assert zlib.crc32(source.data[start : source.at]) == record["crc"]
    entries: list[bytes | float | None] = [None] * prod(shape)
    for position, value, is_real in zip(positions, values, real, strict=True):
        if is_real:
            entries[position] = value
    return Tensor(record["names"], shape, TYPES[record["type"]], entries)


def read_float(source: Bytes, stored: int) -> float:
    """A float32, a float16, or the upper half of a float32."""
    raw = source.take(2) if stored else source.take(4)
    found: float = struct.unpack("<e" if stored == 1 else "<f", raw if stored < 2 else b"\0\0" + raw)[0]
    return found


def value_of(record: dict[str, Any], floats: list[float], symbol: int, position: int) -> float:
    if record["content"] == 1:
        return floats[symbol]
    number = symbol // 2 if symbol % 2 == 0 else -(symbol + 1) // 2
    channel = 0
    if record["axis"]:
        axis = record["axis"] - 1
        channel = position // prod(record["shape"][axis + 1 :]) % record["shape"][axis]
    return single(single(number) * floats[channel])


def single(number: float) -> float:
    """Rounded to float32. A product of two of them is exact in float64, so this is one rounding."""
    return rounded(number, "<f")


def rounded(number: float, kind: str) -> float:
    """Rounded to `kind`, as `struct` names it; to infinity where that has no room."""
    try:
        found: float = struct.unpack(kind, struct.pack(kind, number))[0]
    except OverflowError:
        return inf if number > 0 else -inf
    return found


def octets(entry: bytes | float | None, kind: str) -> bytes:
    """The bytes of an entry in the type of its tensor."""
    if entry is None:
        return bytes(SIZES[TYPES.index(kind)])
    if isinstance(entry, bytes):
        return entry
    if kind == "bfloat16":
        whole = int.from_bytes(struct.pack("<f", entry), "little")
        up, rest = whole >> 16 & 1, whole & 0xFFFF
        return ((whole >> 16) + (rest > 0x8000 or (rest == 0x8000 and up == 1))).to_bytes(2, "little")
    form = {"float16": "<e", "float32": "<f", "float64": "<d"}[kind]
    return struct.pack(form, rounded(entry, form))


def read_positions(record: dict[str, Any], streams: Any) -> list[int]:
    shape, kept, given = record["shape"], record["kept"], record["parameters"]
    rows = shape[0] if len(shape) > 1 else 1
    columns = prod(shape[1:]) if len(shape) > 1 else prod(shape)
    taps = prod(shape[2:]) if len(shape) > 1 else 1
    if record["index"] == 0:
        return list(range(rows * columns))
    if record["index"] == RELATIVE:
        bits, entries = given
        found, at = [], -1
        for gap in read_stream(next(streams), entries, 2**bits):
            at += gap + 1
            found.append(at)
        return found
    if record["index"] == BITMAP:
        unit = given[0]
        numbers = read_stream(next(streams), -(-rows * columns // unit), 2**unit)
        return [unit * i + j for i, number in enumerate(numbers) for j in range(unit) if number >> j & 1]
    if record["index"] == CSR:
        pointers = read_stream(next(streams), rows + 1, kept + 1)
        places = read_stream(next(streams), kept, columns)
        return [row * columns + place for row in range(rows) for place in places[pointers[row] : pointers[row + 1]]]
    if record["index"] == GROUPS:
        size = given[0]
        per_row = -(-columns // size)
        pointers = read_stream(next(streams), rows + 1, rows * per_row + 1)
        places = read_stream(next(streams), pointers[-1], per_row)
        return [
            row * columns + column
            for row in range(rows)
            for place in places[pointers[row] : pointers[row + 1]]
            for column in range(place * size, min(place * size + size, columns))
        ]
    if record["index"] == CONTEXT:
        return sorted(context(bytes(read_stream(next(streams), given[1], 256)), given[0], rows, columns))
    maps = columns // taps
    starts = read_stream(next(streams), maps, taps + 1)
    strides = read_stream(next(streams), maps, taps)
    row_of = [m * taps + tap for m in range(maps) for tap in range(starts[m], taps, strides[m] + 1)]
    return [row * columns + column for row in range(rows) for column in row_of]


def unpacked(data: bytes, count: int, width: int) -> list[int]:
    assert len(data) == (count * width + 7) // 8
    whole = int.from_bytes(data, "little")
    assert whole >> (count * width) == 0
    return [whole >> (i * width) & (2**width - 1) for i in range(count)]


def read_stream(stream: tuple[int, bytes, bytes], count: int, bound: int) -> list[int]:
    coder, table, payload = stream
    if coder == 0:
        assert len(table) == 1
        symbols = unpacked(payload, count, table[0])
    else:
        symbols = (huffman if coder == 1 else ans)(Bytes(table), payload, count)
    assert all(symbol < bound for symbol in symbols)
    return symbols


def huffman(table: Bytes, payload: bytes, count: int) -> list[int]:
    size, width = table.varint(), table.u(1)
    lengths = unpacked(table.data[table.at :], size, width)
    code, book = 0, {}
    for length in range(1, max(lengths) + 1):
        code *= 2
        for symbol in range(size):
            if lengths[symbol] == length:
                book[length, code] = symbol
                code += 1
    bits = iter([octet >> place & 1 for octet in payload for place in range(7, -1, -1)])
    symbols = []
    for _ in range(count):
        length = number = 0
        while (length, number) not in book:
            length, number = length + 1, number * 2 + next(bits)
        symbols.append(book[length, number])
    rest = list(bits)
    assert len(rest) < 8 and not any(rest)
    return symbols


def context(data: bytes, form: int, rows: int, columns: int) -> list[int]:
    """Positions of the kept entries."""
    turned, lag = form % 2, form // 2
    lanes, steps = (columns, rows) if turned else (rows, columns)
    assert lag >= 4 and rows * columns <= 2**20 and steps <= 4096 and lag <= max(4, steps)
    w = struct.unpack("<11b", data[:11])
    coder = Coder(data[11:])
    seen: list[list[int]] = []
    none = [0] * lanes
    kept, total = [0] * lanes, 0
    for j in range(steps):
        b = {d: seen[j - d] if j >= d else none for d in (1, 2, lag, lag + 1, lag - 1)}
        n = {d: sum(b[d]) for d in b}
        share = 2**16 * (2 * total + 1) // (2 * j * lanes + 20)
        near = 2**16 * (2 * n[1] + n[2] + 2 * n[lag] + n[lag + 1] + n[lag - 1]) + 2 * share + 1
        everywhere = w[0] * 256 + w[2] * logit(near, 2**16 * (7 * lanes + 2) + 2)
        everywhere += w[8] * logit(2 * total + 1, 2 * j * lanes + 20)
        found = []
        for i in range(lanes):
            z = everywhere + w[1] * logit(2**17 * kept[i] + 3 * share + 1, 2**16 * (2 * j + 3) + 2)
            z += 256 * (w[3] * b[1][i] + w[4] * b[2][i] + w[5] * b[lag][i] + w[6] * b[lag + 1][i])
            z += 256 * (w[7] * b[lag - 1][i] + w[9] * b[1][i] * b[2][i] + w[10] * b[1][i] * b[lag][i])
            z = min(max(z >> 4, -4608), 4608)
            odds = (2**15 * (512 - abs(z) % 256)) >> (abs(z) // 256)
            p = 2**24 * odds // (2**24 + odds)
            p = p if z <= 0 else 2**24 - p
            found.append(coder.next([0, 2**24 - p], [2**24 - p, p]))
        seen.append(found)
        kept = [old + new for old, new in zip(kept, found, strict=True)]
        total += sum(found)
    coder.end()
    return [i * steps + j if not turned else j * lanes + i for j in range(steps) for i in range(lanes) if seen[j][i]]


def log2(x: int) -> int:
    e = x.bit_length() - 1
    return 256 * e + 256 * x // 2**e - 256


def logit(a: int, b: int) -> int:
    return log2(a) - log2(b - a)


class Coder:
    def __init__(self, payload: bytes) -> None:
        assert payload[-1]
        self.words = [word[0] for word in struct.iter_unpack("<I", payload + bytes(-len(payload) % 4))]
        self.state = self.words.pop()
        self.refill()

    def refill(self) -> None:
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def next(self, before: list[int], frequencies: list[int]) -> int:
        q = self.state % 2**24
        x = next(x for x in range(len(before)) if before[x] <= q < before[x] + frequencies[x])
        self.state = (self.state >> 24) * frequencies[x] + q - before[x]
        self.refill()
        return x

    def end(self) -> None:
        assert self.state == 0 and not self.words


def ans(table: Bytes, payload: bytes, count: int) -> list[int]:
    size, precision, width = table.varint(), table.u(1), table.u(1)
    frequencies = [f << (24 - precision) for f in unpacked(table.data[table.at :], size, width)]
    assert sum(frequencies) == 2**24
    before = [sum(frequencies[:x]) for x in range(size)]
    coder = Coder(payload)
    symbols = [coder.next(before, frequencies) for _ in range(count)]
    coder.end()
    return symbols
