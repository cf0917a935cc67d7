"""`couple`: run the id engine over a graph and read the groups off it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor

from secateurs.base.errors import InputError, UnknownNameError, explain, nearest
from secateurs.base.listed import listed
from secateurs.capture.graph import Graph, Leaf
from secateurs.capture.program import follows_inputs
from secateurs.couple.coupler import Coupler, spread, varying
from secateurs.couple.group import Groups
from secateurs.couple.grouping import read_groups
from secateurs.couple.rules import apply_rule

ELEMENTWISE = ("couple", "keep")


def couple(
    graph: Graph, *, exclude: Iterable[str | type] = (), unit: str = "heads", elementwise: str = "couple"
) -> Groups:
    """Which indices of which leaves live and die together.

    `exclude` keeps whole what matches: a glob on module or parameter names (`"layer4.*"`), or a module class; it pins
    the channels that these modules produce. `unit` decides what goes from attention: whole heads, or columns of every
    head.

    `elementwise` decides about channels of several activations that meet in an operator such as `add`, `mul` or
    `maximum` (or in `stack`): `"couple"` removes them together, `"keep"` removes none of them, the simple policy for
    criteria that look at one layer. Parameters, operands of one channel that broadcast, and functions of one activation
    (`x * sigmoid(x)`) are no second activation.

    Raises `UnknownNameError` for an exclusion that matches nothing, `InputError` for an unknown `unit` or
    `elementwise`.
    """
    if unit not in ("heads", "head_dim"):
        raise InputError(explain(f"unit={unit!r} is not a unit of attention", next_step="use 'heads' or 'head_dim'"))
    if elementwise not in ELEMENTWISE:
        raise InputError(
            explain(
                f"elementwise={elementwise!r} is no way to treat channels that meet", next_step="use 'couple' or 'keep'"
            )
        )
    if isinstance(exclude, str):
        raise InputError(explain("`exclude` is a list of names", next_step=f"pass exclude=[{exclude!r}]"))
    c = Coupler(graph, unit, follows_inputs(graph) if elementwise == "keep" else frozenset())
    for leaf in graph.leaves:
        rank = len(leaf.shape)
        c.layers[leaf.value] = tuple(
            spread(c.fresh(size), dim, rank) for dim, size in enumerate(leaf.shape) if size > 1
        )
    axes = {
        (leaf.value, varying(layer)[0]): layer.reshape(-1) for leaf in graph.leaves for layer in c.layers[leaf.value]
    }
    for node in graph.nodes:
        c.node = node.index
        apply_rule(c, node)
    c.node = -1
    for number in graph.outputs:
        c.freeze_all(number, "the model returns it")
    _exclude(c, graph, listed("exclude", exclude), axes)
    return read_groups(c, graph, axes)


def _exclude(c: Coupler, graph: Graph, patterns: tuple[str | type, ...], axes: dict[tuple[int, int], Tensor]) -> None:
    for pattern in patterns:
        if not isinstance(pattern, (str, type)):
            raise InputError(
                explain(
                    f"{pattern!r} excludes nothing", next_step="give names or globs, such as 'layer4.*', or classes"
                )
            )
        matched = [leaf for leaf in graph.leaves if _matches(graph, leaf, pattern)]
        if not matched:
            names = sorted({name.rpartition(".")[0] for leaf in graph.leaves for name in leaf.names} - {""})
            text = pattern if isinstance(pattern, str) else pattern.__name__
            close = nearest(text, names)
            raise UnknownNameError(
                explain(
                    f"The exclusion {text!r} matches no module",
                    evidence=f"{len(names)} modules hold parameters, such as {', '.join(names[:5])}",
                    next_step=f"did you mean {', '.join(close)}?" if close else "",
                )
            )
        for leaf in matched:
            for dim in range(len(leaf.shape)):
                ids = axes.get((leaf.value, dim))
                if ids is not None and (leaf.value, dim) not in c.consumers:
                    c.freeze(ids, f"excluded by {pattern if isinstance(pattern, str) else pattern.__name__!r}")


def _matches(graph: Graph, leaf: Leaf, pattern: str | type) -> bool:
    for name in leaf.names:
        module = name.rpartition(".")[0]
        if isinstance(pattern, type):
            if graph.modules.get(module) == pattern.__name__:
                return True
        elif fnmatchcase(name, pattern) or fnmatchcase(module, pattern) or module.startswith(pattern + "."):
            return True
    return False
