"""What Han's curves do not show: how much each layer bears, which pixels are still looked at, what the weights become.

LeNet-300-100 with its penalty L2, and LeNet-5, one seed. Each layer alone loses its smallest weights, nothing is
retrained, and the metric is the accuracy on the 5,000 training images that no network was trained on. The paper's
LeNet-300-100 keeps 8 % of its weights; the picture's is the one of the curves that is pruned nearest to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import secateurs as sec
from benchmarks import lenet
from benchmarks.granularity_cells import SETTINGS as LENET_5
from benchmarks.granularity_cells import LeNetStudy
from benchmarks.mnist_nets import LeNet300
from secateurs.report.figures.gallery import Picture

SETTINGS: dict[str, Any] = {
    "seed": 0, "images": lenet.VALIDATION, "fractions": [step / 20 for step in range(20)],
    "tolerance": 0.01, "pruned": 0.92, "LeNet-5": LENET_5["lenet5"]["dense"],
}  # fmt: skip
IMAGE = (28, 28)
EDGE = 4
"""Pixels on every side that MNIST leaves (nearly) dark: digits are 20 x 20 in its files."""


@dataclass(frozen=True)
class Moments:
    """LeNet-300-100 `dense`, with its smallest weights `pruned`, and `retrained`; `share` is what went."""

    dense: nn.Module
    pruned: nn.Module
    retrained: nn.Module
    share: float

    def fc1(self) -> dict[str, Tensor]:
        """The first layer's weights by the name of the moment."""
        moments = {"dense": self.dense, "after pruning": self.pruned, "after retraining": self.retrained}
        return {name: next(model.parameters()).detach() for name, model in moments.items()}


def named(model: nn.Module) -> LeNet300:
    """The same LeNet-300-100 with layers that have names."""
    found = LeNet300()
    found.load_state_dict(dict(zip(found.state_dict(), model.state_dict().values(), strict=True)))
    return found.eval()


def scan(data: Path, work: Path, lenet_300_100: nn.Module) -> dict[str, Any]:
    """The sensitivity tables of both networks, as JSON data, and what is seen in them."""
    _, (images, labels), _ = lenet.splits(data)
    batches = lenet.in_order(images.reshape(-1, 1, *IMAGE), labels, 500)
    networks = {
        "LeNet-300-100": named(lenet_300_100),
        "LeNet-5": LeNetStudy(data, work / "lenet5").dense(SETTINGS["seed"]),
    }
    tables = {
        name: sec.sensitivity(
            model, data=batches, **{name: SETTINGS[name] for name in ("fractions", "tolerance", "seed")},
            folder=work / f"sensitivity-{name}", on_stage=lambda stage, name=name: print(name, stage, flush=True),
        )
        for name, model in networks.items()
    }  # fmt: skip
    found = {name: table.to_dict() for name, table in tables.items()}
    return {"networks": found, "seen": seen(tables)}


def seen(tables: Mapping[str, sec.Sensitivity]) -> dict[str, Any]:
    """What each layer bears within the tolerance, and whether layers fall in the paper's order, in LeNet-5.

    A layer falls earlier when it bears less; by the mean, when its accuracy over all fractions is lower.
    """
    bears = {
        name: {layer.removesuffix(".weight"): share for layer, share in table.largest().items()}
        for name, table in tables.items()
    }
    table = tables["LeNet-5"]
    means = {layer.removesuffix(".weight"): sum(row) / len(row) for layer, row in table.metric.items()}
    return {
        "bears": bears,
        "mean_of_lenet_5": {layer: round(value, 5) for layer, value in means.items()},
        "convolutions fall earlier than linear layers": _before(bears["LeNet-5"]),
        "convolutions fall earlier, by the mean": _before(means),
        "the first convolution falls earliest": _before(bears["LeNet-5"], "conv1"),
        "the first convolution falls earliest, by the mean": _before(means, "conv1"),
    }


def _before(values: Mapping[str, float], first: str = "conv") -> bool:
    """Every layer whose name begins so has a lower value than every other."""
    lower = [value for layer, value in values.items() if layer.startswith(first)]
    return max(lower) < min(value for layer, value in values.items() if not layer.startswith(first))


def survey(moments: Moments) -> dict[str, Any]:
    """The numbers behind the pictures of the first layer."""
    weights = moments.fc1()
    counts = sec.figures.survivors(weights["after retraining"], IMAGE).counts
    inner = counts[EDGE:-EDGE, EDGE:-EDGE]
    outer = counts.sum() - inner.sum()
    rows = weights["dense"].shape[0]
    found: dict[str, Any] = {
        "pruned": round(moments.share, 4),
        "kept_of_fc1": round(counts.sum() / counts.size / rows, 4),
    }
    found["kept_of_the_inner_20x20"] = round(float(inner.mean()) / rows, 4)
    found["kept_of_the_edge"] = round(float(outer) / (counts.size - inner.size) / rows, 4)
    for name, weight in weights.items():
        kept = weight[weight != 0].double()
        found[name] = {
            "weights": kept.numel(),
            "smallest": float(f"{kept.abs().min():.4g}"),
            "rms": float(f"{kept.square().mean().sqrt():.4g}"),
        }
    return found


def pictures(found: Mapping[str, Any], moments: Moments, curves: Any) -> list[Picture]:
    """Everything, with words: `found` is what `scan` gives, `curves` the figure of the accuracies."""
    made = [Picture("curves", "Accuracy against the share of weights pruned", _CURVES, curves)]
    for name, table in found["networks"].items():
        slug = name.lower().replace("-", "")
        figure = sec.figures.draw_sensitivity(sec.Sensitivity.from_json(json.dumps(table)))
        made.append(Picture(f"sensitivity-{slug}", f"What each layer of {name} bears", _BEARS, figure))
    weights = moments.fc1()
    last = weights["after retraining"]
    figure = sec.figures.draw_survivors(sec.figures.survivors(last, IMAGE))
    made.append(Picture("fc1-pixels", f"What fc1 looks at, {moments.share:.1%} pruned", _PIXELS, figure))
    figure = sec.figures.draw_weight_histograms(sec.figures.weight_histograms(weights), "fc1")
    made.append(Picture("fc1-weights", "Weights of fc1 before and after", _WEIGHTS, figure))
    return made


_CURVES = (
    "The smallest weights of all layers together; points lost against the dense network of the same penalty. What lost "
    "more than six lies below."
)
_BEARS = (
    "Each layer alone loses its smallest weights, without retraining; accuracy on 5,000 images that no network was "
    "trained on. The dashed level is a point below the whole network."
)
_PIXELS = (
    "Weights of the first layer by the pixel that they read, and the 28 bands of the lines. Digits lie in the middle; "
    "the edge is dark, and its weights stay as small as they began."
)
_WEIGHTS = "Zeros are counted, not drawn. The smallest went: what is left lies on both sides of a gap."
