"""`sec.pack` and `sec.unpack`: models, states, the graph form, the ledger, refusals."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sec
from secateurs.pack.baseline import Baseline, gzip_bytes
from secateurs.pack.coded import Coded, Raw, Shared
from secateurs.pack.container import read, to_bytes
from secateurs.pack.dtypes import DTYPES
from secateurs.pack.ledger import PARTS, ledger
from secateurs.testing.packed import coded_tensors, sample_tensors


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def pruned(seed: int = 0, share: float = 0.8) -> Net:
    torch.manual_seed(seed)
    net = Net().eval()
    with torch.no_grad():
        for layer in (net.conv, net.head):
            order = layer.weight.abs().flatten().argsort()
            layer.weight.view(-1)[order[: int(share * order.numel())]] = 0.0
        net.norm.running_mean.normal_()
    return net


def same_state(one: nn.Module, other: nn.Module) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]) and tensor.dtype == other.state_dict()[name].dtype


def test_into_the_class_and_as_a_state(tmp_path: Path) -> None:
    net = pruned()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    book = sec.pack(net, tmp_path / "m.sec", metadata={"seed": 0})
    assert book.bytes == (tmp_path / "m.sec").stat().st_size
    again = sec.unpack(tmp_path / "m.sec", Net)
    assert isinstance(again, Net) and not again.training
    same_state(again, net)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(again(x), net(x))
    state = sec.unpack(tmp_path / "m.sec")
    assert isinstance(state, dict) and all(torch.equal(state[name], before[name]) for name in before)
    state["conv.weight"].zero_()  # its own memory, not the file's
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert read(tmp_path / "m.sec").metadata == {"seed": 0}
    sec.pack(net, tmp_path / "again.sec", metadata={"seed": 0})
    assert (tmp_path / "again.sec").read_bytes() == (tmp_path / "m.sec").read_bytes()
    assert read(tmp_path / "m.sec").record("conv.weight").encoding is not None


def test_negative_zeros_become_zeros(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2):
        for values in ([-0.0, 1.0], [-0.0] * 100 + [1.0]):
            tensor = torch.tensor(values).to(dtype)
            sec.pack({"w": tensor}, tmp_path / "m.sec")
            found = sec.unpack(tmp_path / "m.sec")["w"]  # type: ignore[index]
            assert found.dtype == dtype and torch.equal(found.float(), tensor.float())
            assert not torch.signbit(found.float()).any()


@pytest.mark.parametrize("name", DTYPES)
def test_every_type(name: str, tmp_path: Path) -> None:
    tensor = torch.tensor([[0, 1, 0], [1, 0, 1]]).to(getattr(torch, name))
    sec.pack({"w": tensor, "scalar": tensor[0, 1], "none": tensor[:0]}, tmp_path / "m.sec")
    state = sec.unpack(tmp_path / "m.sec")
    assert isinstance(state, dict)
    for key, expected in {"w": tensor, "scalar": tensor[0, 1], "none": tensor[:0]}.items():
        assert state[key].dtype == expected.dtype and state[key].shape == expected.shape
        assert state[key].tolist() == expected.tolist()


def test_tied_tensors_stay_one(tmp_path: Path) -> None:
    net = Tied()
    sec.pack(net, tmp_path / "m.sec")
    assert (tmp_path / "m.sec").stat().st_size < 10 * 4 * 4 + 120
    state = sec.unpack(tmp_path / "m.sec")
    assert isinstance(state, dict) and state["head.weight"] is state["embed.weight"]
    again = sec.unpack(tmp_path / "m.sec", Tied)
    same_state(again, net)  # type: ignore[arg-type]


def test_coded_tensors_come_back_decoded(tmp_path: Path) -> None:
    net = pruned()
    weight = net.conv.weight.detach().numpy()
    kept = weight != 0
    codes = np.digitize(weight[kept], [-0.1, 0.1])
    coded = Coded(weight.shape, Shared(codes, np.array([-0.2, 0.0, 0.2], dtype=np.float32)), kept)
    sec.pack(net, tmp_path / "m.sec", coded={"conv.weight": coded})
    again = sec.unpack(tmp_path / "m.sec", Net)
    assert torch.equal(again.conv.weight, torch.from_numpy(coded.decode()))  # type: ignore[union-attr]
    assert torch.equal(again.head.weight, net.head.weight)  # type: ignore[union-attr]


def test_graph_form_runs_without_the_class(tmp_path: Path) -> None:
    from secateurs.cut.form import GraphModule

    net = pruned()
    x = torch.randn(2, 3, 6, 6)
    graph = sec.capture(net, x)
    sec.pack(GraphModule(graph, dict(net.state_dict())), tmp_path / "m.sec")
    again = sec.unpack(tmp_path / "m.sec")
    assert isinstance(again, GraphModule)
    assert torch.equal(again(x), net(x))


def refuse(kind: type[sec.SecateursError], action: Callable[[], object], *words: str) -> None:
    with pytest.raises(kind) as caught:
        action()
    for word in words:
        assert word in str(caught.value)


def test_the_first_difference_to_the_class_is_named(tmp_path: Path) -> None:
    sec.pack(pruned(), tmp_path / "m.sec")
    refuse(
        sec.ArtifactError, lambda: sec.unpack(tmp_path / "m.sec", lambda: Net(9)), "conv.weight", "8x3x3x3", "9x3x3x3"
    )
    refuse(
        sec.ArtifactError, lambda: sec.unpack(tmp_path / "m.sec", lambda: nn.Linear(2, 2)), "`weight` is in the class"
    )
    refuse(sec.ArtifactError, lambda: sec.unpack(tmp_path / "m.sec", lambda: Net().half()), "float16 in the class")
    refuse(sec.InputError, lambda: sec.unpack(tmp_path / "m.sec", Net()), "not a class or function")  # type: ignore[arg-type]


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    one = Coded((1,), Raw(np.ones(1, dtype=np.float32)))
    out = tmp_path / "m.sec"
    refuse(sec.InputError, lambda: sec.pack("net", out), "got a str")  # type: ignore[arg-type]
    refuse(sec.ArtifactError, lambda: sec.pack({"w": 1}, out), "not a tensor")  # type: ignore[dict-item]
    refuse(
        sec.InputError, lambda: sec.pack({"weight": torch.ones(1)}, out, coded={"wieght": one}), "did you mean `weight`"
    )
    refuse(
        sec.InputError, lambda: sec.pack({"w": torch.ones(2)}, out, coded={"w": one}), "disagree on `w`", "[1]", "[2]"
    )
    refuse(sec.InputError, lambda: sec.pack({"w": torch.ones(2, device="meta")}, out), "meta")
    refuse(sec.InputError, lambda: sec.pack({"w": torch.ones(2, dtype=torch.complex128)}, out), "complex128")
    refuse(sec.WriteError, lambda: sec.pack({"w": torch.ones(2)}, tmp_path), "could not be written")
    assert not out.exists()


@given(st.lists(coded_tensors(), max_size=3), st.booleans())
@settings(max_examples=50)
def test_the_ledger_sums_to_the_file(tensors: list[Coded], notes: bool) -> None:
    named = {f"l{place}.weight": tensor for place, tensor in enumerate(tensors)}
    data = to_bytes(named, {"a": "b" * 50} if notes else None)
    book = ledger(read(data))
    assert sum(row.bytes for row in book.rows) == sum(book.parts.values()) == book.bytes == len(data)
    assert all(part in PARTS and size > 0 for row in book.rows for part, size in row.parts.items())


def test_the_ledger_says_what_bytes_are_for(tmp_path: Path) -> None:
    book = sec.pack(pruned(), tmp_path / "m.sec", metadata={"a": 1}, gzip=True)
    rows = {row.name: row for row in book.rows}
    assert rows["norm.running_mean"].parts["norms"] == 8 * 4
    assert rows["norm.running_var"].parts["tables"] == 2  # ones: that says it
    assert rows["head.bias"].parts["biases"] == 4 * 4
    kept = 8 * 27 - int(0.8 * 8 * 27)
    assert rows["conv.weight"].kept == kept and kept * 2 < rows["conv.weight"].parts["codes"] < kept * 4
    assert rows["(metadata)"].parts["texts"] == len('{"a":1}')
    data = json.loads(json.dumps(book.to_json()))
    assert data["bytes"] == sum(row["bytes"] for row in data["rows"]) == sum(data["parts"].values())
    assert data["gzip"]["raw"] == 4 * (8 * 27 + 8 + 4 * 8 + 8 * 4 + 4)
    assert f"{book.bytes:,}" in str(book) and "conv.weight" in str(book) and "factor" in str(book)


def test_shared_contents_have_codebooks_and_tables() -> None:
    book = ledger(read(to_bytes(sample_tensors())))
    rows = {row.name: row for row in book.rows}
    assert rows["shared.dense"].parts["codebooks"] % 4 == 0 and "indices" not in rows["shared.dense"].parts
    assert {"indices", "tables", "codes"} <= set(rows["shared.sparse2"].parts)


def test_gzip_of_the_published_example() -> None:
    assert Baseline(10**7, 3_613_521, 2_243_745).rate == pytest.approx(0.379070, abs=5e-7)
    assert Baseline(10**7, 3_613_521, 2_243_745).factor == pytest.approx(1.6105, abs=5e-4)


def test_gzip_is_gzip_at_level_9_without_a_date() -> None:
    values = np.where(np.random.default_rng(0).random((30, 40)) < 0.5, 0, 1.5)
    values[0, 0] = -0.0
    plain = b"a 30x40\n" + (values.astype("<f4") + 0).tobytes()
    assert gzip_bytes({"a": values}) == len(gzip.compress(plain, 9, mtime=0))


@pytest.mark.medium
def test_gzip_factors_of_the_reference() -> None:
    """300,000 normal float32 weights: 40 % zeros give a factor of 1.50, 80 % 3.9, 90 % 7.2."""
    weights = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    rank = np.abs(weights).argsort().argsort()
    dense = gzip_bytes({"w": weights})
    sizes = [gzip_bytes({"w": np.where(rank < share * weights.size, 0, weights)}) for share in (0.4, 0.8, 0.9)]
    assert [dense / size for size in sizes] == pytest.approx([1.50, 3.9, 7.2], rel=0.03)
    assert sizes == sorted(sizes, reverse=True)
    for share, size in zip((0.4, 0.8, 0.9), sizes, strict=True):  # the entropy of where and of what: no coder is below
        where = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        assert 8 * size >= 300_000 * ((1 - share) * 29.4 + where)
