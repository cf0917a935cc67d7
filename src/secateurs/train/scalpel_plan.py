"""Which method suits which layer on which hardware: the table of Scalpel.

Yu et al., Scalpel: customizing DNN pruning to the underlying hardware parallelism, 2017.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateurs.base.errors import InputError, PlanError, UnknownNameError, explain, nearest
from secateurs.capture.trace import capture, check_inputs
from secateurs.couple import Groups, couple
from secateurs.couple.columns import Columns, reading_columns
from secateurs.sparsity.weights import layer_weights

SIMD, NODES, DENSE = "simd", "nodes", "dense"
CONVOLUTION, MATRIX = "convolution", "matrix"


@dataclass(frozen=True)
class Hardware:
    """A class of hardware: the method for each kind of layer, the default SIMD width in weights, and why."""

    parallelism: str
    methods: Mapping[str, str]
    simd_width: int | None
    why: Mapping[str, str]


HARDWARE: dict[str, Hardware] = {
    "microcontroller": Hardware(
        "low",
        {CONVOLUTION: SIMD, MATRIX: SIMD},
        2,
        dict.fromkeys(
            (CONVOLUTION, MATRIX),
            "no cache and little memory: every weight that goes is saved, one index serves a group",
        ),
    ),
    "cpu": Hardware(
        "moderate",
        {CONVOLUTION: NODES, MATRIX: SIMD},
        8,
        {
            CONVOLUTION: "its weights are used many times: dense and smaller is faster than sparse",
            MATRIX: "its weights are read once: fewer of them, in whole vectors, is less memory traffic",
        },
    ),
    "gpu": Hardware(
        "high",
        {CONVOLUTION: NODES, MATRIX: NODES},
        None,
        dict.fromkeys(
            (CONVOLUTION, MATRIX), "sparse weights leave its cores idle: dense and smaller is what is faster"
        ),
    ),
}
"""Micro-controllers (no cache, about 100 KB); CPUs (deep caches); GPUs (bound by bandwidth and latency)."""


@dataclass(frozen=True)
class LayerMethod:
    """What happens to the layer of one weight: `method` is `"simd"`, `"nodes"` or `"dense"` (nothing), `why` says why.

    `kind` is `"convolution"` or `"matrix"` (linear and recurrent layers). `group` names the units that the layer
    produces, where they are what is pruned.
    """

    weight: str
    kind: str
    method: str
    why: str
    group: str | None = None


@dataclass(frozen=True)
class ScalpelPlan:
    """The method for every layer, as data. `simd_width` is None where no layer takes SIMD groups."""

    hardware: str
    simd_width: int | None
    layers: tuple[LayerMethod, ...]

    @property
    def simd(self) -> tuple[str, ...]:
        """The weights to prune in SIMD groups."""
        return tuple(layer.weight for layer in self.layers if layer.method == SIMD)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The groups from which nodes are to go, each once."""
        return tuple(dict.fromkeys(layer.group for layer in self.layers if layer.method == NODES and layer.group))

    def __str__(self) -> str:
        head = f"{self.hardware}: {HARDWARE[self.hardware].parallelism} parallelism"
        lines = [head if self.simd_width is None else f"{head}, {self.simd_width} weights at a time"]
        return "\n".join([*lines, *(f"  {item.weight}: {item.method}: {item.why}" for item in self.layers)])

    def to_json(self) -> str:
        """Stable text: the same plan gives the same bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ScalpelPlan:
        """The plan back from `to_json`. Raises `PlanError`."""
        try:
            data: dict[str, Any] = json.loads(text)
            return cls(**{**data, "layers": tuple(LayerMethod(**item) for item in data["layers"])})
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(explain("This is not a plan of methods", evidence=repr(error))) from error


def scalpel_plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    hardware: str,
    simd_width: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    exclude: Sequence[str | type] = (),
) -> ScalpelPlan:
    """What suits each layer of `model` on this `hardware`: SIMD groups of weights, or fewer nodes.

    | hardware | parallelism | convolutions | linear and recurrent layers |
    |---|---|---|---|
    | `"microcontroller"` | low | SIMD groups | SIMD groups |
    | `"cpu"` | moderate | nodes | SIMD groups |
    | `"gpu"` | high | nodes | nodes |

    `simd_width` is how many weights one vector instruction takes: 2 by default on micro-controllers (16-bit weights,
    Cortex-M4), 8 on CPUs (32-bit weights, AVX). A layer whose nodes cannot go (the model returns them, a layer norm
    runs over them, ...) stays dense, with the reason; so do layers of `exclude` (globs or classes, as in `masks`).

    Raises `UnknownNameError` for unknown hardware and `InputError` for a width that is not positive.
    """
    chosen = _hardware(hardware)
    if simd_width is not None and (isinstance(simd_width, bool) or not isinstance(simd_width, int) or simd_width < 1):
        raise InputError(
            explain(f"simd_width={simd_width!r} cannot be used", next_step="give an integer of at least 1, or None")
        )
    args, keywords = check_inputs(model, example_inputs, kwargs)
    groups = couple(capture(model, args, kwargs=keywords))
    columns = reading_columns(groups)
    width = chosen.simd_width if simd_width is None or chosen.simd_width is None else simd_width
    modules = dict(model.named_modules(remove_duplicate=False))
    included = layer_weights(model, exclude=exclude)
    layers = []
    for name in layer_weights(model):
        kind = CONVOLUTION if isinstance(modules[name.rpartition(".")[0]], _ConvNd) else MATRIX
        if name not in included:
            layers.append(LayerMethod(name, kind, DENSE, "excluded"))
        elif chosen.methods[kind] == SIMD:
            layers.append(LayerMethod(name, kind, SIMD, chosen.why[kind]))
        else:
            layers.append(_by_nodes(name, kind, chosen.why[kind], groups, columns))
    return ScalpelPlan(hardware, width if any(layer.method == SIMD for layer in layers) else None, tuple(layers))


def _by_nodes(weight: str, kind: str, why: str, groups: Groups, columns: Columns) -> LayerMethod:
    """Node pruning for a layer, or why it stays dense."""
    leaf = next((item.name for item in groups.graph.leaves if weight in item.names), weight)
    mine = [group for group in groups if any(m.leaf == leaf and m.role == "out" for m in group.members)]
    free = [group.name for group in mine if group.name in columns.found]
    if free:
        return LayerMethod(weight, kind, NODES, why, free[0])
    reasons = [group.frozen or columns.missing.get(group.name, "") for group in mine]
    return LayerMethod(weight, kind, DENSE, next(filter(None, reasons), "none of its nodes can go"))


def _hardware(name: str) -> Hardware:
    if name in HARDWARE:
        return HARDWARE[name]
    close = nearest(str(name), HARDWARE)
    raise UnknownNameError(
        explain(
            f"There is no class of hardware named {name!r}",
            evidence=f"known: {', '.join(HARDWARE)}",
            next_step=f"did you mean {close[0]!r}?" if close else "pick the one whose parallelism is nearest",
        )
    )


__all__ = ["HARDWARE", "Hardware", "LayerMethod", "ScalpelPlan", "scalpel_plan"]
