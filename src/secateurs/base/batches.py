"""The training data in an order that depends on nothing but the seed and the epoch, shared out among processes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from secateurs.base.errors import InputError, TrainError, explain
from secateurs.base.loss import describe
from secateurs.base.seeds import SEEDS, seeded


def derive(seed: int, *purpose: int | str) -> int:
    """A seed for one purpose, such as `derive(seed, "step", 17)`; unrelated to every other purpose's seed."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") % SEEDS


def reseed(seed: int) -> None:
    """Start `random`, `numpy.random` and PyTorch's CPU numbers from `seed`. Callers put `seeded` around it all.

    (`torch.manual_seed` would note a stack trace for every idle accelerator, at every call.)
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def split(batch: Any, place: str) -> tuple[Any, Any]:
    """`(inputs, target)` of a batch. Raises `TrainError` when it is not a pair."""
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return batch[0], batch[1]
    raise TrainError(
        explain(
            "A batch is not a pair (inputs, target)",
            where=place,
            evidence=f"it is {describe(batch)}",
            next_step="yield (inputs, target); several inputs go in a tuple or dict: ((a, b), target)",
        )
    )


def forward(model: nn.Module, inputs: Any) -> Any:
    """The model on one batch's inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (list, tuple)):
        return model(*inputs)
    return model(inputs)


def rows(tree: Any) -> int:
    """Length of the batch dimension: of the first tensor in a nested structure, else of the first list; 1 if none."""
    if isinstance(tree, Tensor):
        return int(tree.shape[0]) if tree.dim() else 1
    items = list(tree.values()) if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else []
    return rows(items[0]) if items else 1


def first_inputs(data: Iterable[Any], device: torch.device, purpose: str, *, seed: int = 0) -> Any:
    """The inputs of the first batch of the first epoch, on the device; the process's random states stay as they are.

    Raises `InputError` and `TrainError` for data that `Batches` refuses, or of which a batch is not a pair.
    """
    batches = Batches(data, limit=1, seed=seed)
    try:
        with seeded(derive(seed, "order", 0)):
            inputs, _ = split(to_device(next(iter(batches.epoch(0))), device), f"batch 0 ({purpose})")
    finally:
        batches.close()
    return inputs


