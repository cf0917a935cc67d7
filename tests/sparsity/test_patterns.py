"""Which weights form a group, by hand and by loops."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateurs.base.errors import InputError, UnknownNameError
from secateurs.sparsity import PATTERNS, Grouping, masks, parse_pattern
from secateurs.sparsity.layout import Layout

Key = Callable[[int, int, int, int], object]


def partition(ids: Tensor) -> list[list[int]]:
    """Flat indices of each group, groups in the order of their first weight."""
    flat = ids.flatten().tolist()
    owned: dict[int, list[int]] = {}
    for index, group in enumerate(flat):
        owned.setdefault(group, []).append(index)
    return list(owned.values())


def by_loop(shape: tuple[int, int, int, int], groups: int, key: Key) -> list[list[int]]:
    """The same from a key per weight `(output, input, r, s)` with absolute channels, convolution group included."""
    outputs, inputs, height, width = shape
    owned: dict[object, list[int]] = {}
    flat = 0
    for o in range(outputs):
        for i in range(inputs):
            for r in range(height):
                for s in range(width):
                    g, row = divmod(o, outputs // groups)
                    owned.setdefault((g, key(row, i, r, s)), []).append(flat)
                    flat += 1
    return list(owned.values())


KEYS: dict[str, Callable[[int, int], Key]] = {
    "weight": lambda height, width: lambda o, i, r, s: (o, i, r, s),
    "vector": lambda height, width: lambda o, i, r, s: (o, i, r),
    "kernel": lambda height, width: lambda o, i, r, s: (o, i),
    "filter": lambda height, width: lambda o, i, r, s: o,
    "rows(3)": lambda height, width: lambda o, i, r, s: (o // 3, i, r, s),
    "simd(4)": lambda height, width: lambda o, i, r, s: (o, ((i * height + r) * width + s) // 4),
    "block(2,5)": lambda height, width: lambda o, i, r, s: (o // 2, ((i * height + r) * width + s) // 5),
}


@given(
    name=st.sampled_from(sorted(KEYS)),
    groups=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)
def test_groups_are_those_of_the_definition(name: str, groups: int, sizes: tuple[int, int, int, int]) -> None:
    shape = (sizes[0] * groups, *sizes[1:])
    found = parse_pattern(name).groups(shape, Layout(groups))
    assert partition(found.ids) == by_loop(shape, groups, KEYS[name](*shape[2:]))


@given(
    n=st.integers(1, 3),
    more=st.integers(0, 3),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 2), st.integers(1, 2)),
    along=st.sampled_from(["input", "output"]),
)
def test_blocks_of_n_of_m(n: int, more: int, shape: tuple[int, int, int, int], along: str) -> None:
    m = n + more
    found = parse_pattern(f"{n}:{m}({along})").groups(shape)
    assert found.blocks is not None
    assert found.quota == n
    blocks = partition(found.blocks[found.ids])

    def key(o: int, i: int, r: int, s: int) -> object:
        return (o, i // m, r, s) if along == "input" else (o // m, i, r, s)

    assert blocks == by_loop(shape, 1, key)


def test_two_of_four_by_hand() -> None:
    linear = nn.Linear(6, 1)
    linear.weight.data = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.1]])
    kept = masks(linear, pattern="2:4")["weight"]
    assert kept.int().tolist() == [[0, 1, 1, 0, 1, 1]]  # the tail of two counts as padded with zeros


def test_equal_weights_lose_the_lower_index() -> None:
    linear = nn.Linear(4, 2)
    linear.weight.data = torch.ones(2, 4)
    assert masks(linear, pattern="1:4")["weight"].int().tolist() == [[0, 0, 0, 1]] * 2
    assert masks(linear, 0.5)["weight"].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("spelled", "taps"),
    [
        ("strided(0,2)", [0, 2, 4, 6, 8]),
        ("strided(1,2)", [1, 3, 5, 7]),
        ("strided(5,3)", [5, 8]),
        ("strided(8,9)", [8]),
    ],
)
def test_strided_taps(spelled: str, taps: list[int]) -> None:
    conv = nn.Conv2d(3, 4, 3)
    kept = masks(conv, pattern=spelled)["weight"].flatten(2)
    start, stride = (int(item) for item in spelled[8:-1].split(","))
    assert len(taps) == -(-(9 - start) // stride)
    assert kept.any(dim=(0, 1)).nonzero().flatten().tolist() == taps
    assert torch.equal(kept, kept[0, 0].expand_as(kept))


def test_the_start_is_shared_by_all_readers_of_an_input_channel() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    kept = masks(conv, pattern="strided(*,3)")["weight"].reshape(2, 3, 2, 9)
    magnitude = conv.weight.detach().abs().reshape(2, 3, 2, 3, 3).sum(dim=1)  # [group, input, 3 taps, start]
    best = magnitude.sum(dim=2).argmax(dim=-1)
    for group in range(2):
        for channel in range(2):
            expected = torch.arange(9) % 3 == best[group, channel]
            for output in range(3):
                assert torch.equal(kept[group, output, channel], expected)


def test_a_start_behind_the_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="lies behind a kernel of 1 taps"):
        masks(nn.Conv2d(2, 2, 1), pattern="strided(1,2)")


def test_simd_scores_a_tail_by_its_real_weights() -> None:
    linear = nn.Linear(6, 1)
    linear.weight.data = torch.tensor([[0.3, 0.4, 0.3, 0.4, 0.36, 0.36]])
    found = masks(linear, 0.5, pattern="simd(4)")["weight"]
    assert found.int().tolist() == [[0, 0, 0, 0, 1, 1]]  # 0.36 against RMS .353553; padded it would be .2546


def test_of_one_weight_each_pattern_is_plain_magnitude() -> None:
    linear = nn.Linear(9, 5)
    plain = masks(linear, 0.4)["weight"]
    for name in ("vector", "kernel", "filter", "rows(1)", "block(1,1)", "simd(1)"):
        assert torch.equal(masks(linear, 0.4, pattern=name)["weight"], plain), name


def test_filters_leave_every_neuron_of_linear_layers_something() -> None:
    """A row of a linear layer is a neuron, in the last one a class: half of the logits would be constants."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    found = masks(model, 0.5, pattern="filter")
    assert found["0.weight"].flatten(1).any(1).tolist().count(False) == 4
    assert torch.equal(found["2.weight"], masks(model, 0.5, only=["2"])["2.weight"])
    assert bool(found["2.weight"].any(1).all())
    gates = masks(nn.LSTM(6, 4), 0.5, pattern="filter")
    assert all(int(mask.sum()) == mask.numel() // 2 and bool(mask.any(1).all()) for mask in gates.values())


def test_coarser_patterns_remove_more_magnitude() -> None:
    conv = nn.Conv2d(16, 16, 3)
    size = conv.weight.detach().abs()
    gone = [float(size[~masks(conv, 0.5, pattern=name)["weight"]].sum()) for name in
            ("weight", "vector", "kernel", "filter")]  # fmt: skip
    assert gone == sorted(gone)


def test_grouping_of_given_ids() -> None:
    grouping = Grouping(torch.tensor([[0, 1, -1], [1, 0, 2]]), 3)
    assert grouping.sizes.tolist() == [2, 2, 1]
    assert grouping.spread(torch.tensor([True, False, True])).int().tolist() == [[1, 0, 0], [0, 1, 1]]
    assert grouping.kept(torch.tensor([[True, False, True], [False, False, False]])).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "text", ["rows", "rows(0)", "rows(x)", "block(4)", "3:2", "2:4(sideways)", "strided(1)", "4 4"]
)
def test_what_spells_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_pattern(text)


def test_near_names_are_offered() -> None:
    with pytest.raises(UnknownNameError, match="kernel"):
        parse_pattern("kernels")


@pytest.mark.parametrize("name", ["rows", "simd", "block", "strided", "n:m"])
def test_a_bare_name_is_answered_with_one_that_can_be_used(name: str) -> None:
    example = PATTERNS[name].example
    with pytest.raises(InputError, match=f"write {re.escape(repr(example))}"):
        parse_pattern(name)
    assert parse_pattern(example).name == name


def test_what_is_given_in_the_place_of_a_share_is_not_printed_whole() -> None:
    data = [(torch.zeros(50, 8), torch.zeros(50))] * 20
    with pytest.raises(InputError, match=r"^sparsity=<list> cannot be used") as refused:
        masks(nn.Linear(8, 2), data)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 200
    with pytest.raises(InputError, match=r"sparsity=90 cannot be used.* such as 0.9 for 90 %"):
        masks(nn.Linear(8, 2), 90)
