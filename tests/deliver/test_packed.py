"""`sec.pack` and `sec.unpack`: models, states, the graph form, the ledger, refusals."""

from __future__ import annotations

import copy
import gzip
import io
import json
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

import secateurs as sec
from secateurs.pack.baseline import Baseline, form_bytes, gzip_bytes, gzipped, weights_alone
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


def test_lazily_negated_values(tmp_path: Path) -> None:
    values = torch.tensor([1.0 + 2.0j, 3.0 - 4.0j]).conj().imag
    assert values.is_neg()
    sec.pack({"w": values}, tmp_path / "m.sec")
    found = sec.unpack(tmp_path / "m.sec")
    assert isinstance(found, dict)
    assert found["w"].tolist() == [-2.0, 4.0]


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


def test_the_same_model_gives_the_same_file_with_its_program(tmp_path: Path) -> None:
    """Also when it lies elsewhere in memory."""
    kept = []
    for place in range(2):
        net = pruned()
        kept += [net, torch.zeros(1000 * (place + 1))]
        sec.pack(net, tmp_path / f"{place}.sec", example_inputs=torch.randn(2, 3, 6, 6))
    assert (tmp_path / "0.sec").read_bytes() == (tmp_path / "1.sec").read_bytes()
    program = json.loads(read(tmp_path / "0.sec").text("graph") or "")
    memory = [value[3] for value in program["values"]]
    assert memory[0] == 0 and max(memory) < len(memory) and len(set(memory)) > 5


def test_a_budget_holds_with_everything_that_is_in_the_file(tmp_path: Path) -> None:
    net, x = pruned(), torch.randn(2, 3, 6, 6)
    given = Coded((4,), Raw(net.head.bias.detach().numpy()))
    plain = sec.pack(net, tmp_path / "m.sec", bytes=10**6).bytes
    for extra in ({"example_inputs": x}, {"metadata": {"a": "b" * 99}}, {"coded": {"head.bias": given}}, {"biases": 4}):
        least = sec.pack(net, tmp_path / "m.sec", bytes=10**6, **extra).bytes - 60
        assert least > plain - 100
        book = sec.pack(net, tmp_path / "m.sec", bytes=least, **extra)
        assert book.bytes <= least
    weight = Coded((4, 8), Raw(net.head.weight.detach().numpy().reshape(-1)))
    sec.pack(net, tmp_path / "m.sec", bytes=1000, coded={"head.weight": weight})
    assert torch.equal(sec.unpack(tmp_path / "m.sec")["head.weight"], net.head.weight)  # type: ignore[index]


def test_a_ledger_of_a_path(tmp_path: Path) -> None:
    assert sec.pack(pruned(), tmp_path / "m.sec") == sec.ledger(tmp_path / "m.sec")
    with pytest.raises(sec.ArtifactError, match="cannot be opened"):
        sec.ledger(tmp_path / "none")


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
    refuse(sec.InputError, lambda: sec.pack({"w": torch.eye(2).to_sparse()}, out), "`w`", "sparse", "dense")
    refuse(sec.InputError, lambda: sec.pack(pruned(), out, gzip=True, original="net"), "got a str")  # type: ignore[arg-type]
    assert not out.exists()
    refuse(sec.WriteError, lambda: sec.pack({"w": torch.ones(2)}, tmp_path), "could not be written")
    net = pruned()
    refuse(sec.InputError, lambda: sec.pack(net, out, data=[]), "Nothing is quantised", "share, integers or bytes")
    for bits in (2.5, [3], {"*": "x"}, {"*": 2.5}, {1: 3}):
        refuse(sec.InputError, lambda bits=bits: sec.pack(net, out, share=bits), "whole number", repr(bits))  # type: ignore[misc]
    refuse(sec.InputError, lambda: sec.pack(net, out, integers="8"), "whole number", "'8'")  # type: ignore[arg-type]
    refuse(sec.InputError, lambda: sec.pack(net, out, bytes="4KB"), "number of bytes", "'4KB'")  # type: ignore[arg-type]
    for endless in (float("inf"), float("nan")):
        refuse(sec.InputError, lambda endless=endless: sec.pack(net, out, bytes=endless), "number of bytes")  # type: ignore[misc]
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
    assert data["gzip"]["forms"]["csr"] > data["gzip"]["forms"]["relative"] > data["gzip"]["gzip_packed"] / 2
    assert f"sparse rows {data['gzip']['forms']['csr']:,} bytes" in book.summary()
    assert data["gzip"]["raw"] == 4 * (8 * 27 + 8 + 4 * 8 + 8 * 4 + 4)
    assert f"{book.bytes:,}" in str(book) and "conv.weight" in str(book) and "factor" in str(book)


def test_a_narrow_table_adds_parts_up_and_cuts_no_number_off(tmp_path: Path) -> None:
    book = sec.pack(pruned(), tmp_path / "m.sec", share=3, biases=8, example_inputs=torch.randn(2, 3, 6, 6))
    for width in (80, 200):
        console = Console(file=io.StringIO(), width=width)
        console.print(book)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "…" not in text and ("codebooks" in text) == (width == 200)
        assert all(row.name[:12] in text and f"{row.bytes:,}" in text for row in book.rows)
        sums = [int(word.replace(",", "")) for word in text.splitlines()[-1].split()[1:]]
        assert sum(sums[:-1]) == sums[-1] == book.bytes


def test_shared_contents_have_codebooks_and_tables() -> None:
    book = ledger(read(to_bytes(sample_tensors())))
    rows = {row.name: row for row in book.rows}
    assert rows["shared.dense"].parts["codebooks"] % 4 == 0 and "indices" not in rows["shared.dense"].parts
    assert {"indices", "tables", "codes"} <= set(rows["shared.sparse2"].parts)


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

    net, original = pruned(), pruned(seed=1, share=0.0)
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


def test_many_subnormal_values_are_packed_as_they_are_with_a_warning(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    with torch.no_grad():
        model[0].weight[:15] = 1e-40
        model[1].weight[0, :2] = 1e-40  # 2 of 300
    with pytest.warns(UserWarning, match=r"300 values are not zero.*`0\.weight`: 300 of 600\..*2\*\*-126") as caught:
        sec.pack(model, tmp_path / "file")
    assert caught[0].filename == __file__
    state = sec.unpack(tmp_path / "file")
    assert isinstance(state, dict) and torch.equal(state["0.weight"], model[0].weight)
    for made in (lambda: sec.pack(model, tmp_path / "shared", share=4), lambda: sec.pack(model.half(), tmp_path / "h")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made()  # coded; and in half precision they are zeros, and 1e-6 a number like others


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
