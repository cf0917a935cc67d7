"""Gradual pruning (AGP) against one-shot pruning: the same networks, epochs and learning rates, held zeros in both.

    python -m benchmarks.agp --data ../shared/data                # seeds 0, 1, 2; finished cells are kept
    python -m benchmarks.agp --data ../shared/data --only lenet_5-90-2-0

Zhu, Gupta: To prune, or not to prune, 2017 (1710.01878). A network is trained once more; its smallest weights become
zero either all before the first step, or step by step with the paper's cubic schedule over the first half of the steps,
masks computed anew every ten. Everything else is the same: seed, order of the data, cosine from the same learning rate.
Every layer loses the same share. A cell is `NETWORK-PERCENT-EPOCHS-SEED` and has both.

`lenet_5`    on MNIST (`benchmarks.lenet_5`), all layers, epochs of 300 batches, accuracy on the 10,000 test images.
`resnet20`   on CIFAR-10, the published weights, all layers but the first and the last; epochs of 10,000 training
             images, moved and mirrored; accuracy on the 1,000 lossless test images (standard error about 0.9 points),
             and beside it on 2,000 training images that the published weights have seen and this training has not.

Nothing was tuned. Two epochs came first; six, at 90 %, were added when seed 0 had shown little between the two ways.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.table import Table
from torch import nn

import secateurs as sec
from benchmarks import cifar, lenet, lenet_5
from benchmarks.by_cell import Study
from benchmarks.sparse_cifar_cells import Images

SETTINGS: dict[str, Any] = {
    "gradual": {"begin": 0, "end": "50%", "every": 10},
    "lenet_5": {
        "dense": lenet_5.DENSE, "exclude": [],
        "train": {"optimizer": "adam", "lr": 1e-3, "batches": 300, "schedule": "cosine"},
    },
    "resnet20": {
        "images": 10_000, "batch": 100, "exclude": ["conv1", "linear"], "validation_images": 2000,
        "train": {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine"},
    },
}  # fmt: skip
RUNS = [
    ("lenet_5", 90, 2), ("lenet_5", 95, 2), ("resnet20", 90, 2), ("resnet20", 95, 2), ("lenet_5", 90, 6),
    ("resnet20", 90, 6),
]  # fmt: skip
"""Networks, per cent of the weights, and epochs."""

WAYS: dict[str, sec.Schedule] = {"one-shot": sec.OneShot(), "AGP": sec.Gradual(**SETTINGS["gradual"])}

Judge = Callable[[nn.Module], dict[str, float]]
Train = Callable[[sec.Sparsity, str], nn.Module]


def cells(seeds: list[int]) -> list[str]:
    return [f"{network}-{percent}-{epochs}-{seed}" for network, percent, epochs in RUNS for seed in seeds]


def used(cell: str) -> dict[str, Any]:
    """What decides a cell, beside its name."""
    network, _, _, _ = cell.split("-")
    return {name: SETTINGS[name] for name in ("gradual", network)}


def run(data: Path, work: Path, cell: str) -> dict[str, Any]:
    """Accuracies of the dense network, and of both ways."""
    network, percent, epochs, seed = cell.split("-")
    prepare = {"lenet_5": on_mnist, "resnet20": on_cifar}[network]
    dense, train, judge = prepare(data, work, int(epochs), int(seed))
    exclude = SETTINGS[network]["exclude"]
    found: dict[str, Any] = {"dense": judge(dense)}
    for way, schedule in WAYS.items():
        sparsity = sec.Sparsity(int(percent) / 100, schedule=schedule, exclude=exclude)
        model = train(sparsity, f"{cell}-{way}")
        found[way] = {**judge(model), "zeros": zeros(model, exclude)}
        print(f"  {way}: {found[way]}", flush=True)
    return found


def on_mnist(data: Path, work: Path, epochs: int, seed: int) -> tuple[nn.Module, Train, Judge]:
    bench = lenet_5.Bench(data, work)
    dense, wanted = bench.dense(seed), {**SETTINGS["lenet_5"]["train"], "epochs": epochs}
    return (
        dense,
        lambda sparsity, place: bench.trained(dense, wanted, seed, place, sparsity=sparsity),
        lambda model: {"test": bench.judge(model)},
    )


def on_cifar(data: Path, work: Path, epochs: int, seed: int) -> tuple[nn.Module, Train, Judge]:
    wanted = SETTINGS["resnet20"]
    dense = cifar.pretrained(data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = cifar.read_batches(data, [1])
    pool = Images(images[: wanted["images"]], labels[: wanted["images"]], wanted["batch"])
    images, labels = cifar.read_batches(data, [5])
    count = wanted["validation_images"]
    judges = {
        "test": sec.accuracy(cifar.held_out(data)),
        "validation": sec.accuracy(lenet.in_order(cifar.normalised(images[:count]), labels[:count], 100)),
    }

    def train(sparsity: sec.Sparsity, place: str) -> nn.Module:
        config = sec.FineTune(
            **wanted["train"], epochs=epochs, sparsity=sparsity, seed=seed, checkpoint_steps=50, progress=False
        )
        return sec.finetune(cifar_in_training(dense), pool, config, folder=work / place).model.eval()

    return dense, train, lambda model: {name: judge(model) for name, judge in judges.items()}


def cifar_in_training(dense: nn.Module) -> nn.Module:
    """A copy with batch norms that follow the batches."""
    model = cifar.ResNet(20).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.load_state_dict(dense.state_dict())
    return model.train()


def zeros(model: nn.Module, exclude: list[str]) -> float:
    """The share of zeros in the layers that were pruned."""
    weights = [item.tensor for item in sec.sparsity.layer_weights(model, exclude=exclude).values()]
    return round(sum(int((item == 0).sum()) for item in weights) / sum(item.numel() for item in weights), 5)


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, what AGP gains over one-shot in points, and whether it is at least as accurate."""
    found: dict[str, Any] = {}
    for network, percent, epochs in RUNS:
        mine = [row for name, row in sorted(rows.items()) if name.startswith(f"{network}-{percent}-{epochs}-")]
        if not mine:
            continue
        judged = list(mine[0]["dense"])
        row: dict[str, Any] = {"seeds": len(mine)}
        for name in ("dense", *WAYS):
            row[name] = {what: _spread([one[name][what] for one in mine], 5) for what in judged}
        gains = {what: [100 * (one["AGP"][what] - one["one-shot"][what]) for one in mine] for what in judged}
        row["points gained by AGP"] = {what: _spread(values, 3) for what, values in gains.items()}
        row["at least as accurate"] = mean(gains["test"]) >= 0
        found[f"{network}, {percent} %, {epochs} epochs"] = row
    return found


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """Test accuracies."""
    drawn = Table("network, zeros, training", "seeds", "dense", *WAYS, "points gained by AGP", box=None)
    for name, row in summary(rows).items():
        shares = [f"{row[part]['test']['mean']:.2%}" for part in ("dense", *WAYS)]
        gain = row["points gained by AGP"]["test"]
        spread = "" if gain["standard_deviation"] is None else f" ± {gain['standard_deviation']:.2f}"
        drawn.add_row(name, str(row["seeds"]), *shares, f"{gain['mean']:.2f}{spread}")
    return drawn


def _spread(values: list[float], digits: int) -> dict[str, Any]:
    return {
        "mean": round(mean(values), digits),
        "standard_deviation": round(stdev(values), digits) if len(values) > 1 else None,
    }


STUDY = Study(
    "agp", __doc__.splitlines()[0], ("mnist", "cifar10", "cifar10_models"), cells, used, run, summary, table
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(STUDY.main())
