"""Accuracy against bits, dense and pruned: pruning does not hurt quantisation, and helps the file.

    python -m benchmarks.bits --data ../shared/data                    # seeds 0, 1, 2; finished ones are kept
    python -m benchmarks.bits --figure out/bits.html                   # draws what is stored

Han, Mao, Dally 2016 (1510.00149), section 5 and figures 6 and 7, on LeNet-300-100 and MNIST. One network is trained,
and pruned to a twelfth of its weights step by step. Both share their weights in 1 to 8 bits (k-means from evenly spaced
centroids, as the paper found best), as they are and with the shared weights trained; the same with integers, one scale
for each output. Sizes are of whole `.sec` files. Accuracies are those on the 10,000 test images; nothing is chosen on
them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import nn

import secateurs as sec
from benchmarks import lenet
from benchmarks.by_seed import Row, Study
from secateurs.report.figures.theme import BLUE, ORANGE, finish, plotly

SETTINGS: dict[str, Any] = {
    "network": "LeNet-300-100", "batch": 100, "sparsity": 1 - 1 / 12, "rounds": 4, "scope": "global",
    "bits": [1, 2, 3, 4, 5, 6, 8], "start": "linear",
    "train": {"lr": 0.1, "momentum": 0.9, "epochs": 4, "schedule": "cosine", "weight_decay": 5e-4},
    "retrain": {"lr": 0.02, "momentum": 0.9, "epochs": 1, "schedule": "cosine", "weight_decay": 5e-4},
    "share": {"lr": 1e-3, "optimizer": "adam", "epochs": 1, "batches": 150, "schedule": "cosine"},
}  # fmt: skip
LOSSLESS = 0.002
"""A number of bits is enough when accuracy is within this much of the network's own."""


def seed_of(data: Path, work: Path, seed: int) -> Row:
    """Of one seed: accuracies and file sizes of both networks, by number of bits."""
    training, _, test = lenet.splits(data)
    batches, evaluate = lenet.Batches(*training, SETTINGS["batch"]), sec.accuracy(lenet.in_order(*test))
    folder = work / f"seed-{seed}"
    dense = sec.finetune(lenet.lenet_300_100(seed), batches, config("train", seed), folder=folder / "dense").model
    pruned = sec.iterative_prune(
        dense, batches, sparsity=SETTINGS["sparsity"], rounds=SETTINGS["rounds"], scope=SETTINGS["scope"],
        evaluate=evaluate, retrain=config("retrain", seed), folder=folder / "pruned",
    ).model  # fmt: skip
    found: Row = {"seed": seed}
    for name, network in (("dense", dense), ("pruned", pruned)):
        found[name] = {"float": _row(network, evaluate, folder, {}), "bits": {}}
        for bits in SETTINGS["bits"]:
            rows = {"shared": _row(network, evaluate, folder, {"share": bits})}
            shared = sec.share_weights(network, bits, start=SETTINGS["start"], seed=seed)
            trained = sec.finetune(shared, batches, config("share", seed)).model
            rows["trained"] = {"accuracy": evaluate(trained)}
            if bits > 1:  # an integer of one bit has no number but zero
                rows["integers"] = _row(network, evaluate, folder, {"integers": bits})
            found[name]["bits"][str(bits)] = rows
            shown = ", ".join(f"{way} {row['accuracy']:.4f}" for way, row in rows.items())
            print(f"seed {seed}, {name}, {bits} bits: {shown}", flush=True)
    return found


def _row(network: nn.Module, evaluate: Callable[[nn.Module], float], folder: Path, how: dict[str, Any]) -> Row:
    """What the network is worth out of its file, and the bytes of that."""
    path = folder / "packed.sec"
    ledger = sec.pack(network, path, **how)
    again = sec.unpack(path, build=lenet.lenet_300_100)
    return {"accuracy": evaluate(again), "bytes": ledger.bytes}


def config(phase: str, seed: int) -> sec.FineTune:
    """What the settings say of a phase."""
    return sec.FineTune(**SETTINGS[phase], seed=seed, checkpoint_epochs=100, progress=False)


def summary(seeds: list[Row]) -> Row:
    """Means over the seeds; the fewest bits that lose nothing, dense and pruned; the file of each at those bits."""
    found: Row = {"seeds": len(seeds), "lossless": LOSSLESS}
    for name in ("dense", "pruned"):
        own = [seed[name]["float"]["accuracy"] for seed in seeds]
        ways: dict[str, Row] = {}
        for way in ("shared", "trained", "integers"):
            table = {
                bits: [seed[name]["bits"][bits][way]["accuracy"] for seed in seeds]
                for bits in seeds[0][name]["bits"]
                if way in seeds[0][name]["bits"][bits]
            }
            ways[way] = {
                "accuracy": {bits: round(mean(values), 5) for bits, values in table.items()},
                "spread": {
                    bits: round(stdev(values), 5) if len(values) > 1 else None for bits, values in table.items()
                },
                "fewest": min(
                    (int(bits) for bits, values in table.items() if mean(values) >= mean(own) - LOSSLESS), default=None
                ),
            }
        sizes = {
            bits: round(mean(seed[name]["bits"][bits]["shared"]["bytes"] for seed in seeds))
            for bits in seeds[0][name]["bits"]
        }
        found[name] = {
            "accuracy": round(mean(own), 5), "float_bytes": round(mean(seed[name]["float"]["bytes"] for seed in seeds)),
            "bytes": sizes, **ways,
        }  # fmt: skip
    fewest = {name: found[name]["trained"]["fewest"] for name in ("dense", "pruned")}
    enough = None not in fewest.values()
    found["seen"] = {
        "pruning does not hurt: as few bits suffice": enough and fewest["pruned"] <= fewest["dense"],
        "pruning helps: the file at those bits is smaller": enough
        and found["pruned"]["bytes"][str(fewest["pruned"])] < found["dense"]["bytes"][str(fewest["dense"])],
    }
    return found


def figure(found: Row) -> Any:
    """A Plotly figure of `summary`: accuracy against bits, dense and pruned."""
    drawn = plotly().Figure()
    for name, colour in (("dense", BLUE), ("pruned", ORANGE)):
        for way, dash in (("trained", "solid"), ("shared", "dot"), ("integers", "dash")):
            points = found[name][way]["accuracy"]
            drawn.add_scatter(
                x=[int(bits) for bits in points], y=list(points.values()), mode="lines+markers",
                name=f"{name}, {LABELS[way]}", line={"color": colour, "dash": dash}, marker={"size": 8},
                hovertemplate="%{x} bits: %{y:.2%}<extra>" + f"{name}, {LABELS[way]}" + "</extra>",
            )  # fmt: skip
        drawn.add_hline(y=found[name]["accuracy"], line={"color": colour, "width": 1})
    drawn.update_xaxes(title="bits for each weight", dtick=1)
    drawn.update_yaxes(title="accuracy on the test images", tickformat=".1%", range=[0.90, 0.99])
    kept = f"{1 - SETTINGS['sparsity']:.0%}"
    title = f"LeNet-300-100 on MNIST, whole and with {kept} of its weights, mean of {found['seeds']} seed"
    title += "s" if found["seeds"] > 1 else ""
    drawn.update_layout(title=title)
    return finish(drawn, 560, legend=True)


LABELS = {"trained": "shared and trained", "shared": "shared", "integers": "integers"}


STUDY = Study("bits", __doc__.splitlines()[0], SETTINGS, seed_of, summary, figure)

if __name__ == "__main__":
    raise SystemExit(STUDY.main())
