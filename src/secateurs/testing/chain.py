"""The whole chain on one network, checked against oracles that share nothing with the proofs of `cut`.

`check_chain` is what the random-network tests and the long fuzzing run call. It captures, couples, plans a
removal, cuts, and raises `AssertionError` with the two sides that disagree where

- an index belongs to two groups, or the caller's model changed by one bit;
- a cut parameter's shape is not the original's minus what the plan removed;
- the cut model's outputs differ from those of `masked_original`, or the latter still reads what was removed;
- the plan's predicted counts are not those of the cut model.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sec
from secateurs.capture.graph import Graph
from secateurs.choose.plan import Plan
from secateurs.couple.group import Groups
from secateurs.testing.oracle import Removed, Unanswerable, masked_leaf, masked_original

TOLERANCE = 1e-9
"""Largest difference allowed in double precision, relative to the largest output (at least 1)."""


Unit = Literal["heads", "head_dim"]


@dataclass(frozen=True)
class ChainReport:
    """What one check saw; `compared` says whether the output oracle had an answer."""

    graph: Graph
    groups: Groups
    plan: Plan
    small: nn.Module
    form: str
    compared: bool

    @property
    def removed_units(self) -> int:
        return sum(decision.size - len(decision.kept) for decision in self.plan.groups)

    def units(self, leaf: str, dim: int) -> list[tuple[str, int] | None]:
        """For each index of one axis: (free group's name, unit), or None where it must stay."""
        found: list[tuple[str, int] | None] = [None] * self.graph.leaf(leaf).shape[dim]
        names = self.graph.leaf(leaf).names
        for group in self.groups.free:
            for member in group.members:
                if member.leaf in names and member.dim == dim:
                    for index, unit in enumerate(member.units.tolist()):
                        if unit >= 0:
                            found[index] = (group.name, unit)
        return found

    def free(self, leaf: str, dim: int) -> int:
        """How many different units can be removed from one axis."""
        return len({owner for owner in self.units(leaf, dim) if owner is not None})

    def frozen(self, leaf: str, dim: int) -> str:
        """Why an axis stays whole: the reasons of all frozen groups on it, empty if there is none."""
        names = self.graph.leaf(leaf).names
        reasons = [
            str(group.frozen)
            for group in self.groups.frozen
            if any(member.leaf in names and member.dim == dim for member in group.members)
        ]
        return "; ".join(dict.fromkeys(reasons))


Keep = Callable[[Groups], dict[str, list[int]]]
"""Chooses, for every free group by name, the units that stay."""


def random_kept(seed: int) -> Keep:
    """For every free group a random subset, all but one unit, a single one, half, or all."""

    def keep(groups: Groups) -> dict[str, list[int]]:
        chance = random.Random(seed)
        kept = {}
        for group in groups.free:
            size = group.size
            count = chance.choice([size, 1, max(1, size - 1), chance.randint(1, size), max(1, size // 2)])
            kept[group.name] = sorted(chance.sample(range(size), count))
        return kept

    return keep


def half_kept(groups: Groups) -> dict[str, list[int]]:
    """Every second unit of every free group, so that what stays is not a prefix."""
    return {group.name: list(range(0, group.size, 2)) for group in groups.free}


def all_kept(groups: Groups) -> dict[str, list[int]]:
    """Nothing is removed."""
    return {group.name: list(range(group.size)) for group in groups.free}


def check_chain(
    model: nn.Module, example_inputs: tuple[Tensor, ...], keep: Keep, *, unit: Unit = "heads"
) -> ChainReport:
    """Cut `model` and compare with the oracles. Raises `AssertionError`, or what the chain itself raises."""
    model = model.double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in example_inputs)
    before = snapshot(model)
    graph = sec.capture(model, inputs)
    groups = sec.couple(graph, unit=unit)
    check_disjoint(graph, groups)
    plan = sec.plan(graph, groups, keep=keep(groups))
    removed = of_model(graph, plan.removed)
    check_dead(model, removed, inputs)
    result = sec.cut_detailed(model, plan, inputs)
    check_untouched(model, before)
    check_shapes(model, result.model, removed)
    compared = check_outputs(model, result.model, removed, inputs)
    check_counts(result.model, plan, inputs)
    return ChainReport(graph, groups, plan, result.model, result.form, compared)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a cut must leave alone: tensors, their identity, modes and flags."""
    return {
        "state": {name: (id(tensor), tensor.detach().clone()) for name, tensor in named_tensors(model).items()},
        "modes": [module.training for module in model.modules()],
        "grads": [parameter.requires_grad for parameter in model.parameters()],
        "attributes": {path: sorted(vars(module)) for path, module in model.named_modules()},
    }


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    return {**tensors, **dict(model.named_buffers(remove_duplicate=False))}


def check_untouched(model: nn.Module, before: Mapping[str, Any]) -> None:
    """The model is, bit for bit, the one that `before` was taken of."""
    after = snapshot(model)
    assert after["state"].keys() == before["state"].keys(), "the caller's model has other tensors than before"
    for name, (identity, tensor) in before["state"].items():
        now_identity, now = after["state"][name]
        assert now_identity == identity, f"`{name}` of the caller's model was replaced"
        assert now.shape == tensor.shape and torch.equal(now, tensor), f"`{name}` of the caller's model changed"
    for aspect in ("modes", "grads", "attributes"):
        assert after[aspect] == before[aspect], f"the {aspect} of the caller's model changed"


def check_disjoint(graph: Graph, groups: Groups) -> None:
    """Names are unique, every index of an axis belongs to one group at most, units own something on every member."""
    names = Counter(group.name for group in groups)
    assert len(names) == len(groups), f"group names are used twice: {[n for n, count in names.items() if count > 1]}"
    owner: dict[tuple[str, int, int], str] = {}
    for group in groups:
        assert group.size >= 1 and group.members, f"group `{group.name}` is empty"
        for member in group.members:
            shape = graph.leaf(member.leaf).shape
            assert len(member.units) == shape[member.dim], (
                f"`{member.leaf}` dim {member.dim}: {len(member.units)} != {shape}"
            )
            assert member.units.min() >= -1 and member.units.max() < group.size, f"`{member.leaf}`: unit out of range"
            for index, unit in enumerate(member.units.tolist()):
                if unit < 0:
                    continue
                key = (member.leaf, member.dim, index)
                assert owner.setdefault(key, group.name) == group.name, f"{key} is in `{owner[key]}` and `{group.name}`"


def check_shapes(model: nn.Module, small: nn.Module, removed: Removed) -> None:
    """Each tensor of the cut model is the original's without the removed indices; checked by name."""
    cut = named_tensors(small)
    for name, dims in removed.items():
        expected = masked_leaf(model, name)
        for dim, indices in dims.items():
            kept = [i for i in range(expected.shape[dim]) if i not in set(indices)]
            expected = expected.index_select(dim, torch.tensor(kept, dtype=torch.long))
        twins = [other for other in cut if other == name or other.replace(".", "_") == name.replace(".", "_")]
        assert twins, f"`{name}` is missing from the cut model"
        now = cut[twins[0]]
        assert now.shape == expected.shape, (
            f"`{name}` has shape {tuple(now.shape)}, the plan leaves {tuple(expected.shape)}"
        )
        assert torch.equal(now, expected), f"`{name}` is not the slice that the plan keeps"


def of_model(graph: Graph, removed: Removed) -> Removed:
    """What is removed from parameters and buffers; tensors that the model makes while it runs are left out."""
    return {name: dims for name, dims in removed.items() if graph.leaf(name).kind != "constant"}


def check_dead(model: nn.Module, removed: Removed, inputs: tuple[Tensor, ...]) -> bool:
    """The masked original does not depend on what it holds at removed indices; needs no cut model. False: no answer."""
    try:
        masked, scrambled = masked_original(model, removed), masked_original(model, removed, scramble=0)
    except Unanswerable:
        return False
    compare(masked, scrambled, inputs, "still reads what was removed: it differs by {} once that is random")
    return True


def check_outputs(model: nn.Module, small: nn.Module, removed: Removed, inputs: tuple[Tensor, ...]) -> bool:
    """Outputs equal the masked original's; False where the oracle has no answer."""
    try:
        masked = masked_original(model, removed)
    except Unanswerable:
        return False
    compare(masked, small.eval(), inputs, "differs by {} from the masked original")
    check_other_batch(model, masked, small, inputs)
    check_training_mode(model, masked, small, inputs)
    return True


def check_other_batch(model: nn.Module, masked: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """At another batch size than the one captured the outputs agree too, if the original takes that size at all."""
    larger = tuple(torch.cat([x, x[:1]]) for x in inputs)
    if len({x.shape[0] for x in inputs}) == 1 and grows_by_samples(model, inputs, larger):
        compare(masked, small, larger, "differs by {} from the masked original at another batch size")


def check_training_mode(model: nn.Module, masked: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Without dropout, outputs agree in training mode too, and gradients flow wherever the original's do."""
    if any(isinstance(module, nn.Dropout) and module.p for module in model.modules()):
        return
    whole, trained = copy.deepcopy(masked).train(), copy.deepcopy(small).train()
    if runs(copy.deepcopy(model).train(), inputs):
        compare(copy.deepcopy(whole), copy.deepcopy(trained), inputs, "differs by {} in training mode", tolerance=1e-6)
        if backward(whole, inputs):
            assert backward(trained, inputs), "the cut model has no gradient, the original has"


def backward(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a backward pass gives some parameter a finite gradient."""
    outputs = [out.sum() for out in pytree.tree_leaves(model(*inputs)) if out.requires_grad]
    try:
        torch.stack(outputs).sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return any(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def grows_by_samples(model: nn.Module, inputs: tuple[Tensor, ...], larger: tuple[Tensor, ...]) -> bool:
    """Whether the model takes `larger`, and in what its modules put out only the first axis follows.

    A `view` with a baked-in batch size and a -1 somewhere else takes some other sizes by accident: what was a batch
    ends up among the channels, and the cut model rightly refuses such sizes.
    """
    if not runs(model, larger):
        return False
    before, after = shapes_within(model, inputs), shapes_within(model, larger)
    return len(before) == len(after) and all(one[1:] == two[1:] for one, two in zip(before, after, strict=True))


def shapes_within(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[torch.Size]:
    """The shape of every tensor that a module of the model puts out, in order."""
    shapes: list[torch.Size] = []

    def note(module: nn.Module, given: Any, output: Any) -> None:
        shapes.extend(item.shape for item in pytree.tree_leaves(output) if isinstance(item, Tensor))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the model takes these inputs: some bake the batch size in, some normalise over a single value."""
    try:
        with torch.no_grad():
            model(*inputs)
    except (RuntimeError, ValueError):
        return False
    return True


@contextmanager
def unfused_layers() -> Iterator[None]:
    """Keeps torch's transformer layers off the path that reads weights past their modules, and so past the oracle's."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def compare(
    one: nn.Module, two: nn.Module, inputs: tuple[Tensor, ...], complaint: str, tolerance: float = TOLERANCE
) -> None:
    """The two modules return the same structure, shapes and, within `tolerance`, numbers."""
    with torch.no_grad(), unfused_layers():
        wanted, spec = pytree.tree_flatten(one(*inputs))
        got, got_spec = pytree.tree_flatten(two(*inputs))
    assert got_spec == spec, f"the cut model returns {got_spec}, the original {spec}"
    for number, (a, b) in enumerate(zip(wanted, got, strict=True)):
        assert a.shape == b.shape, f"output {number}: shape {tuple(b.shape)}, original {tuple(a.shape)}"
        if a.numel():
            difference = float((a - b).abs().max())
            scale = max(1.0, float(a.abs().max()))
            assert difference <= tolerance * scale, f"output {number} {complaint.format(f'{difference:.3g}')}"


def check_counts(small: nn.Module, plan: Plan, inputs: tuple[Tensor, ...]) -> None:
    """The counts that the plan predicts are those of the model that came out."""
    cost = sec.count(small, inputs)
    for metric in ("macs", "params", "bytes"):
        counted = getattr(cost, metric)
        assert plan.after[metric] == counted, (
            f"plan predicts {plan.after[metric]} {metric}, the cut model has {counted}"
        )
