"""Strided kernels: is the lowered product of LeNet-5's second convolution faster, and what of the accuracy?

    python -m benchmarks.strided --data ../shared/data                # seeds 0, 1, 2; finished ones are kept

Anwar, Hwang, Sung: Structured Pruning of Deep Convolutional Neural Networks, 2017. LeNet-5 on the first 55,000 training
images of MNIST; accuracies are those on the 10,000 test images. Two roads begin at the dense network of a seed:

`alone`      of every kernel of conv2 every second tap stays (`strided(*,2)`, the start chosen by input map), then
             retraining;
`combined`   from coarse to fine, each followed by retraining: half of the channels of both convolutions is cut off,
             then half of the kernels of conv2 become zero, then every second tap of those that stay.

Settings were fixed before anything was measured. Times are those of conv2 alone, CPU seconds on one thread, on what
conv2 reads in the network: sides take turns, in an order that changes from round to round, each for about a fiftieth of
a second. A ratio is the time of a side over that of the strided lowered product in the same round; the median and the
quartiles over the rounds are stored. `lowered, whole` is the same product with all of its columns, `PyTorch` its own
convolution with all of its taps, also with channels last in memory. The last road is compared with conv2 of the dense
network, all channels of it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median, quantiles, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from benchmarks import lenet_5, mnist_nets
from benchmarks.by_seed import Study
from secateurs.sparsity import LoweredConv2d

SETTINGS: dict[str, Any] = {
    "dense": lenet_5.DENSE, "pattern": "strided(*,2)", "channels": [10, 25, 500], "kernels": 0.5,
    "retrain": {"optimizer": "adam", "lr": 1e-3, "epochs": 1, "batches": 300, "schedule": "cosine"},
    "batches": [1, 16, 100], "rounds": 30,
}  # fmt: skip
TURN = 0.02
"""Seconds of a turn, about."""

SPEED, POINTS = 1.5, 1.0
"""How many times as fast as the whole product it should be, and how many points of accuracy it may cost."""


def roads(data: Path, work: Path, seed: int) -> dict[str, Any]:
    """Accuracies and times of one seed."""
    bench = lenet_5.Bench(data, work)
    dense = bench.dense(seed)
    found: dict[str, Any] = {"seed": seed, "dense": bench.judge(dense)}
    for name, road in (("alone", alone), ("combined", combined)):
        model, masks, found[name] = road(bench, dense, seed)
        found[name] |= lowered(dense, model, masks["conv2.weight"], bench)
        print(f"seed {seed}, {name}: {found[name]}", flush=True)
    return found


def alone(bench: Any, dense: nn.Module, seed: int) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Every second tap of conv2, retrained: the model, its masks, and accuracies."""
    masks = sec.masks(dense, pattern=SETTINGS["pattern"], only=["conv2"])
    model, row = _masked(bench, dense, masks, seed, f"alone-{seed}")
    return model, masks, {"strided": row}


def combined(bench: Any, dense: nn.Module, seed: int) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Channels, then kernels of those that stay, then taps of those that stay, each retrained."""
    model = mnist_nets.narrowed(dense, SETTINGS["channels"])
    found = {"channels": {"pruned": bench.judge(model)}}
    model = bench.trained(model, SETTINGS["retrain"], seed, f"channels-{seed}")
    found["channels"] |= {"retrained": bench.judge(model), "conv2_weights": model.get_parameter("conv2.weight").numel()}
    masks = sec.masks(model, SETTINGS["kernels"], pattern="kernel", only=["conv2"])
    model, found["kernels"] = _masked(bench, model, masks, seed, f"kernels-{seed}")
    masks = sec.masks(model, pattern=SETTINGS["pattern"], only=["conv2"], within=masks)
    model, found["strided"] = _masked(bench, model, masks, seed, f"strided-{seed}")
    return model, masks, found


def _masked(
    bench: Any, model: nn.Module, masks: dict[str, Tensor], seed: int, place: str
) -> tuple[nn.Module, dict[str, Any]]:
    """Retrained with these masks; accuracy before and after."""
    with sec.sparsify(_copy(model), masks) as held:
        pruned = bench.judge(held.model)
    trained = bench.trained(model, SETTINGS["retrain"], seed, place, masks=masks)
    kept = sum(int(mask.sum()) for mask in masks.values())
    return trained, {"pruned": pruned, "retrained": bench.judge(trained), "conv2_weights": kept}


def lowered(dense: nn.Module, model: nn.Module, mask: Tensor, bench: Any) -> dict[str, Any]:
    """Is the lowered convolution the masked one, in the network as well, and how do the times compare?"""
    dense, model = _copy(dense), _copy(model)
    size = tuple(_read(dense, bench.test[:1]).shape[2:])
    made = LoweredConv2d(model.conv2, mask=mask, size=size)
    seen = _read(model, bench.test[:100])
    with torch.no_grad():
        after = model.conv2(seen)
        apart = float((made(seen) - after).abs().max() / after.abs().max())
    whole = LoweredConv2d(dense.conv2, size=size)
    last = copy.deepcopy(dense.conv2).to(memory_format=torch.channels_last)
    times = {}
    for count in SETTINGS["batches"]:
        seen, images = _read(model, bench.test[:count]), _read(dense, bench.test[:count])
        turns = {"lowered": _turn(made, seen), "lowered, whole": _turn(whole, images)}
        turns["PyTorch"] = _turn(dense.conv2, images)
        turns["PyTorch, channels last"] = _turn(last, images.contiguous(memory_format=torch.channels_last))
        times[str(count)] = interleaved(turns, SETTINGS["rounds"])
    model.conv2 = made
    return {
        "columns": [sum(made.kept), sum(whole.kept)], "apart": apart, "lowered_accuracy": bench.judge(model),
        "times": times,
    }  # fmt: skip


def interleaved(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Microseconds of every side, and how many times as fast as each of the others the first one is."""
    first, *others = turns
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        names = list(turns)[number % len(turns) :] + list(turns)[: number % len(turns)]
        for name in names if number % 2 else reversed(names):
            seconds[name].append(turns[name]())
    found: dict[str, Any] = {"microseconds": {name: round(1e6 * median(each), 1) for name, each in seconds.items()}}
    for name in others:
        low, middle, high = quantiles((a / b for a, b in zip(seconds[name], seconds[first], strict=True)), n=4)
        found[f"over {name}"] = [round(value, 3) for value in (middle, low, high)]
    return found


