"""Random small networks: a program is a short list of steps, printable, and every list of steps is a valid network.

    program = Program(inputs=("image",), steps=(Step("conv2d", pick=(0, 2)), Step("residual")))
    model, example_inputs = program.build()

Deleting a step or shortening its `pick` gives another valid program, which is what makes failures shrink to a few
operators. Paste the printed program into a test to keep it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.testing import menu_maps, menu_sequences, menu_unusual
from secateurs.testing.layers import Head
from secateurs.testing.menu import AXIS, Picks, Spot, menu

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "Program",
    "RandomNetwork",
    "Step",
    "menu",
    "random_network",
    "random_program",
    "randomize",
]

assert menu_maps and menu_sequences and menu_unusual  # importing them fills the menu

INPUTS = {
    "image": Spot("map", (2, 3, 8, 8)),
    "square": Spot("map", (4, 4, 4, 4)),
    "single": Spot("map", (1, 3, 6, 6)),
    "signal": Spot("signal", (2, 4, 10)),
    "sequence": Spot("sequence", (2, 5, 6)),
    "cube": Spot("sequence", (4, 4, 4)),
    "tokens": Spot("tokens", (2, 5)),
    "vector": Spot("vector", (2, 6)),
    "volume": Spot("volume", (2, 2, 4, 4, 4)),
}
OUTPUTS = ("heads", "newest", "sum", "nested", "raw")
COMMON = ("conv2d", "conv2d", "conv2d", "conv1d", "linear", "depthwise", "merge", "concat", "residual", "to_sequence")
"""Drawn more often than the rest, as in real networks."""

WIRING = ("again", "tied")
"""Steps that reuse what is there: the same module called again; a new layer that shares an earlier one's weight."""


@dataclass(frozen=True)
class Step:
    """One operator.

    `on[i]` chooses its i-th source, counted back from the newest value of a kind that it takes; `pick` are its choices
    in the order in which its builder makes them. Missing numbers are 0.
    """

    op: str
    on: tuple[int, ...] = ()
    pick: tuple[int, ...] = ()

    def __repr__(self) -> str:
        parts = [repr(self.op)]
        parts += [f"on={self.on}"] if self.on else []
        parts += [f"pick={self.pick}"] if self.pick else []
        return f"Step({', '.join(parts)})"


@dataclass(frozen=True)
class Program:
    """A network as data. `output` says what becomes of values that nothing reads (see `OUTPUTS`); `seed` its weights.

    "heads": each gets a linear head and all are returned; "newest": only the last one is used, the rest is dead code;
    "sum": their heads are added; "nested": their heads in a dict of lists; "raw": the last one returned as it is.
    """

    inputs: tuple[str, ...] = ("image",)
    steps: tuple[Step, ...] = ()
    output: str = "heads"
    seed: int = 0

    def build(self) -> tuple[RandomNetwork, tuple[Tensor, ...]]:
        """The network in eval mode with random weights, and example inputs (batch of 2). Same program, same tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = _Builder(self).network()
        randomize(model, generator)
        return model.eval(), tuple(_example(INPUTS[name], generator) for name in self.inputs)


class RandomNetwork(nn.Module):
    """Runs `wiring`: (layer name, indices of the values read), each layer's results appended to the values."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.layers = nn.ModuleDict()
        self.wiring: list[tuple[str, tuple[int, ...]]] = []
        self.returned: list[int] = []

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for name, sources in self.wiring:
            result = self.layers[name](*(values[i] for i in sources))
            values += list(result) if isinstance(result, (tuple, list)) else [result]
        results = [values[i] for i in self.returned]
        if self.program.output == "sum" and len({result.shape[0] for result in results}) == 1:
            return torch.stack(results).sum(0)
        if self.program.output == "nested":
            return {"main": results[-1], "auxiliary": [tuple(results[:-1])]}
        return results[0] if len(results) == 1 else tuple(results)