class Batches:
    """A loader, or anything else that can be iterated again and again, as `length` batches per epoch.

    The order comes from `seed` and the epoch, the random numbers that the data itself draws (noise, crops) from the
    position of the batch as well: `epoch(3, skip=10)` gives the same batches whatever ran in between. Drawing a batch
    reseeds the process's random states, which callers protect with `seeded`. Of `world` processes, each gets every
    `world`-th row of every batch; a loader with a `DistributedSampler` is already shared out and taken as it is.

    Workers that outlive an epoch (`persistent_workers=True`) keep random states that this class cannot reach.

    Raises `InputError` when `data` cannot be iterated, or only once, and `TrainError` when it is empty.
    """

    def __init__(
        self, data: Iterable[Any], *, limit: int | None = None, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if not isinstance(data, Iterable):
            raise InputError(
                explain(
                    "The data gives no batches",
                    evidence=f"it is a {type(data).__name__}, which cannot be iterated",
                    next_step="pass a DataLoader (around the dataset, if this is one) or a list of batches",
                )
            )
        if isinstance(data, Iterator):
            raise InputError(
                explain(
                    "The data can be read only once",
                    evidence=f"it is a {type(data).__name__}, which is its own iterator",
                    next_step="pass a DataLoader or a list of batches",
                )
            )
        self.whole = data
        self._seed, self._rank, self._world = seed, rank, world
        self._slice = False
        self._data = self._shared_out(data) if world > 1 else data
        self._generators = _generators(data)
        self._saved = [generator.get_state() for generator in self._generators]
        self.length = self._count(data, limit)
        if self.length == 0:
            raise TrainError(
                explain(
                    "The data is empty",
                    evidence=_sizes(data),
                    next_step="check the dataset's length, and `drop_last` if the dataset is smaller than one batch",
                )
            )

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """Share of this process in batches `skip`, `skip + 1`, ... of an epoch.

        Raises `TrainError` when the data ends before its stated length.
        """
        for number, generator in enumerate(self._generators):
            generator.manual_seed(derive(self._seed, "generator", number, epoch))
        _set_epoch(self._data, epoch)
        reseed(derive(self._seed, "order", epoch))
        iterator = iter(self._data)
        for index in range(self.length):
            reseed(derive(self._seed, "batch", epoch, index))
            batch = next(iterator, _END)
            if batch is _END:
                raise TrainError(
                    explain(
                        "The data ended before its stated length",
                        where=f"epoch {epoch}",
                        evidence=f"{self.length} batches expected, {index} given",
                        next_step="correct `__len__`, or set `batches=` to what every epoch has",
                    )
                )
            if index >= skip:
                yield share(batch, self._rank, self._world) if self._slice else batch

    def close(self) -> None:
        """Give the loader's own generators back the state they had."""
        for generator, state in zip(self._generators, self._saved, strict=True):
            generator.set_state(state)

    def _count(self, data: Iterable[Any], limit: int | None) -> int:
        try:
            length = len(data)  # type: ignore[arg-type]
        except TypeError:
            with seeded(derive(self._seed, "order", 0)):
                length = sum(1 for _ in islice(data, limit))
        return length if limit is None else min(length, limit)

    def _shared_out(self, data: Iterable[Any]) -> Iterable[Any]:
        """The data with each batch cut to this process's rows, before loading where that is possible."""
        if isinstance(data, DataLoader) and isinstance(data.sampler, DistributedSampler):
            return data
        if not isinstance(data, DataLoader) or data.batch_sampler is None:
            self._slice = True
            return data
        return DataLoader(
            data.dataset,
            batch_sampler=_Share(data.batch_sampler, self._rank, self._world),
            num_workers=data.num_workers,
            collate_fn=data.collate_fn,
            pin_memory=data.pin_memory,
            timeout=data.timeout,
            worker_init_fn=data.worker_init_fn,
            multiprocessing_context=data.multiprocessing_context,
            generator=data.generator,
            prefetch_factor=data.prefetch_factor,
            persistent_workers=data.persistent_workers,
        )


def share(tree: Any, rank: int, world: int) -> Any:
    """Every `world`-th row, from `rank` on, of every tensor and list that spans the batch dimension."""
    count = rows(tree)
    chosen = _rows_of(count, rank, world)

    def cut(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item[chosen] if item.dim() and item.shape[0] == count else item
        if isinstance(item, Mapping):
            return {key: cut(value) for key, value in item.items()}
        if isinstance(item, tuple):
            return tuple(cut(value) for value in item)
        if isinstance(item, list):
            nested = any(isinstance(value, (Tensor, list, tuple, Mapping)) for value in item)
            return [cut(value) for value in item] if nested or len(item) != count else [item[i] for i in chosen]
        return item

    return cut(tree)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU if there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(tree: Any, device: torch.device) -> Any:
    """A nested structure with its tensors on `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, Mapping):
        return {key: to_device(item, device) for key, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        moved = [to_device(item, device) for item in tree]
        return type(tree)(*moved) if hasattr(tree, "_fields") else type(tree)(moved)
    return tree


_END = object()


def _rows_of(count: int, rank: int, world: int) -> list[int]:
    """Rows of process `rank`. With fewer rows than processes, the rows left over are given twice."""
    return list(range(rank, count, world)) or [rank % count]


class _Share:
    """A batch sampler that keeps one process's rows of every batch."""

    def __init__(self, sampler: Iterable[list[int]], rank: int, world: int) -> None:
        self._sampler, self._rank, self._world = sampler, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._sampler:
            listed = list(indices)
            yield [listed[row] for row in _rows_of(len(listed), self._rank, self._world)]

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]


def _generators(data: Iterable[Any]) -> list[torch.Generator]:
    """The loader's own generators, each once: the loader's, its sampler's, its batch sampler's sampler's."""
    holders = [data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(item): item for item in found if isinstance(item, torch.Generator)}.values())


def _set_epoch(data: Iterable[Any], epoch: int) -> None:
    """Tell samplers that shuffle by epoch number which epoch it is."""
    for sampler in (getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)):
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def _sizes(data: Iterable[Any]) -> str:
    if not isinstance(data, DataLoader):
        return f"a {type(data).__name__} with no batch"
    try:
        return f"0 batches of size {data.batch_size} from {len(data.dataset)} samples"  # type: ignore[arg-type]
    except TypeError:
        return f"0 batches of size {data.batch_size}"
