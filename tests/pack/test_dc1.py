"""The released layout, written here by hand and by a slow writer of its own."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import secateurs as sec
from secateurs.base.errors import ArtifactError, InputError
from secateurs.pack.container import read, to_bytes
from secateurs.pack.dc1 import Layer, read_dc1


def by_hand() -> bytes:
    """Positions 0, 5, 40 with codes 1, 2, 1 in 4 bits: entries 0, 4, 15, 15, 2 with codes 1, 2, 0, 0, 1."""
    codebook = [0.0, 0.5, -1.5] + [9.0] * 13
    return (
        struct.pack("<I", 5)
        + struct.pack("<16f", *codebook)
        + struct.pack("<2f", 0.25, -0.25)
        + bytes([0x21, 0x00, 0x01])
        + bytes([0x40, 0xFF, 0x02])
    )


def test_a_file_by_hand(tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(by_hand())
    found = read_dc1(tmp_path / "net", [Layer("fc", (2, 25))])
    dense = np.zeros(50, dtype=np.float32)
    dense[[0, 5, 40]] = [0.5, -1.5, 0.5]
    assert list(found) == ["fc.weight", "fc.bias"]
    assert np.array_equal(found["fc.weight"].decode(), dense.reshape(2, 25))
    assert found["fc.bias"].decode().tolist() == [0.25, -0.25]
    packed = read(to_bytes(found))
    assert np.array_equal(packed["fc.weight"], dense.reshape(2, 25))


def slow_writer(layers: list[tuple[np.ndarray, np.ndarray, int]]) -> bytes:
    """`(weights as indices into the codebook, codebook, bits)` by the rule, entry by entry."""
    heads, bodies = [], []
    for codes, codebook, bits in layers:
        entries, before = [], -1
        for position, code in enumerate(codes.reshape(-1).tolist()):
            if code:
                gap = position - before
                while gap > 16:
                    entries.append((15, 0))
                    gap -= 16
                entries.append((gap - 1, code))
                before = position
        heads.append(len(entries))
        gaps = sum(gap << 4 * place for place, (gap, _) in enumerate(entries))
        packed = sum(code << bits * place for place, (_, code) in enumerate(entries))
        body = codebook.astype("<f4").tobytes() + np.arange(codes.shape[0]).astype("<f4").tobytes()
        body += packed.to_bytes((len(entries) * bits + 7) // 8, "little")
        bodies.append(body + gaps.to_bytes((len(entries) + 1) // 2, "little"))
    return struct.pack(f"<{len(heads)}I", *heads) + b"".join(bodies)


def layers(density: float) -> tuple[list[tuple[np.ndarray, np.ndarray, int]], list[Layer]]:
    rng = np.random.default_rng(0)
    shapes, bits = [(4, 3, 5, 5), (7, 33)], [8, 4]
    made = []
    for shape, width in zip(shapes, bits, strict=True):
        codebook = np.concatenate([[0], rng.standard_normal((1 << width) - 1)])
        made.append((np.where(rng.random(shape) < density, rng.integers(1, 1 << width, shape), 0), codebook, width))
    return made, [Layer("conv", shapes[0]), Layer("fc", shapes[1])]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_layers_of_both_widths(density: float) -> None:
    made, facts = layers(density)
    found = read_dc1(slow_writer(made), facts)
    for (codes, codebook, _), name in zip(made, ("conv", "fc"), strict=True):
        assert np.array_equal(found[f"{name}.weight"].decode(), codebook.astype(np.float32)[codes])
        assert found[f"{name}.bias"].decode().tolist() == list(range(codes.shape[0]))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Linear(33, 7)


def test_the_layers_are_those_of_a_model_and_a_model_comes_of_it(tmp_path: Path) -> None:
    made, facts = layers(0.3)
    (tmp_path / "net").write_bytes(slow_writer(made))
    found = sec.read_dc1(tmp_path / "net", Net())
    sec.pack(Net(), tmp_path / "net.sec", coded=found)
    model = sec.unpack(tmp_path / "net.sec", Net)
    assert isinstance(model, Net)
    for (codes, codebook, _), layer in zip(made, (model.conv, model.fc), strict=True):
        assert np.array_equal(layer.weight.detach().numpy(), codebook.astype(np.float32)[codes])
        assert layer.bias is not None and layer.bias.tolist() == list(range(codes.shape[0]))
    assert [fact.shape for fact in facts] == [tuple(item.weight.shape) for item in (model.conv, model.fc)]


def test_files_that_do_not_fit_are_refused() -> None:
    made, facts = layers(0.3)
    data = slow_writer(made)
    for length in range(0, len(data), 37):
        with pytest.raises(ArtifactError):
            read_dc1(data[:length], facts)
    for wrong in (data + b"\0", struct.pack("<I", 10**9) + data[4:]):
        with pytest.raises(ArtifactError):
            read_dc1(wrong, facts)
    for other in ([facts[0], Layer("fc", (7, 3))], facts[:1], facts[::-1]):
        with pytest.raises(ArtifactError):
            read_dc1(data, other)
    with pytest.raises(InputError, match="no layer"):
        read_dc1(data, [Layer("fc", (), 4)])
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_dc1("none", facts)
