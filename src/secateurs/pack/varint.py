"""Numbers and names in as few bytes as they need, and a cursor that reads them without ever leaving its bytes."""

from __future__ import annotations

from secateurs.pack.bits import Buffer
from secateurs.pack.refuse import refused

_LONGEST = 9
"""Bytes of the largest number: 63 bits."""


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow (LEB128). 0 <= number < 2^63."""
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{number} is no varint")
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


class Cursor:
    """Reads `data` from its beginning. Every method raises `ArtifactError` where the bytes end or make no sense."""

    def __init__(self, data: Buffer, what: str) -> None:
        self.data, self.what, self.at = data, what, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self.data) - self.at:
            raise refused(f"{self.what} ends after {len(self.data):,} bytes, {count:,} more are needed at {self.at:,}")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, most: int = (1 << 63) - 1) -> int:
        """A varint of at most `most`, in its shortest form."""
        found = 0
        for index in range(_LONGEST):
            octet = self.byte()
            found |= (octet & 0x7F) << 7 * index
            if octet < 0x80:
                if index and not octet:
                    raise refused(f"{self.what} holds a number with a superfluous byte")
                if found > most:
                    raise refused(f"{self.what} holds {found:,} where {most:,} is the most that makes sense")
                return found
        raise refused(f"{self.what} holds a number without an end")

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return len(self.data) - self.at

    def end(self) -> None:
        """Raises `ArtifactError` unless everything was read."""
        if self.at != len(self.data):
            raise refused(f"{self.what} has {len(self.data) - self.at:,} bytes too many")


__all__ = ["Cursor", "varint"]
