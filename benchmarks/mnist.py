"""MNIST: few weights and small files, error for error against the compression papers.

    python -m benchmarks.mnist --data ../shared/data                          # whatever is missing
    python -m benchmarks.mnist --data ../shared/data --only lenet_5-108-augmented-0
    python -m benchmarks.mnist --data ../shared/data --validate --seeds 0     # the same on a validation split

A cell is one run, `NET-KEEP-COLUMN-SEED`: LeNet-300-100 or LeNet-5 with one weight of KEEP left, or `dense`. COLUMN
says how it is trained: `augmented` (distorted copies of the images, and a teacher), or `plain` (neither), which is what
the papers did. Cells follow each other: to 1/56 one goes by way of 1/22, and what a cell needs is made first. Finished
ones are kept in `results/mnist.json` with the settings that made them, models and files in `--work`.

Test images are for the final figures alone. `--validate` trains on the first 50,000 training images and judges by the
other 10,000 (which the teachers, and only they, have seen): for choosing settings and the smallest KEEP. The error that
counts is that of the model that `sec.unpack` reads from the file; its size counts every byte, against four bytes for
each parameter of the original.

Papers: Han et al. 2015 (arXiv 1506.02626) and 2016 (1510.00149), Guo et al. 2016 (1608.04493), Ye et al. 2019
(1903.09769, progressive ADMM).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateurs as sec
from benchmarks import mnist_cells as plan
from benchmarks import mnist_data
from benchmarks.mnist_compress import shared, sparsified
from benchmarks.mnist_nets import build, cleaned, narrowed, weight_count, widths_of
from benchmarks.mnist_train import Feed, answers, error, train
from secateurs.base.files import write_text
from secateurs.base.seeds import seeded
from secateurs.device.environment import Environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "mnist.json"
HELD_OUT = 10_000
POOL_SEED = 1

NOTES = [
    "Settings were chosen on the last 10,000 training images, training on the first 50,000 without a teacher, seed 0:"
    " LeNet-300-100 from a dense one of 2.4 % (4 epochs) to 1/56 in 8 epochs of batch 256, rate 3e-3.",
    "Dense-update masks, strong distortions (turns of 10 degrees): 20.8 % by |w|, 4.4 % by |w| v^(1/2). By |w| alone"
    " the last layer keeps 59 of its 1,000 weights. Perhaps, as Adam moves masked weights as far as the others, masks"
    " do not settle in so few steps.",
    "Hard masks, the distortions of now: 2.63 % by |w|, 2.26 % by |w| v^(1/4), which was taken, 2.34 % by |w| v^(1/2).",
    "The widths to which LeNet-5 is cut first (8, 24, 96) were set for speed, not compared with others.",
]


class Bench:
    """Data, dense networks and teachers, made when they are first needed."""

    def __init__(self, data: Path, work: Path, validate: bool) -> None:
        self.data, self.root, self.validate = data, work, validate
        self.work = work / ("validate" if validate else "test")
        self.work.mkdir(parents=True, exist_ok=True)
        images, labels = mnist_data.read(data, "train")
        used = len(labels) - HELD_OUT if validate else len(labels)
        self.images, self.labels = images[:used], labels[:used]
        self.judge = (images[used:], labels[used:]) if validate else mnist_data.read(data, "test")
        self._feeds: dict[tuple[str, bool], Feed] = {}

    def run(self, cell: str) -> dict[str, Any]:
        """The figures of a cell, after making what it begins with."""
        net, keep, column, seed = parse(cell)
        model = self.model(net, keep, column, seed)
        found = {
            "settings": plan.settings(net, column, keep), "epochs": plan.epochs(net, column, keep),
            "error": error(model, *self.judge),
        }  # fmt: skip
        if keep is None:
            return found
        path = self.work / f"{cell}.sec"
        small, coded = shared(model, plan.stage(net, column, keep).sharing, self.feed(column, taught=True), seed=seed)
        ledger = sec.pack(small, path, coded=coded)
        unpacked = sec.unpack(path, lambda: build(net, widths_of(small.state_dict())))
        assert isinstance(unpacked, nn.Module)
        original = build(net)
        kept = count_nonzero(unpacked)
        return found | {
            "kept": kept, "one_in": round(weight_count(original) / kept, 2), "widths": widths_of(small.state_dict()),
            "file_error": error(unpacked, *self.judge), "file_bytes": ledger.bytes,
            "times": round(4 * sum(item.numel() for item in original.parameters()) / ledger.bytes, 1),
            "parts": {part: size for part, size in ledger.parts.items() if size},
        }  # fmt: skip

    def model(self, net: str, keep: int | None, column: str, seed: int) -> nn.Module:
        """The network as it is before its weights are shared; from the work folder, if it was there before."""
        digest = hashlib.sha256(json.dumps(plan.settings(net, column, keep), sort_keys=True).encode()).hexdigest()[:10]
        path = self.work / f"{net}-{keep or 'dense'}-{column}-{seed}-{digest}.safetensors"
        if path.exists():
            state = load_file(path)
            model = build(net, widths_of(state))
            model.load_state_dict(state)
            return model
        print(f"== {path.stem}", flush=True)
        model = self._trained(net, keep, column, seed)
        save_file({name: item.contiguous() for name, item in model.state_dict().items()}, path)
        return model

    def _trained(self, net: str, keep: int | None, column: str, seed: int) -> nn.Module:
        if keep is None:
            with seeded(seed):
                model = build(net)
            return train(model, self.feed(column, taught=False), plan.DENSE[net], seed=seed, on_epoch=_say)
        stage = plan.stage(net, column, keep)
        model = self.model(net, stage.start, column, seed)
        if stage.widths is not None:
            model = narrowed(model, stage.widths)
        feed = self.feed(column, taught=stage.sparse.training.alpha > 0)
        sparsified(model, weight_count(build(net)) // keep, stage.sparse, feed, seed=seed, on_epoch=_say)
        return cleaned(model)

    def feed(self, column: str, taught: bool) -> Feed:
        """The images of a column, and what the teachers say of each of them, if it is to be `taught`."""
        taught = taught and column == "augmented"
        if (column, taught) not in self._feeds:
            pool = self.images.unsqueeze(0) if column == "plain" else self._pool()
            pool = pool[: plan.TAUGHT] if taught else pool
            self._feeds[column, taught] = Feed(pool, self.labels, self._said(pool) if taught else None)
        return self._feeds[column, taught]

    def _pool(self) -> Tensor:
        if self.validate:
            return (
                Bench(self.data, self.root, validate=False).feed("augmented", taught=False).pool[:, : len(self.labels)]
            )
        path = self.work / f"pool-{plan.COPIES}.npy"
        if not path.exists():
            np.save(path, mnist_data.pool(self.images, plan.COPIES, POOL_SEED).numpy())
        return torch.from_numpy(np.load(path))

    def _said(self, pool: Tensor) -> Tensor:
        """The teachers' mean logits [copies, N, 10] for every image of the pool; the same in validation, of fewer."""
        if self.validate:
            whole = Bench(self.data, self.root, validate=False).feed("augmented", taught=True)
            assert whole.teacher is not None
            return whole.teacher[:, : pool.shape[1]]
        wanted = [plan.settings(net, "augmented", None) for net, _ in plan.TEACHERS]
        digest = hashlib.sha256(json.dumps([wanted, plan.TEACHERS, len(pool)]).encode()).hexdigest()[:10]
        path = self.work / f"taught-{digest}.npy"
        if not path.exists():
            teachers = [self.model(net, None, "augmented", seed) for net, seed in plan.TEACHERS]
            said = [torch.stack([answers(model, copy) for copy in pool]) for model in teachers]
            np.save(path, (sum(said) / len(said)).numpy().astype(np.float16))
        return torch.from_numpy(np.load(path))


