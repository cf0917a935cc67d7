"""Han's curves: accuracy against the share of weights that are pruned, LeNet-300-100 on MNIST.

    python -m benchmarks.han --data ../shared/data                    # seeds 0, 1, 2; finished ones are kept
    python -m benchmarks.han --figure out/han.html                    # draws what is stored
    python -m benchmarks.han --data ../shared/data --figures          # all pictures, into out/han/figures

Five curves, as in Han, Pool, Tran, Dally 2015 (1506.02626): a network trained with L1 or with L2, pruned once, with and
without retraining (by the same penalty, at a tenth of the learning rate), and, for L2, pruned and retrained
step by step along the same shares, each step with the retraining of one point. The smallest weights of all layers
together go; biases stay. Accuracies are those on the 10,000 test images; the shares are fixed beforehand, so nothing is
chosen on them. Training images are the first 55,000. The strength of L1 is the greatest of 1e-5, 3e-5, 5e-5, 1e-4,
2e-4, 3e-4 and 1e-3 that cost the dense network nothing on the 5,000 others, on seed 0.

The other pictures (`benchmarks.han_figures`) are of one seed: the sensitivities of the layers of LeNet-300-100 and of
LeNet-5, which stay in the result, the pixels that the first layer still looks at, and weights before and after.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import secateurs as sec
from benchmarks import han_figures, lenet
from benchmarks.by_seed import Study
from secateurs.device.environment import Environment
from secateurs.report.figures.gallery import Picture
from secateurs.report.figures.theme import BLUE, GREY, INK, ORANGE, finish, plotly

SETTINGS: dict[str, Any] = {
    "network": "LeNet-300-100", "batch": 100, "sparsity": 0.98, "rounds": 6, "scope": "global",
    "train": {"lr": 0.1, "momentum": 0.9, "epochs": 2, "schedule": "cosine"},
    "retrain": {"lr": 0.01, "momentum": 0.9, "epochs": 1, "batches": 150, "schedule": "cosine"},
    "L1": 1e-4, "L2": 5e-4,
}  # fmt: skip
"""Round r of the steps ends at `1 - (1 - sparsity)^(r / rounds)`: these are the shares of all curves."""

SCANNED: dict[str, Any] = {
    **han_figures.SETTINGS, "LeNet-300-100": {**SETTINGS["train"], "weight_decay": SETTINGS["L2"]},
}  # fmt: skip
"""What decides the sensitivities."""

CURVES = {
    "L2, step by step": (INK, "solid"), "L2, retrained": (BLUE, "solid"), "L1, retrained": (ORANGE, "solid"),
    "L1, not retrained": (ORANGE, "dot"), "L2, not retrained": (BLUE, "dot"),
}  # fmt: skip


def shares() -> list[float]:
    """The shares of weights that go."""
    rounds = SETTINGS["rounds"]
    return [1 - (1 - SETTINGS["sparsity"]) ** (number / rounds) for number in range(1, rounds + 1)]


def curves(data: Path, work: Path, seed: int) -> dict[str, Any]:
    """Test accuracies of one seed: of the dense networks, and of each curve at each share."""
    training, _, test = lenet.splits(data)
    batches, evaluate = lenet.Batches(*training, SETTINGS["batch"]), sec.accuracy(lenet.in_order(*test))
    found: dict[str, Any] = {"seed": seed, "dense": {}, "curves": {}}
    for kind in ("L1", "L2"):
        folder = work / f"seed-{seed}-{kind}"
        dense = sec.finetune(lenet.lenet_300_100(seed), batches, config("train", kind, seed), folder=folder / "dense")
        found["dense"][kind] = evaluate(dense.model)
        common = {"evaluate": evaluate, "retrain": config("retrain", kind, seed), "scope": SETTINGS["scope"]}
        before, after = [], []
        for share in shares():
            once = sec.iterative_prune(
                dense.model, batches, sparsity=share, rounds=1, folder=folder / f"{share:.4f}", **common
            )
            before.append(once.rounds[0].metric_pruned)
            after.append(once.rounds[0].metric)
            print(f"seed {seed}, {kind}, {share:.1%}: {before[-1]:.4f}, retrained {after[-1]:.4f}", flush=True)
        found["curves"] |= {f"{kind}, not retrained": before, f"{kind}, retrained": after}
    steps = sec.iterative_prune(
        dense.model, batches, sparsity=SETTINGS["sparsity"], rounds=SETTINGS["rounds"], folder=folder / "steps",
        on_round=lambda row: print(f"seed {seed}, step by step: {row}", flush=True), **common,
    )  # fmt: skip
    found["curves"]["L2, step by step"] = [row.metric for row in steps.rounds]
    return found


def config(phase: str, kind: str, seed: int) -> sec.FineTune:
    """What the settings say of a phase, with one of the two penalties."""
    penalty = {"penalty": sec.Penalty(kind="l1", strength=SETTINGS["L1"])} if kind == "L1" else {}
    decay = {"weight_decay": SETTINGS["L2"]} if kind == "L2" else {}
    return sec.FineTune(**SETTINGS[phase], **penalty, **decay, seed=seed, checkpoint_epochs=100, progress=False)


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and whether what the paper says is seen, over all shares together.

    A curve loses against the dense network that was trained with its own penalty, as in the paper's figure.
    """
    means = {
        name: [round(mean(seed["curves"][name][point] for seed in seeds), 5) for point in range(len(shares()))]
        for name in CURVES
    }
    spread = {
        name: [
            round(stdev(seed["curves"][name][point] for seed in seeds), 5) if len(seeds) > 1 else None
            for point in range(len(shares()))
        ]
        for name in CURVES
    }
    dense = {kind: round(mean(seed["dense"][kind] for seed in seeds), 5) for kind in ("L1", "L2")}

    def lost(name: str) -> float:
        return sum(dense[name[:2]] - value for value in means[name])

    return {
        "seeds": len(seeds), "pruned": [round(share, 4) for share in shares()], "dense": dense, "mean": means,
        "standard_deviation": spread,
        "seen": {
            "without retraining L1 loses less than L2": lost("L1, not retrained") < lost("L2, not retrained"),
            "retrained, L2 loses less than L1": lost("L2, retrained") < lost("L1, retrained"),
            "retrained, L2 is more accurate than L1": sum(means["L2, retrained"]) > sum(means["L1, retrained"]),
            "step by step loses least": min(means, key=lost) == "L2, step by step",
        },
    }  # fmt: skip


