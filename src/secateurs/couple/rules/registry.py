"""Which rule serves which operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from secateurs.capture.graph import Node, Ref
from secateurs.capture.run import operator
from secateurs.couple.coupler import Coupler
from secateurs.couple.pointwise import pointwise

Rule = Callable[[Coupler, Node], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register for these operators: `@rule("aten.linear")`."""

    def add(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return add


@cache
def _signature(op: str) -> tuple[tuple[str, Any, bool], ...]:
    schema = operator(op)._schema
    return tuple(
        (item.name, item.default_value if item.has_default_value() else None, item.kwarg_only)
        for item in schema.arguments
    )


def arguments(node: Node) -> dict[str, Any]:
    """The node's arguments by name, defaults filled in; tensors are `Ref`."""
    named: dict[str, Any] = {}
    positional = list(node.args)
    for name, default, keyword_only in _signature(node.op):
        if positional and not keyword_only:
            named[name] = positional.pop(0)
        else:
            named[name] = node.kwargs.get(name, default)
    return named


def value(item: Any) -> int | None:
    """The number of a tensor argument, None if it was left out."""
    return item.value if isinstance(item, Ref) else None


@cache
def base_name(op: str) -> str:
    """`aten.add_.Tensor` -> `aten.add`: no overload, no in-place underscore."""
    namespace, name = op.split(".")[:2]
    return f"{namespace}.{name.rstrip('_') if not name.startswith('_') else '_' + name.strip('_')}"


@cache
def _is_pointwise(op: str) -> bool:
    return torch.Tag.pointwise in operator(op).tags


class Unmovable(Exception):
    """A rule can not follow this call; the message says why."""


def apply_rule(c: Coupler, node: Node) -> None:
    """Set the layers of the node's outputs. An operator without a rule freezes its inputs, with the reason."""
    found = RULES.get(base_name(node.op)) or (elementwise_node if _is_pointwise(node.op) else None)
    try:
        if found is None:
            raise Unmovable("no rule for the operator")
        found(c, node)
    except Unmovable as reason:
        c.unruled.add(node.index)
        for number in node.inputs:
            c.freeze_all(number, f"{reason} {node.where}")
        for out in node.outputs:
            c.put(out, ())


def elementwise_node(c: Coupler, node: Node) -> None:
    """All tensor arguments broadcast against each other; every output has the common shape."""
    out = next(item for item in node.outputs if item is not None)
    rank = len(c.shape(out))
    layers = pointwise(c, node, list(node.inputs), rank)
    for item in node.outputs:
        c.put(item, layers)