@dataclass
class _Builder:
    """Builds the network step by step on real zeros, so that shapes are seen and not computed."""

    program: Program
    spots: list[Spot] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    read: set[int] = field(default_factory=set)
    gives: dict[str, str] = field(default_factory=dict)

    def network(self) -> RandomNetwork:
        self.model = RandomNetwork(self.program).eval()
        for name in self.program.inputs:
            self.spots.append(INPUTS[name])
            self.values.append(torch.zeros(INPUTS[name].shape, dtype=torch.long if name == "tokens" else torch.float32))
        for number, step in enumerate(self.program.steps):
            self.step(number, step)
        self.finish()
        return self.model

    def step(self, number: int, step: Step) -> None:
        """Adds one step, or nothing where it does not apply."""
        if step.op == "again":
            self.again(step)
        elif step.op == "tied":
            self.tied(number, step)
        else:
            op = menu[step.op]
            sources = [self.source(kinds, step.on[i] if i < len(step.on) else 0) for i, kinds in enumerate(op.takes)]
            found = [source for source in sources if source is not None]
            if len(found) == len(sources):
                layer = op.build(Picks(step.pick), *(self.spots[i] for i in found))
                if layer is not None:
                    self.add(f"{number}_{step.op}", layer, tuple(found), op.gives)

    def source(self, kinds: Sequence[str], back: int) -> int | None:
        """The value chosen by counting `back` from the newest of these kinds, or None."""
        candidates = [i for i, spot in enumerate(self.spots) if spot.kind in kinds]
        return candidates[-1 - back % len(candidates)] if candidates else None

    def add(self, name: str, layer: nn.Module, sources: tuple[int, ...], gives: str = "") -> None:
        """Runs the layer once to learn what it gives; leaves it out if a result is too large or empty."""
        if len({self.spots[i].shape[0] for i in sources}) > 1:
            return  # values of different batch sizes do not mix
        layer.eval()
        with torch.no_grad():
            result = layer(*(self.values[i] for i in sources))
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        kind = gives or self.spots[sources[0]].kind
        if any(value.numel() == 0 or value.numel() > 8000 for value in results):
            return
        self.model.layers[name] = layer
        self.gives[name] = gives
        self.model.wiring.append((name, sources))
        self.read.update(sources)
        self.values += results
        self.spots += [Spot(kind, tuple(value.shape)) for value in results]

    def again(self, step: Step) -> None:
        """Calls an earlier layer once more, on the newest value of the shape that it read before."""
        calls = list(reversed(self.model.wiring))
        back = step.on[0] if step.on else 0
        for name, sources in calls[back % len(calls) :] if calls else []:
            wanted = [self.spots[i] for i in sources]
            found = [max(i for i, spot in enumerate(self.spots) if spot == want) for want in wanted]
            if tuple(found) != sources:
                self.add(name, self.model.layers[name], tuple(found), self.gives[name])
                return

    def tied(self, number: int, step: Step) -> None:
        """A new linear layer or convolution around an earlier one's weight (an embedding's, for a linear layer)."""
        source = self.source(tuple(AXIS), step.on[0] if step.on else 0)
        if source is None:
            return
        spot = self.spots[source]
        kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,) if spot.kind == "map" else (nn.Linear, nn.Embedding)
        if spot.kind not in ("map", "sequence", "vector"):
            return
        for earlier in reversed(list(self.model.modules())):
            if not isinstance(earlier, kinds) or getattr(earlier, "groups", 1) != 1:
                continue
            weight = earlier.get_parameter("weight")
            if weight.shape[1] == spot.channels:
                self.add(f"{number}_tied", _twin(weight), (source,))
                return

    def finish(self) -> None:
        """Heads on the values that nothing reads."""
        loose = [i for i, spot in enumerate(self.spots) if i not in self.read and spot.kind != "tokens"]
        if not loose:
            self.step(len(self.program.steps), Step("embedding"))
            loose = [len(self.spots) - 1]
        output = self.program.output
        if output in ("newest", "raw"):
            loose = loose[-1:]
        for number, i in enumerate(loose):
            if output == "raw":
                self.model.returned.append(i)
                continue
            self.add(f"head{number}", Head(self.spots[i].channels, self.spots[i].axis, 3), (i,), "vector")
            self.model.returned.append(len(self.values) - 1)


def _twin(weight: nn.Parameter) -> nn.Module:
    """A layer with a bias of its own around an earlier layer's weight."""
    twin: nn.Linear | nn.Conv2d
    if weight.dim() == 4:
        twin = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2)
    else:
        twin = nn.Linear(weight.shape[1], weight.shape[0])
    twin.weight = weight
    return twin


def _example(spot: Spot, generator: torch.Generator) -> Tensor:
    if spot.kind == "tokens":
        return torch.randint(0, 11, spot.shape, generator=generator)
    return torch.randn(spot.shape, generator=generator)


def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Fills every parameter and floating buffer, so that nothing is zero or one by initialisation.

    Matrices and kernels are normal with variance 1/fan-in, scales and variances uniform in [0.5, 1.5], the rest normal
    with deviation 0.3.
    """
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            last = name.rsplit(".", 1)[-1]
            if last in ("running_var", "scale", "probe", "gain") or (last == "weight" and tensor.dim() == 1):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.dim() >= 2:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))


def random_program(seed: int, *, size: int = 6) -> Program:
    """A program of 1 to `size` steps with 1 or 2 inputs; the same seed gives the same program."""
    chance = random.Random(seed)
    inputs = [chance.choice(["image"] * 6 + sorted(INPUTS))]
    if chance.random() < 0.2:
        inputs.append(chance.choice(sorted(INPUTS)))
    kinds = {INPUTS[name].kind for name in inputs}
    steps = []
    for _ in range(chance.randint(1, size)):
        usable = [op for op in menu.values() if all(kinds.intersection(accepted) for accepted in op.takes)]
        op = chance.choice([op for op in usable for _ in range(1 + 5 * COMMON.count(op.name))])
        kinds.update([op.gives] if op.gives else [])
        name = chance.choice(WIRING) if chance.random() < 0.08 else op.name
        on = tuple(chance.choice((0, 0, 0, 1, 2, 3)) for _ in op.takes)
        steps.append(Step(name, on, tuple(chance.randrange(12) for _ in range(6))))
    return Program(tuple(inputs), tuple(steps), chance.choice(OUTPUTS[:1] * 4 + OUTPUTS), chance.randrange(1000))


def random_network(seed: int, *, size: int = 6) -> tuple[RandomNetwork, tuple[Tensor, ...]]:
    """A random small network in eval mode and its example inputs, determined by `seed`; at most `size` operators."""
    return random_program(seed, size=size).build()
