"""Files that somebody tampered with, and what reading one must come to: the same content, or a refusal.

Most are packed files of tensors alone, some hold a program, some have the layout of the released Deep Compression
files. Half of the packed ones are damaged as they are, and no byte of such a file may be read as anything but what was
written. The others are signed again, so that the damage gets past the checksums and to the decoders.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.base.errors import ArtifactError
from secateurs.pack.coded import Coded
from secateurs.pack.container import GRAPH, Packed, read, to_bytes
from secateurs.testing.damage import DAMAGE, FORGED, with_program
from secateurs.testing.hostile_dc1 import Buffer, buffer, came_of
from secateurs.testing.hostile_program import Programmed, sound_programs, used
from secateurs.testing.hostile_text import rewritten
from secateurs.testing.packed import sample_tensors

LIMIT = 1 << 22
"""Bytes to which a mutant may decode."""

SLOW = 5.0
"""Seconds of computing after which a file counts as one that hangs."""

SHARES = {"tensors": 70, "program": 15, "dc1": 15}
"""How many of a hundred files are of which kind."""


@dataclass(frozen=True)
class Seed:
    """A sound file and the digest of what it holds."""

    data: bytes
    content: str
    programmed: Programmed | None = None


@dataclass(frozen=True)
class Mutant:
    """A tampered file, of what kind it is, how it was made, and whether its checksums were made to fit."""

    kind: str
    how: str
    signed: bool
    data: bytes
    judge: Callable[[], str]
    """What comes of it; raises `ArtifactError` where it is refused."""

    @property
    def label(self) -> str:
        return f"{self.kind}, {self.how}, {'signed again' if self.signed else 'as it is'}"


def mutant(number: int, kind: str = "") -> Mutant:
    """The mutant of this number; always the same. `kind`: one of `SHARES`; by default each has its share."""
    kind = kind or _kind(number)
    rng = random.Random(number)
    if kind == "dc1":
        sound, altered, how = buffer(rng)
        return Mutant(kind, how, False, altered.data, lambda: _read_buffer(sound, altered, number))
    seed = rng.choice(sound_files() if kind == "tensors" else program_files())
    signed = rng.random() < (0.5 if kind == "tensors" else 0.8)
    if not signed:
        how = rng.choice(list(DAMAGE))
        data = DAMAGE[how](rng, seed.data)
    elif kind == "tensors" or rng.random() < 0.2:
        how = rng.choice(list(FORGED))
        data = FORGED[how](rng, seed.data)
    else:
        program, how = rewritten(rng, _text(seed))
        data = with_program(seed.data, program)
    return Mutant(kind, how, signed, data, lambda: _read_packed(data, seed, signed))


def outcome(subject: Mutant) -> str:
    """`"refused"`, `"same"`, or for one that nothing vouches for `"other"`; `"wrong: ..."` says what went wrong.

    Of a file with a program it also says what came of that.
    """
    start = time.thread_time()
    try:
        result = subject.judge()
    except ArtifactError as error:
        result = "refused" if str(error) else "wrong: a refusal without a reason"
    except Exception as error:  # noqa: BLE001  (any other exception is what is looked for)
        result = f"wrong: {type(error).__name__}: {str(error)[:200]}"
    seconds = time.thread_time() - start
    return result if seconds < SLOW else f"wrong: {seconds:.1f} s"


def digest(packed: Packed, decoded: dict[str, tuple[NDArray[Any], str]] | None = None) -> str:
    """SHA-256 over all names, types, shapes, values, metadata and texts of a file, after everything was decoded.

    Values and their types are put into `decoded`.
    """
    total = hashlib.sha256(repr((sorted(packed.metadata.items()), packed.tied)).encode())
    total.update(repr([(text.name, packed.text(text.name)) for text in packed.texts]).encode())
    for name in packed:
        coded = packed.coded(name)
        with np.errstate(over="ignore", invalid="ignore"):
            values = coded.decode()
        assert values.shape == coded.shape and values.size == prod(coded.shape), f"`{name}` is {values.shape}"
        total.update(repr((name, coded.dtype, coded.shape, type(coded.content).__name__)).encode())
        total.update(values.tobytes() + (b"" if coded.kept is None else coded.kept.tobytes()))
        if decoded is not None:
            decoded[name] = values, coded.dtype
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
    return tuple(Seed(data, digest(read(data))) for data in files)


@cache
def program_files() -> tuple[Seed, ...]:
    """Small files that hold a program."""
    return tuple(Seed(item.data, digest(read(item.data)), item) for item in sound_programs())


def _kind(number: int) -> str:
    place = number % sum(SHARES.values())
    for kind, share in SHARES.items():
        place -= share
        if place < 0:
            return kind
    raise AssertionError


def _read_packed(data: bytes, seed: Seed, signed: bool) -> str:
    decoded: dict[str, tuple[NDArray[Any], str]] = {}
    same = digest(read(data, limit=LIMIT), decoded) == seed.content
    assert same or signed, "altered content was read"
    result = "same" if same else "other"
    return result if seed.programmed is None else f"{result}, {used(data, seed.programmed, decoded, LIMIT, same=same)}"


def _read_buffer(sound: Buffer, altered: Buffer, number: int) -> str:
    found = came_of(altered, packs=number % 16 == 0)
    return "refused" if found is None else "same" if found == _unaltered(sound) else "other"


_unaltered = cache(came_of)


@cache
def _text(seed: Seed) -> str:
    text = read(seed.data).text(GRAPH)
    assert text is not None
    return text


__all__ = ["LIMIT", "SHARES", "Mutant", "Seed", "digest", "mutant", "outcome", "program_files", "sound_files"]
