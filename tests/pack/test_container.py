"""The file: everything comes back bit for bit, the same input gives the same bytes, damage is refused."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.base.errors import ArtifactError, InputError
from secateurs.pack.coded import Coded, Raw, Scaled, Shared
from secateurs.pack.container import read, to_bytes, write
from secateurs.pack.dtypes import DTYPES, in_memory
from secateurs.pack.index import ENCODINGS
from secateurs.testing.packed import coded_tensors, same_coded, sample_tensors


@given(st.lists(coded_tensors(), max_size=3))
@settings(max_examples=100)
def test_everything_comes_back_bit_for_bit(tensors: list[Coded]) -> None:
    named = {f"layer{place}.weight": tensor for place, tensor in enumerate(tensors)}
    data = to_bytes(named, {"some": ["thing", 1.5, None]})
    assert data == to_bytes(named, {"some": ["thing", 1.5, None]})
    packed = read(data)
    assert list(packed) == list(named) and packed.metadata == {"some": ["thing", 1.5, None]}
    for name, tensor in named.items():
        same_coded(packed.coded(name), tensor)
        assert packed[name].tobytes() == tensor.decode().tobytes()
        assert packed[name].dtype == tensor.decode().dtype and packed[name].shape == tensor.shape
    packed.verify()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_every_bit_pattern(dtype: str) -> None:
    kind = in_memory(dtype)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, 24 * kind.itemsize, dtype=np.uint8).view(kind)
    if dtype == "bool":
        values = rng.random(24) < 0.5
    kept = np.zeros(48, dtype=bool)
    kept[rng.permutation(48)[:24]] = True
    named = {
        "dense": Coded((2, 12), Raw(values), dtype=dtype),
        "sparse": Coded((6, 8), Raw(values), kept.reshape(6, 8), dtype),
    }
    packed = read(to_bytes(named))
    for name, tensor in named.items():
        same_coded(packed.coded(name), tensor)


def test_opening_reads_the_header_only_and_raw_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    big, small = np.arange(5000, dtype=np.int32), np.arange(3, dtype=np.int64)
    write(
        tmp_path / "m.sec",
        {"a": Coded((3,), Raw(small), dtype="int64"), "b": Coded((50, 100), Raw(big), dtype="int32")},
    )
    packed = read(tmp_path / "m.sec")
    for name, align in (("a", 8), ("b", 64)):
        base = packed[name]
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)
        assert not packed[name].flags.writeable
        layout = packed.layouts[list(packed).index(name)]
        assert layout.raw % align == 0
    assert packed["b"] is packed["b"]

    broken = bytearray((tmp_path / "m.sec").read_bytes())
    broken[-1] ^= 1
    lazy = read(bytes(broken))
    assert lazy["a"].tolist() == [0, 1, 2]
    with pytest.raises(ArtifactError, match="checksum of `b`"):
        lazy["b"]


def test_tied_names_are_one_tensor() -> None:
    tensors = {"embed.weight": Coded((4,), Raw(np.ones(4, dtype=np.float32)))}
    packed = read(to_bytes(tensors, tied={"head.weight": "embed.weight", "x": "embed.weight"}))
    assert list(packed) == ["embed.weight", "head.weight", "x"]
    assert packed["head.weight"] is packed["embed.weight"]
    assert packed.tied == {"head.weight": "embed.weight", "x": "embed.weight"}


def test_texts_are_deflated_when_that_helps() -> None:
    packed = read(to_bytes({}, texts={"graph": "node " * 1000, "note": "ä"}))
    assert packed.text("graph") == "node " * 1000 and packed.text("note") == "ä" and packed.text("none") is None
    assert {text.name: text.stored < text.plain for text in packed.texts} == {"graph": True, "note": False}


def test_the_smallest_form_is_chosen() -> None:
    """By file size, against every form that the tensor could have taken."""
    from secateurs.pack.encode import _indices, _with, encode
    from secateurs.pack.index import Mask

    for tensor in sample_tensors().values():
        if tensor.kept is None or tensor.kept.all():
            continue
        mask = Mask.of(tensor.kept)
        sizes = [_with(tensor, index).size for index in _indices(tensor, mask, thorough=True)]
        assert encode(tensor, thorough=True).size == min(sizes)


def test_each_encoding_wins_somewhere() -> None:
    rng = np.random.default_rng(0)
    masks = {
        "bitmap": rng.random((200, 300)) < 0.4,
        "relative": rng.random((100, 300)) < 0.001,
        "groups": np.repeat(rng.random((200, 100)) < 0.1, 16, axis=1),
        "strided": np.broadcast_to(np.arange(9) % 2 == 0, (8, 8, 9)).copy(),
    }
    for name, kept in masks.items():
        values = rng.standard_normal(int(kept.sum())).astype(np.float32)
        packed = read(to_bytes({"w": Coded(kept.shape, Raw(values), kept)}))
        assert packed.records[0].encoding is ENCODINGS[name], name


def test_a_kept_zero_is_no_filler() -> None:
    kept = np.zeros(100_000, dtype=bool)
    kept[[5, 70_000]] = True
    for values in ([0.0, 1.0], [-0.0, 1.0], [2.0, 1.0]):
        tensor = Coded(kept.shape, Raw(np.array(values, dtype=np.float32)), kept)
        same_coded(read(to_bytes({"w": tensor})).coded("w"), tensor)
    codes = Coded(kept.shape, Shared(np.array([0, 1]), np.array([0.0, 2.0], dtype=np.float32)), kept)
    same_coded(read(to_bytes({"w": codes})).coded("w"), codes)


WRONG = {
    "path": ({"../w": 1}, "name"),
    "absolute": ({"/etc/w": 1}, "name"),
    "backslash": ({"a\\w": 1}, "name"),
    "null": ({"a\0w": 1}, "name"),
    "empty": ({"": 1}, "name"),
    "long": ({"w" * 2000: 1}, "name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_names_that_are_paths_are_not_written(case: str) -> None:
    names, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        to_bytes({name: Coded((), Raw(np.ones(1, dtype=np.float32))) for name in names})


def test_contradictions_are_not_written() -> None:
    one = np.ones(1, dtype=np.float32)
    for wrong in (
        Coded((1,), Raw(np.ones(1))),
        Coded((1,), Raw(one), dtype="float31"),
        Coded((1,), Shared(np.array([1]), one)),
        Coded((1,), Shared(np.array([-1]), one)),
        Coded((1,), Shared(np.array([0]), one), dtype="int8"),
        Coded((1,), Scaled(np.array([4]), one, 3)),
        Coded((1,), Scaled(np.array([-4]), one, 3)),
        Coded((1,), Scaled(np.array([1]), np.ones(2, dtype=np.float32), 3)),
        Coded((1,), Scaled(np.array([1]), one, 3, axis=1)),
        Coded((1,), Scaled(np.array([1]), one, 33)),
    ):
        with pytest.raises(InputError, match="cannot be written"):
            to_bytes({"w": wrong})
    tensor = Coded((1,), Raw(one))
    with pytest.raises(InputError, match="not JSON"):
        to_bytes({}, {"a": float("nan")})
    to_bytes({}, texts={"a" * 64: ""})
    with pytest.raises(InputError, match="65 characters"):
        to_bytes({}, texts={"a" * 65: ""})
    with pytest.raises(InputError, match="cannot be tied"):
        to_bytes({"w": tensor}, tied={"v": "u"})


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "m.sec", sample_tensors(), {"a": 1})
    before = path.read_bytes()
    with pytest.raises(InputError):
        write(path, {"w": Coded((1,), Raw(np.ones(1)))})
    assert path.read_bytes() == before == to_bytes(sample_tensors(), {"a": 1})
    assert [item.name for item in tmp_path.iterdir()] == ["m.sec"]
    with pytest.raises(ArtifactError, match="cannot be opened"):
        read(tmp_path / "none.sec")
