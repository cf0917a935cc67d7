"""What a packed file is compared with: gzip of the floats, and plain formats."""

from __future__ import annotations

import copy
import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.pack.baseline import Baseline, form_bytes, gzip_bytes, gzipped, weights_alone


def test_gzip_of_the_published_example() -> None:
    assert Baseline(10**7, 3_613_521, 2_243_745).rate == pytest.approx(0.379070, abs=5e-7)
    assert Baseline(10**7, 3_613_521, 2_243_745).factor == pytest.approx(1.6105, abs=5e-4)


def test_plain_formats_by_hand() -> None:
    """Two rows of twelve: kept are columns 0, 1, 10 of the first and 11 of the second; positions 0, 1, 10, 23."""
    values = np.zeros((2, 12), dtype=np.float32)
    values[[0, 0, 0, 1], [0, 1, 10, 11]] = 1.0
    sizes = form_bytes({"w": values, "b": np.zeros(3)})
    csr = 4 * (32 + 4) + 3 * 3  # columns below 12, pointers up to 4
    gaps = min(4 * (32 + 4), 6 * (32 + 3), 9 * (32 + 2), 14 * (32 + 1))  # stored gaps 0, 0, 8, 12, or more with fillers
    groups = 3 * (8 * 32 + 1) + 3 * 2
    assert sizes == {name: 12 + -(-bits // 8) for name, bits in (("csr", csr), ("relative", gaps), ("simd", groups))}
    assert sec.SimdMatrix.of(torch.from_numpy(values), 8).bits(index=1, pointer=2) == groups
    assert set(form_bytes({"w": np.zeros((0, 3)), "v": np.zeros((4, 0))}).values()) <= {0, 1}


def test_gzip_is_gzip_at_level_9_without_a_date() -> None:
    values = np.where(np.random.default_rng(0).random((30, 40)) < 0.5, 0, 1.5)
    values[0, 0] = -0.0
    plain = b"a 30x40\n" + (values.astype("<f4") + 0).tobytes()
    assert gzip_bytes({"a": values}) == len(gzip.compress(plain, 9, mtime=0))


def test_the_same_tensors_give_the_same_bytes() -> None:
    """As a file that anybody can unpack, whatever memory they lie in; other values, names or orders give others."""
    generator = np.random.default_rng(0)
    given = {"a": generator.standard_normal((30, 40)), "b": generator.standard_normal(7).astype(np.float32)}
    found = gzipped(given)
    strided = np.empty((30, 80))[:, ::2]
    strided[:] = given["a"]
    assert gzipped({"a": strided, "b": given["b"].astype(np.float64)}) == found
    assert gzip.decompress(found) == b"a 30x40\nb 7\n" + given["a"].astype("<f4").tobytes() + given["b"].tobytes()
    assert len(found) == gzip_bytes(given)
    assert found[4:8] == bytes(4)  # no date
    others = {"a": np.where(given["a"] == given["a"].max(), 0, given["a"]), "b": given["b"]}
    assert len({found, gzipped(others), gzipped(dict(reversed(given.items())))}) == 3


def test_gzip_of_a_model_is_that_of_its_numbers_in_the_order_of_its_modules(tmp_path: Path) -> None:
    """Python's own gzip on a file made here; in another order it takes another number of bytes."""

    def by_hand(state: dict[str, Tensor]) -> int:
        floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        lines = "".join(f"{name} {'x'.join(map(str, tensor.shape))}\n" for name, tensor in floats.items())
        numbers = b"".join(tensor.contiguous().numpy().tobytes() for tensor in floats.values())
        return len(gzip.compress(lines.encode() + numbers, 9, mtime=0))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 20))
    original = copy.deepcopy(net)
    sec.sparsify(net, 0.8).detach()
    base = sec.pack(net, tmp_path / "m.sec", gzip=True, original=original).baseline
    assert base is not None
    assert (base.gzip_original, base.gzip_packed) == (by_hand(original.state_dict()), by_hand(net.state_dict()))
    assert base.gzip_packed != by_hand(dict(reversed(net.state_dict().items())))
    assert base.gzip_packed < 0.5 * base.gzip_original


def test_what_is_too_small_to_count_is_zero_to_gzip_and_to_plain_formats() -> None:
    """-0.0 and 1e-40 would destroy the gain: 40 % of such values cost what zeros do."""
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((60, 50)).astype(np.float32)
    gone = generator.random((60, 50)) < 0.4
    clean = np.where(gone, np.float32(0), weights)
    tiny = np.where(gone, (weights * 1e-40).astype(np.float32), weights)
    signed = np.where(gone, np.copysign(np.float32(0), weights), weights)
    assert np.count_nonzero(tiny[gone]) > 1000
    for spoilt in (tiny, signed, np.where(gone, 1e-60, weights.astype(np.float64))):
        assert gzipped({"w": spoilt}) == gzipped({"w": clean})
        assert form_bytes({"w": spoilt}) == form_bytes({"w": clean})
    smallest = np.float32(2**-126)
    assert (
        gzip.decompress(gzipped({"w": np.array([smallest, -smallest, smallest / 2])}))[-12:]
        == np.array([smallest, -smallest, 0], dtype="<f4").tobytes()
    )
    assert np.isnan(np.frombuffer(gzip.decompress(gzipped({"w": np.array([np.nan])}))[-4:], "<f4")).all()


def test_weights_alone(tmp_path: Path) -> None:
    """What gzip gains on weights, which alone have zeros: neither biases nor norms water it down."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 30))
    original = copy.deepcopy(model)
    sec.sparsify(model, 0.5).detach()
    base = sec.pack(model, tmp_path / "file", gzip=True, original=original).baseline
    assert base is not None and base.weights_rate is not None
    each = [
        gzip_bytes({name: item.tensor.numpy() for name, item in sec.sparsity.layer_weights(one).items()})
        for one in (original, model)
    ]
    assert [base.weights_original, base.weights_packed] == each
    assert base.weights_rate == 1 - each[1] / each[0] > base.rate
    assert base.to_json()["weights_rate"] == base.weights_rate
    assert weights_alone({"w": np.zeros((2, 3)), "b": np.zeros(2), "n": np.zeros(())}).keys() == {"w"}
    assert sec.pack(nn.BatchNorm2d(3), tmp_path / "file", gzip=True).baseline.weights_rate is None  # type: ignore[union-attr]


@pytest.mark.medium
def test_gzip_factors_of_the_reference() -> None:
    """300,000 normal float32 weights: 40 % zeros give a factor of 1.50, 80 % 3.9, 90 % 7.2; a little below 1 / kept.

    The floor: what the kept weights take when all are kept, and the entropy of which are.
    """
    weights = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    rank = np.abs(weights).argsort().argsort()
    dense = gzip_bytes({"w": weights})
    sizes = [gzip_bytes({"w": np.where(rank < share * weights.size, 0, weights)}) for share in (0.4, 0.8, 0.9)]
    assert [dense / size for size in sizes] == pytest.approx([1.50, 3.9, 7.2], rel=0.03)
    assert sizes == sorted(sizes, reverse=True)
    each = 8 * dense / weights.size
    assert each == pytest.approx(29.6, abs=0.1)
    for share, size in zip((0.4, 0.8, 0.9), sizes, strict=True):
        entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
        assert 1 / (1 - share) > dense / size
        assert 8 * size > 0.98 * weights.size * ((1 - share) * 29.5 + entropy)
    finer = [gzip_bytes({"w": np.where(rank < share * weights.size, 0, weights)}) for share in np.arange(0.0, 1.0, 0.1)]
    assert all(after <= 1.005 * before for before, after in pairwise(finer))
