"""Dynamic network surgery against iterative magnitude pruning: LeNet-300-100 on MNIST, plain images, no teacher.

    python -m benchmarks.surgery --data ../shared/data                 # seeds 0, 1, 2; finished ones are kept
    python -m benchmarks.surgery --figure out/surgery.html             # draws what is stored

One network is trained, and pruned in two ways with as many epochs: step by step (Han, Pool, Tran, Dally 2015,
1506.02626: the smallest of all weights together go, the rest is retrained), to a twelfth of the weights, the paper's
rate, and to as many as surgery leaves; and by surgery (Guo, Yao, Chen 2016, 1608.04493), whose masks come and go until
`end` and are trained as they are from there. Epochs, learning rates and `c` were chosen on the validation images, the
last 5,000 training images, which no network is trained on; errors are those on the 10,000 test images.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import secateurs as sec
from benchmarks import lenet
from benchmarks.by_seed import Row, Study
from secateurs.report.figures.theme import BLUE, INK, ORANGE, finish, plotly

TIMES = 20
"""Fewer weights than the dense network: what surgery is to reach at no larger error."""

SETTINGS: dict[str, Any] = {
    "network": "LeNet-300-100", "batch": 100,
    "train": {"lr": 0.1, "momentum": 0.9, "epochs": 10, "schedule": "cosine", "weight_decay": 5e-4},
    "iterative": {"sparsity": 1 - 1 / 12, "rounds": 5, "scope": "global"},
    "retrain": {"lr": 0.05, "momentum": 0.9, "epochs": 6, "schedule": "cosine", "weight_decay": 5e-4},
    "surgery": {"c": {"0": 3.4, "2": 1.0, "4": -0.3}, "gamma": 1e-4, "power": 1.0, "every": 10, "end": "60%"},
    "operate": {"lr": 0.05, "momentum": 0.9, "epochs": 30, "schedule": "cosine", "weight_decay": 5e-4},
}  # fmt: skip

NAMES = {
    "dense": "dense", "iterative": "step by step, to a twelfth", "iterative, as few": "step by step, as few as surgery",
    "surgery": "surgery",
}  # fmt: skip


def seed_of(data: Path, work: Path, seed: int) -> Row:
    """Of one seed: weights left by layer and test error of each network."""
    training, validation, test = lenet.splits(data)
    batches = lenet.Batches(*training, SETTINGS["batch"])
    looks = {
        "validation_error": sec.accuracy(lenet.in_order(*validation)), "error": sec.accuracy(lenet.in_order(*test))
    }  # fmt: skip
    folder = work / f"seed-{seed}"
    found: Row = {"seed": seed}

    def note(name: str, model: Any) -> None:
        kept = {key: int((item != 0).sum()) for key, item in model.named_parameters() if item.dim() > 1}
        total = sum(item.numel() for item in model.parameters() if item.dim() > 1)
        found[name] = {
            "kept": kept, "weights": sum(kept.values()), "times_fewer": round(total / sum(kept.values()), 2),
            **{look: round(1 - evaluate(model), 6) for look, evaluate in looks.items()},
        }  # fmt: skip
        print(f"seed {seed}, {NAMES[name]}: {found[name]}", flush=True)

    dense = sec.finetune(lenet.lenet_300_100(seed), batches, config("train", seed), folder=folder / "dense").model
    note("dense", dense)
    operated = sec.finetune(dense, batches, config("operate", seed, surgery()), folder=folder / "surgery").model
    note("surgery", operated)
    share = 1 - found["surgery"]["weights"] / found["dense"]["weights"]
    for name, sparsity in (("iterative", SETTINGS["iterative"]["sparsity"]), ("iterative, as few", share)):
        pruned = sec.iterative_prune(
            dense, batches, evaluate=looks["validation_error"], retrain=config("retrain", seed), folder=folder / name,
            **{**SETTINGS["iterative"], "sparsity": sparsity},
        )  # fmt: skip
        note(name, pruned.model)
    return found


def surgery() -> sec.Sparsity:
    """What the settings say of the surgery."""
    rule = {name: SETTINGS["surgery"][name] for name in ("c", "gamma", "power")}
    when = {name: SETTINGS["surgery"][name] for name in ("every", "end")}
    return sec.Sparsity(mode="dense-update", update=sec.Surgery(**rule), schedule=sec.Constant(**when))


def config(phase: str, seed: int, sparsity: sec.Sparsity | None = None) -> sec.FineTune:
    """What the settings say of a training."""
    return sec.FineTune(**SETTINGS[phase], sparsity=sparsity, seed=seed, checkpoint_epochs=5, progress=False)


def summary(seeds: list[Row]) -> Row:
    """Means over the seeds, and whether surgery leaves few enough weights at no larger error than the others."""
    found: Row = {"seeds": len(seeds)}
    for name in NAMES:
        errors = [seed[name]["error"] for seed in seeds]
        found[name] = {
            "weights": round(mean(seed[name]["weights"] for seed in seeds)),
            "times_fewer": round(mean(seed[name]["times_fewer"] for seed in seeds), 2),
            "error": round(mean(errors), 6),
            "spread": round(stdev(errors), 6) if len(errors) > 1 else None,
        }
    few = min(seed["surgery"]["times_fewer"] for seed in seeds) >= TIMES
    found["seen"] = {
        f"at least {TIMES} times fewer, at no larger error than {NAMES[name]}": few
        and found["surgery"]["error"] <= found[name]["error"]
        for name in NAMES
        if name != "surgery"
    }
    return found


def figure(found: Row) -> Any:
    """A Plotly figure of `summary`: test error against how many times fewer weights there are."""
    drawn = plotly().Figure()
    colours = {"dense": INK, "iterative": ORANGE, "iterative, as few": ORANGE, "surgery": BLUE}
    for name, label in NAMES.items():
        row = found[name]
        drawn.add_scatter(
            x=[row["times_fewer"]], y=[row["error"]], mode="markers", name=label,
            marker={"size": 12, "color": colours[name], "symbol": "circle-open" if "few" in name else "circle"},
            error_y={"type": "data", "array": [row["spread"] or 0.0], "visible": True},
            hovertemplate="%{x:.1f} times fewer: %{y:.2%}<extra>" + label + "</extra>",
        )  # fmt: skip
    drawn.update_xaxes(title="times fewer weights than the dense network", rangemode="tozero")
    drawn.update_yaxes(title="error on the test images", tickformat=".1%", rangemode="tozero")
    title = f"LeNet-300-100 on MNIST, mean of {found['seeds']} seed" + ("s" if found["seeds"] > 1 else "")
    drawn.update_layout(title=title)
    return finish(drawn, 480, legend=True)


STUDY = Study("surgery", __doc__.splitlines()[0], SETTINGS, seed_of, summary, figure)

if __name__ == "__main__":
    raise SystemExit(STUDY.main())
