"""LSTM, GRU and plain recurrent layers as PyTorch's fused operators."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.capture.graph import Node
from secateurs.couple.causes import against, fixed
from secateurs.couple.coupler import Coupler, spread
from secateurs.couple.rules.registry import Unmovable, arguments, rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(c: Coupler, node: Node) -> None:
    """Hidden unit j owns row j of every gate, column j of the recurrent weight, and entry j of every state.

    The state tensor stacks all layers and directions, so unit j is the same in all of them.
    """
    given = arguments(node)
    if "input" not in given:
        raise Unmovable("packed sequences have no rule in")
    gates = GATES[node.op.split(".")[1]]
    weights = [ref.value for ref in given["params"]]
    directions = 2 if given["bidirectional"] else 1
    per_cell = 4 if given["has_biases"] else 2
    cells = int(given["num_layers"]) * directions
    if len(weights) != cells * per_cell:
        raise Unmovable("projections have no rule in")
    x = given["input"].value
    incoming = c.along(x, -1)
    hidden: Tensor | None = None
    for cell in range(cells):
        mine = weights[cell * per_cell : (cell + 1) * per_cell]
        hidden = _cell(c, node, mine, gates, hidden, x, incoming if cell < directions else None, cell >= directions)
    assert hidden is not None
    states = given["hx"] if isinstance(given["hx"], list) else [given["hx"]]
    for ref in states:
        c.pair(c.along(ref.value, -1), hidden, f"{node.where} starts from {fixed(c, ref.value)}")
        c.avoid(ref.value, range(len(c.shape(ref.value)) - 1), f"{node.where} reads it as layers or batch")
    out = node.outputs[0]
    assert out is not None
    rank = len(c.shape(out))
    c.put(out, [spread(torch.cat([hidden] * directions), -1, rank)])
    for state in node.outputs[1:]:
        c.put(state, [spread(hidden, -1, rank)])


def _cell(
    c: Coupler,
    node: Node,
    weights: list[int],
    gates: int,
    hidden: Tensor | None,
    x: int,
    incoming: Tensor | None,
    inner: bool,
) -> Tensor:
    """Tie one direction of one layer; returns the ids of its hidden units."""
    w_ih, w_hh = weights[:2]
    mine = c.along(w_hh, 1)
    if mine is None:
        raise Unmovable("one hidden unit is too few for")
    c.consumers.update({(w_ih, 1), (w_hh, 1)})
    hidden = mine if hidden is None else hidden
    c.tie(mine, hidden)
    for weight in (w_ih, w_hh, *weights[2:]):
        rows = c.along(weight, 0)
        assert rows is not None
        c.tie(rows.reshape(gates, -1), hidden)
    columns = c.along(w_ih, 1)
    if inner:
        assert columns is not None
        c.tie(columns.reshape(-1, hidden.numel()), hidden)
    else:
        c.pair(incoming, columns, against(c, node, "multiplies it with", x, incoming, w_ih, columns))
    return hidden


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(c: Coupler, node: Node) -> None:
    """One step of one layer: states in and out have the hidden units as their last axis."""
    given = arguments(node)
    gates = GATES[node.op.split(".")[1].removesuffix("_cell")]
    weights = [given[name].value for name in ("w_ih", "w_hh", "b_ih", "b_hh") if given[name] is not None]
    x = given["input"].value
    hidden = _cell(c, node, weights, gates, None, x, c.along(x, -1), False)
    states = given["hx"] if isinstance(given["hx"], list) else [given["hx"]]
    for ref in states:
        c.pair(c.along(ref.value, -1), hidden, f"{node.where} starts from {fixed(c, ref.value)}")
    for out in node.outputs:
        if out is not None:
            c.put(out, [spread(hidden, -1, len(c.shape(out)))])