def figure(found: dict[str, Any]) -> Any:
    """A Plotly figure of `summary`: points of accuracy lost against the share of weights pruned."""
    go = plotly()
    drawn = go.Figure()
    for name, (colour, dash) in CURVES.items():
        lost = [100 * (value - found["dense"][name[:2]]) for value in found["mean"][name]]
        drawn.add_scatter(
            x=found["pruned"], y=lost, mode="lines+markers", name=name, line={"color": colour, "dash": dash},
            marker={"size": 8}, hovertemplate="%{x:.1%} pruned: %{y:.2f} points<extra>" + name + "</extra>",
        )  # fmt: skip
    drawn.add_hline(y=0, line={"color": GREY, "width": 1})
    drawn.update_xaxes(title="weights pruned", tickformat=".0%", range=[0.45, 1.0])
    drawn.update_yaxes(title="accuracy against the dense network, points", range=[-6, 0.6])
    title = f"LeNet-300-100 on MNIST, mean of {found['seeds']} seed" + ("s" if found["seeds"] > 1 else "")
    drawn.update_layout(title=title)
    return finish(drawn, 560, legend=True)


def pictures(data: Path, work: Path, stored: dict[str, Any]) -> tuple[dict[str, Any], list[Picture]]:
    """The sensitivities, scanned unless they are stored with the same settings, and every picture."""
    moments = before_and_after(data, work)
    found = stored.get("sensitivity", {})
    if found.get("settings") != SCANNED:
        environment = asdict(Environment.now(f"PyTorch {torch.__version__}, 1 thread"))
        found = {"settings": SCANNED, **han_figures.scan(data, work, moments.dense), "environment": environment}
    kept = {"sensitivity": found, "fc1": han_figures.survey(moments)}
    return kept, han_figures.pictures(found, moments, figure(stored["summary"]))


def before_and_after(data: Path, work: Path) -> han_figures.Moments:
    """The network of one seed with L2, at the share of the curves nearest to the paper's, as `curves` makes it."""
    training, _, test = lenet.splits(data)
    batches, seed = lenet.Batches(*training, SETTINGS["batch"]), han_figures.SETTINGS["seed"]
    folder = work / f"seed-{seed}-L2"
    dense = sec.finetune(lenet.lenet_300_100(seed), batches, config("train", "L2", seed), folder=folder / "dense").model
    share = min(shares(), key=lambda share: abs(share - han_figures.SETTINGS["pruned"]))
    once = sec.iterative_prune(
        dense, batches, sparsity=share, rounds=1, folder=folder / f"{share:.4f}", scope=SETTINGS["scope"],
        evaluate=sec.accuracy(lenet.in_order(*test)), retrain=config("retrain", "L2", seed),
    )  # fmt: skip
    pruned = copy.deepcopy(dense)
    sec.sparsify(pruned, once.masks).detach()
    return han_figures.Moments(dense, pruned, once.model, share)


STUDY = Study("han", __doc__.splitlines()[0], SETTINGS, curves, summary, figure, pictures)

if __name__ == "__main__":
    raise SystemExit(STUDY.main())
