"""The order of the data depends on the seed and the epoch alone, and the shares of all processes make the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset
from train.networks import Augmented, loader, points

from secateurs.base.batches import Batches, share
from secateurs.base.errors import InputError, TrainError
from secateurs.base.seeds import seeded


@pytest.fixture(autouse=True)
def _random_states() -> Iterator[None]:
    with seeded(0):
        yield


def drawn(batches: Batches, epoch: int, skip: int = 0) -> list[Tensor]:
    return [batch[0] for batch in batches.epoch(epoch, skip)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_gives_the_same_rest(workers: int) -> None:
    data: DataLoader[Any] = DataLoader(Augmented(), batch_size=8, shuffle=True, num_workers=workers)
    batches = Batches(data, seed=3)
    whole = drawn(batches, 1)
    torch.randn(4)
    assert equal(drawn(batches, 1, skip=2), whole[2:])
    assert not equal(drawn(batches, 0), whole)
    assert not equal(drawn(Batches(data, seed=4), 1), whole)


def test_numbers_drawn_between_batches_change_nothing() -> None:
    batches = Batches(DataLoader(Augmented(), batch_size=8, shuffle=True))
    whole = drawn(batches, 0)
    disturbed = []
    for batch in batches.epoch(0):
        torch.randn(3)
        disturbed.append(batch[0])
    assert equal(disturbed, whole)


def test_the_loaders_own_generator_repeats_and_is_given_back() -> None:
    generator = torch.Generator().manual_seed(5)
    data = DataLoader(TensorDataset(*points(40)), batch_size=8, shuffle=True, generator=generator)
    before = generator.get_state()
    batches = Batches(data)
    whole = drawn(batches, 2)
    drawn(batches, 0)
    assert equal(drawn(batches, 2), whole)
    batches.close()
    assert torch.equal(generator.get_state(), before)


class Stream(IterableDataset[Tensor]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        return iter(points(self.count)[0])


def test_lengths() -> None:
    assert Batches(loader(points(20))).length == 3
    assert Batches(loader(points(20)), limit=2).length == 2
    assert Batches(loader(points(20)), limit=9).length == 3
    assert Batches(DataLoader(Stream(20), batch_size=8)).length == 3
    assert Batches(DataLoader(Stream(20), batch_size=8), limit=1).length == 1
    assert len(drawn(Batches(loader(points(20)), limit=2), 0)) == 2


@pytest.mark.parametrize("world", [2, 3])
def test_shares_make_the_whole(world: int) -> None:
    inputs, targets = points(21)
    for data in (loader((inputs, targets)), list(loader((inputs, targets), shuffle=False))):
        whole = drawn(Batches(data), 0)
        shares = [drawn(Batches(data, rank=rank, world=world), 0) for rank in range(world)]
        for index, batch in enumerate(whole):
            assert all(torch.equal(shares[rank][index], batch[rank::world]) for rank in range(world))


def test_a_share_is_never_empty() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    for rank, row in enumerate([0, 1, 0, 1]):
        rows, names = share((x, ["a", "b"]), rank, 4)
        assert torch.equal(rows, x[row : row + 1])
        assert names == ["ab"[row]]
    data = DataLoader(TensorDataset(torch.arange(9.0)), batch_size=8)
    assert [len(batch) for batch in drawn(Batches(data, rank=3, world=4), 0)] == [2, 1]


def test_shares_of_nested_batches() -> None:
    x = torch.arange(4)
    batch = ({"ids": x, "scale": torch.tensor(2.0)}, [x, (x,)], ["a", "b", "c", "d"])
    cut = share(batch, 1, 2)
    assert cut[0]["ids"].tolist() == [1, 3]
    assert float(cut[0]["scale"]) == 2.0
    assert cut[1][1][0].tolist() == [1, 3]
    assert cut[2] == ["b", "d"]


def test_a_loader_that_is_shared_out_already_is_taken_as_it_is() -> None:
    dataset = TensorDataset(torch.arange(12.0))
    shares = []
    for rank in range(2):
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=2, rank=rank)
        data = DataLoader(dataset, batch_size=2, sampler=sampler)
        batches = Batches(data, rank=rank, world=2)
        shares.append(torch.cat(drawn(batches, 1)))
        assert not torch.equal(torch.cat(drawn(batches, 0)), shares[-1])
    assert sorted(torch.cat(shares).tolist()) == list(range(12))


class Liar(list[Any]):
    def __len__(self) -> int:
        return 5


def test_data_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(TrainError, match="empty.*a list with no batch"):
        Batches([])
    with pytest.raises(TrainError, match="0 batches of size 8 from 5 samples"):
        Batches(DataLoader(TensorDataset(*points(5)), batch_size=8, drop_last=True))
    with pytest.raises(InputError, match="a TensorDataset, which cannot be iterated.*DataLoader"):
        Batches(TensorDataset(*points()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="only once"):
        Batches(iter([points()]))
    with pytest.raises(TrainError, match="5 batches expected, 1 given"):
        drawn(Batches(Liar([points()])), 0)
