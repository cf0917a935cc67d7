"""Accuracy against bits, dense and pruned: pruning does not hurt quantisation, and helps it.

    python -m benchmarks.bits --data ../shared/data                    # seeds 0, 1, 2; finished ones are kept
    python -m benchmarks.bits --figure out/bits.html                   # draws what is stored

Han, Mao, Dally 2016 (1510.00149), section 5 and figures 6 and 7, on LeNet-300-100 and MNIST. One network is trained,
and pruned to a twelfth of its weights step by step. Both share their weights in 1 to 8 bits (k-means from evenly spaced
centroids, as the paper found best), as they are and with the shared weights trained; the same with integers, one scale
for each output. What sharing does to the weights is the sum of squared differences between the weights that are kept
and what they share, right after k-means, by layer and in all: fewer weights have as many shared ones, so it should be
lower. Sizes are of whole `.sec` files. Accuracies are those on the 10,000 test images; nothing is chosen on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor, nn

import secateurs as sec
from benchmarks import lenet
from benchmarks.by_seed import Row, Study
from secateurs.report.figures.theme import BLUE, ORANGE, finish, panels, plotly

SETTINGS: dict[str, Any] = {
    "network": "LeNet-300-100", "batch": 100, "sparsity": 1 - 1 / 12, "rounds": 4, "scope": "global",
    "bits": [1, 2, 3, 4, 5, 6, 8], "start": "linear",
    "train": {"lr": 0.1, "momentum": 0.9, "epochs": 4, "schedule": "cosine", "weight_decay": 5e-4},
    "retrain": {"lr": 0.02, "momentum": 0.9, "epochs": 1, "schedule": "cosine", "weight_decay": 5e-4},
    "share": {"lr": 1e-3, "optimizer": "adam", "epochs": 1, "batches": 150, "schedule": "cosine"},
    "error": "sum of squared differences of kept weights, right after k-means",
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
            shared = sec.share_weights(network, bits, start=SETTINGS["start"], seed=seed)
            rows = {"shared": _row(network, evaluate, folder, {"share": bits}) | {"error": error(network, shared)}}
            trained = sec.finetune(shared, batches, config("share", seed)).model
            rows["trained"] = {"accuracy": evaluate(trained)}
            if bits > 1:  # an integer of one bit has no number but zero
                rows["integers"] = _row(network, evaluate, folder, {"integers": bits})
            found[name]["bits"][str(bits)] = rows
            shown = ", ".join(f"{way} {row['accuracy']:.4f}" for way, row in rows.items())
            print(f"seed {seed}, {name}, {bits} bits: {shown}", flush=True)
    return found


def error(network: nn.Module, shared: sec.SharedModel) -> Row:
    """What k-means does to the kept weights, by layer and in all.

    `absolute` is the sum of squared differences, `relative` that over the sum of squares, `weights` how many are kept.
    """
    again = shared.plain()
    layers = {name: _differs(network.get_parameter(name), again.get_parameter(name)) for name in shared.coded()}
    squares = sum(layer["squares"] for layer in layers.values())
    absolute = sum(layer["absolute"] for layer in layers.values())
    return {"absolute": absolute, "relative": absolute / squares, "layers": layers}


def _differs(weight: Tensor, shared: Tensor) -> Row:
    kept = weight.detach().double()[weight != 0]
    absolute = float((kept - shared.detach().double()[weight != 0]).square().sum())
    squares = float(kept.square().sum())
    return {"weights": len(kept), "squares": squares, "absolute": absolute, "relative": absolute / squares}


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
            "bytes": sizes, "error": _errors([seed[name]["bits"] for seed in seeds]), **ways,
        }  # fmt: skip
    fewest = {name: found[name]["trained"]["fewest"] for name in ("dense", "pruned")}
    enough = None not in fewest.values()
    found["seen"] = {
        "pruning does not hurt: as few bits suffice": enough and fewest["pruned"] <= fewest["dense"],
        "pruning helps: the error is lower with as many bits": _lower(found, "absolute"),
        "also relative to the sum of squares": _lower(found, "relative"),
        "also for each kept weight": _lower(found, "by_weight"),
        "the file at those bits is smaller": enough
        and found["pruned"]["bytes"][str(fewest["pruned"])] < found["dense"]["bytes"][str(fewest["dense"])],
    }
    return found


def _errors(tables: list[Row]) -> Row:
    """Means over the seeds of the errors right after k-means, in all and by layer, by number of bits."""
    found: Row = {"absolute": {"all": {}}, "relative": {"all": {}}, "by_weight": {"all": {}}}
    for bits in tables[0]:
        rows = [table[bits]["shared"]["error"] for table in tables]
        for kind in ("absolute", "relative"):
            found[kind]["all"][bits] = _mean(row[kind] for row in rows)
            for name in rows[0]["layers"]:
                found[kind].setdefault(name, {})[bits] = _mean(row["layers"][name][kind] for row in rows)
        kept = [sum(layer["weights"] for layer in row["layers"].values()) for row in rows]
        found["by_weight"]["all"][bits] = _mean(row["absolute"] / n for row, n in zip(rows, kept, strict=True))
    return found


def _mean(values: Iterable[float]) -> float:
    """To four digits."""
    return float(f"{mean(values):.4g}")


def _lower(found: Row, kind: str) -> bool:
    """The pruned network has the lower error of this kind, over all layers, whatever the number of bits."""
    dense, pruned = (found[name]["error"][kind]["all"] for name in ("dense", "pruned"))
    return all(pruned[bits] < dense[bits] for bits in dense)


def figure(found: Row) -> Any:
    """A Plotly figure of `summary`: accuracy and the error of sharing against bits, dense and pruned."""
    titles = ["accuracy on the test images", "error of sharing, of the sum of squares"]
    drawn = panels(1, 2, titles, column_widths=[0.6, 0.4], horizontal_spacing=0.1)
    go = plotly()
    for name, colour in (("dense", BLUE), ("pruned", ORANGE)):
        for way, dash in (("trained", "solid"), ("shared", "dot"), ("integers", "dash")):
            line = {"color": colour, "dash": dash}
            points = found[name][way]["accuracy"]
            drawn.add_trace(_curve(go, points, f"{name}, {LABELS[way]}", line, ".2%"), row=1, col=1)
        drawn.add_hline(y=found[name]["accuracy"], line={"color": colour, "width": 1}, row=1, col=1)
        points, line = found[name]["error"]["relative"]["all"], {"color": colour, "dash": "dot"}
        drawn.add_trace(_curve(go, points, f"{name}, error", line, ".3%").update(showlegend=False), row=1, col=2)
    drawn.update_xaxes(title="bits for each weight", dtick=1)
    drawn.update_yaxes(tickformat=".1%", range=[0.90, 0.99], row=1, col=1)
    drawn.update_yaxes(type="log", tickformat="~p", dtick=1, row=1, col=2)
    kept = f"{1 - SETTINGS['sparsity']:.0%}"
    title = f"LeNet-300-100 on MNIST, whole and with {kept} of its weights, mean of {found['seeds']} seed"
    title += "s" if found["seeds"] > 1 else ""
    drawn = finish(drawn, 560, legend=True)
    return drawn.update_layout(title=title, margin={"t": 100})


def _curve(go: Any, points: Row, name: str, line: Row, form: str) -> Any:
    return go.Scatter(
        x=[int(bits) for bits in points], y=list(points.values()), mode="lines+markers", name=name, line=line,
        marker={"size": 8}, hovertemplate="%{x} bits: %{y:" + form + "}<extra>" + name + "</extra>",
    )  # fmt: skip


LABELS = {"trained": "shared and trained", "shared": "shared", "integers": "integers"}


STUDY = Study("bits", __doc__.splitlines()[0], SETTINGS, seed_of, summary, figure)

if __name__ == "__main__":
    raise SystemExit(STUDY.main())