def _turn(side: nn.Module, images: Tensor) -> Callable[[], float]:
    """What takes some calls of it and gives CPU seconds per call."""

    def take(count: int) -> float:
        with torch.no_grad():
            started = time.process_time()
            for _ in range(count):
                side(images)
            return (time.process_time() - started) / count

    take(3)
    count = max(1, round(TURN / max(take(3), 1e-9)))
    return lambda: take(count)


def _read(model: Any, images: Tensor) -> Tensor:
    """What conv2 reads for these images."""
    with torch.no_grad():
        return F.relu(F.max_pool2d(model.conv1(images), 2)).contiguous()


def _copy(model: nn.Module) -> Any:
    """Another LeNet-5 with the same weights."""
    state = model.state_dict()
    made = mnist_nets.build("lenet_5", mnist_nets.widths_of(state))
    made.load_state_dict(state)
    return made.eval()


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: accuracies, points lost, ratios of the times; and whether what was asked for is seen."""
    found: dict[str, Any] = {"seeds": len(seeds), "dense": _spread([seed["dense"] for seed in seeds], 4)}
    seen: dict[str, bool] = {}
    for road in ("alone", "combined"):
        mine = [seed[road] for seed in seeds]
        steps = [name for name in ("channels", "kernels", "strided") if name in mine[0]]
        row: dict[str, Any] = {
            step: {name: _spread([seed[step][name] for seed in mine], 4) for name in ("pruned", "retrained")}
            for step in steps
        }
        lost = [100 * (seed["dense"] - seed[road]["strided"]["retrained"]) for seed in seeds]
        row |= {"points_lost": _spread(lost, 2), "columns": [seed["columns"] for seed in mine], "ratios": {}}
        for count in mine[0]["times"]:
            names = [name for name in mine[0]["times"][count] if name.startswith("over")]
            ratios = {name: [seed["times"][count][name] for seed in mine] for name in names}
            row["ratios"][count] = {
                name: {"median": round(median(each[0] for each in rows), 2),
                       "quartiles": [round(min(each[1] for each in rows), 2), round(max(each[2] for each in rows), 2)]}
                for name, rows in ratios.items()
            }  # fmt: skip
        found[road] = row
        seen[f"{road}: within a point"] = row["points_lost"]["mean"] <= POINTS
        for name, count in ((name, count) for name in names for count in row["ratios"]):
            fast = row["ratios"][count][name]["median"] >= SPEED
            seen[f"{road}: at least {SPEED} times as fast {name}, images at once: {count}"] = fast
    return {**found, "seen": seen}


def _spread(values: list[float], digits: int) -> dict[str, Any]:
    return {
        "mean": round(mean(values), digits),
        "standard_deviation": round(stdev(values), digits) if len(values) > 1 else None,
    }


STUDY = Study("strided", __doc__.splitlines()[0], SETTINGS, roads, summary)

if __name__ == "__main__":
    raise SystemExit(STUDY.main())