def count_nonzero(model: nn.Module) -> int:
    """Weights, without biases, that are not zero."""
    return sum(int(torch.count_nonzero(item)) for item in model.parameters() if item.dim() > 1)


def parse(cell: str) -> tuple[str, int | None, str, int]:
    """Network, one weight of how many (None: all), column, seed."""
    net, keep, column, seed = cell.rsplit("-", 3)
    return net, None if keep == "dense" else int(keep), column, int(seed)


def cells(seeds: list[int]) -> list[str]:
    """All of them, in the order in which they are made."""
    return [
        f"{net}-{keep}-{column}-{seed}"
        for column in plan.COLUMNS
        for net in plan.DENSE
        for seed in seeds
        for keep in ("dense", *(stage.keep for stage in plan.STAGES[net, column] if stage.keep not in plan.TOO_FEW))
    ]


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Per network, share and column: means over the seeds, the worst file, and whether the bar is met."""
    rows: dict[str, Any] = {}
    for kind in dict.fromkeys(name.rsplit("-", 1)[0] for name in found):
        net, keep, column, _ = parse(f"{kind}-0")
        if keep is None:
            continue
        mine = {name: cell for name, cell in found.items() if name.rsplit("-", 1)[0] == kind}
        twins = [found.get(f"{net}-dense-{name.split('-', 2)[-1]}") for name in mine]
        errors = [cell["file_error"] for cell in mine.values()]
        row: dict[str, Any] = {
            "trained_on": plan.COLUMNS[column],
            "epochs": next(iter(mine.values()))["epochs"],
            "dense_error": round(mean(twin["error"] for twin in twins if twin), 3) if any(twins) else None,
            "seeds": len(mine),
            "one_in": min(cell["one_in"] for cell in mine.values()),
            "error": round(mean(errors), 3),
            "spread": round(stdev(errors), 3) if len(errors) > 1 else None,
            "error_before_sharing": round(mean(cell["error"] for cell in mine.values()), 3),
            "times_smaller": min(cell["times"] for cell in mine.values()),
        }
        bar = plan.BARS[net, keep]
        row["bar"] = asdict(bar)
        row["met"] = (
            len(mine) >= 3 and row["one_in"] >= keep and row["error"] <= bar.error and row["times_smaller"] >= bar.times
        )
        rows[kind] = row
    return rows


def table(rows: dict[str, Any]) -> Table:
    """One line per network, share and column."""
    found = Table("cell", "seeds", "epochs", "dense", "weights", "error", "of at most", "file", "of at least", box=None)
    for kind, row in rows.items():
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2f}"
        found.add_row(
            kind, str(row["seeds"]), str(row["epochs"]), f"{row['dense_error']} %", f"1/{row['one_in']:.0f}",
            f"{row['error']:.2f}{spread} %", f"{row['bar']['error']} %", f"{row['times_smaller']:.0f}x",
            f"{row['bar']['times']:.0f}x",
        )  # fmt: skip
    return found


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / "mnist").is_dir():
        print(f"There is no MNIST at {arguments.data}: give the folder with --data.")
        return 2
    torch.set_num_threads(1)
    part = "validation" if arguments.validate else "cells"
    stored = json.loads(OUT.read_text()) if OUT.exists() else {}
    found = {name: cell for name, cell in stored.get(part, {}).items() if _current(name, cell)}
    bench = Bench(arguments.data, arguments.work, arguments.validate)
    for cell in arguments.only or cells(arguments.seeds):
        if cell not in found:
            found[cell] = bench.run(cell)
            print(cell, {name: value for name, value in found[cell].items() if name != "settings"}, flush=True)
            _write(stored | {part: found})
    Console().print(table(summary(found)))
    return 0


def _current(name: str, cell: dict[str, Any]) -> bool:
    """Was it made with the settings of now?"""
    net, keep, column, _ = parse(name)
    wanted = json.loads(json.dumps(plan.settings(net, column, keep)))
    return bool(cell["settings"] == wanted)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with mnist/")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="NET-KEEP-COLUMN-SEED")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--validate", action="store_true", help="judge by the last 10,000 training images, held out")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "mnist", help="models and files")
    return parser.parse_args()


def _write(found: dict[str, Any]) -> None:
    environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
    parts = {part: found[part] for part in ("cells", "validation") if part in found}
    whole = {"notes": NOTES, "summary": summary(found.get("cells", {})), **parts, "environment": environment}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_text(OUT, json.dumps(whole, indent=1) + "\n")


def _say(epoch: int, loss: float) -> None:
    print(f"  epoch {epoch + 1}: loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
