"""Programs as text that somebody rewrote: still JSON for the most part, and no longer a program for the most part."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any

from secateurs.testing.damage import DAMAGE

OPERATORS = (
    "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor", "aten.matmul.default",
    "aten.relu.default", "aten.relu_.default", "aten.add_.Tensor", "aten.conv2d.default", "aten.conv1d.default",
    "aten.linear.default",
    "aten.batch_norm.default", "aten.layer_norm.default", "aten.group_norm.default", "aten.softmax.int",
    "aten.view.default", "aten.reshape.default", "aten.expand.default", "aten.repeat.default", "aten.permute.default",
    "aten.transpose.int", "aten.flatten.using_ints", "aten.unbind.int", "aten.split.Tensor", "aten.chunk.default",
    "aten.cat.default", "aten.stack.default", "aten.mean.dim", "aten.sum.dim_IntList", "aten.max_pool2d.default",
    "aten.avg_pool2d.default", "aten.embedding.default", "aten.index_select.default", "aten.slice.Tensor",
    "aten.select.int", "aten.pad.default", "aten.upsample_nearest2d.vec", "aten.arange.default", "aten.ones.default",
    "aten.full.default", "aten.linspace.default", "aten.eye.default", "aten.tril.default", "aten.masked_fill.Scalar",
    "aten.where.self", "aten.dropout.default", "aten.gelu.default", "aten.scaled_dot_product_attention.default",
    "aten.as_strided.default", "aten.unsqueeze.default", "aten.squeeze.default", "aten.argmax.default",
    "aten.topk.default", "aten.clone.default", "aten.to.dtype", "aten.fill_.Scalar", "aten.zero_.default",
    "aten.copy_.default", "aten.nonzero.default", "aten.one_hot.default", "aten.bmm.default", "aten.cumsum.default",
)  # fmt: skip
"""What a program may well call."""

FORBIDDEN = (
    "aten._reshape_alias.default", "aten._sparse_coo_tensor_unsafe.default", "aten.from_file.default",
    "aten.set_grad_enabled.default", "aten.manual_seed.default", "aten._print.default", "aten.warn.default",
    "aten.save.default", "aten.set_data.default", "aten._test_warn_in_autograd.default", "aten.tensor.float",
    "aten.size.int", "aten.item.default", "aten.remainder.int", "aten.__class__.default", "aten.conv2d.__init__",
    "aten.conv2d.op", "aten.__init__.__func__", "aten.add", "aten", "", "aten..", "aten.conv2d.default.default",
    "os.system.default", "builtins.eval.default", "torch.load.default", "quantized.add.default", "prims.add.default",
    "torchvision.nms.default", "torchvision.__file__.default", "aten.conv2d.default\0", "__class__.__mro__.default",
)  # fmt: skip
"""What it may not, or what there is not."""

NAMES = (
    "", ".", "__class__", "__dict__.x", "_parameters.x", "forward", "training", "graph.weight", "_norms.x",
    "state_dict", "a..b", "constant.0.0", "head.weight.weight", "first.weight", "norm", "norm.running_mean",
    "norm.weight", "x\0y", "../x", "tokens", "x", "self", "$value", "kwargs['x']", "x[0]", "args[0]",
)  # fmt: skip

ATOMS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 63, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, -(1 << 63), 10**30, 0.5, -1.5,
    1e300, float("inf"), float("nan"), "1", "", "torch.float32", "torch.load", "_dynamo", "__class__", [], {}, [[]],
    [0], [-1], [1, 2, 3], {"$value": 0}, {"$value": -1}, {"$value": 10**6}, {"$value": "0"}, {"$value": True},
    {"$value": [0]}, {"$tuple": []}, {"$tuple": 5}, {"$map": []}, {"$map": [["x", 1]]}, {"$map": [[[], 1]]},
    {"$map": 3}, {"$size": [1 << 62, 1 << 62]}, {"$size": [0, 1]}, {"$size": [1]}, {"$size": ["1", 1]}, {"$float": "x"},
    {"$float": "inf"}, {"$float": 1}, {"$complex": [1, 2]}, {"$complex": []}, {"$device": "cuda"}, {"$device": "meta"},
    {"$device": "no"}, {"$dtype": "torch.float64"}, {"$dtype": "torch.int8"}, {"$dtype": "torch.nn"}, {"$layout": "os"},
    {"$memory_format": "torch.channels_last"}, {"$os": "system"}, {"$__class__": "x"}, {"a": 1, "b": 2},
)  # fmt: skip

_MARK = '"@mark@"'


def rewritten(rng: random.Random, text: str) -> tuple[bytes, str]:
    """The text after one to three changes of a kind, and which."""
    how = rng.choice([*_CHANGES, "text"])
    if how == "text":
        return DAMAGE[rng.choice(list(DAMAGE))](rng, text.encode()), how
    program = json.loads(text)
    filling = _CHANGES[how](rng, program) or ""
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        with suppress(*_FRAGILE):
            filling = _CHANGES[how](rng, program) or filling
    found = json.dumps(program, separators=(",", ":"))
    return found.replace(_MARK, filling).encode(), how


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every `(container, key)`."""
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        item = left.pop()
        keys = item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            found.append((item, key))
            left.append(item[key])
    return found


def _place(rng: random.Random, program: Any) -> tuple[Any, Any]:
    """Any place of one of the parts, so that small parts get their share; the whole goes where a part went."""
    part = rng.choice(list(program)) if isinstance(program, dict) and program else None
    inside = _places(program[part]) if part is not None else []
    return rng.choice(inside) if inside and rng.random() < 0.95 else (program, part)


def _operator(rng: random.Random, program: Any) -> None:
    node = rng.choice(program["nodes"])
    group = rng.choice((OPERATORS, OPERATORS, [other[0] for other in program["nodes"]], FORBIDDEN))
    node[0] = rng.choice(group)
    if rng.random() < 0.1:
        node[0] = rng.choice(("aten.", "x" * 10_000, "aten." + "a" * 1000 + ".default"))


def _reference(rng: random.Random, program: Any) -> None:
    """An argument, a result, a leaf, an input names another value, maybe one that is not there yet."""
    count = len(program["values"])
    value = rng.choice((rng.randrange(count), rng.randrange(count), rng.randrange(count), -1, count, 10**9))
    uses = [
        place for place in _places([program["nodes"], program["output"], program["calling"]]) if place[1] == "$value"
    ]
    kind = rng.randrange(4)
    if kind < 2 or not program["leaves"]:
        holder, key = rng.choice(uses)
        holder[key] = value
    elif kind == 2:
        rng.choice((*program["leaves"], *program["inputs"]))[-1] = value
    else:
        outputs = rng.choice(program["nodes"])[3]
        outputs[rng.randrange(len(outputs))] = rng.choice((value, None))


def _atom(rng: random.Random, program: Any) -> None:
    holder, key = _place(rng, program)
    holder[key] = deepcopy(rng.choice(ATOMS))


def _number(rng: random.Random, program: Any) -> None:
    """A number becomes another: near to it, absurd, or one that is not whole."""
    places = [place for place in _places(program) if type(place[0][place[1]]) in (int, float)]
    holder, key = rng.choice(places)
    old = holder[key]
    near = (old - 1, old + 1, old * 2, -old)
    holder[key] = rng.choice((*near, *near, *(atom for atom in ATOMS if type(atom) in (int, float, str))))


def _shape(rng: random.Random, program: Any) -> None:
    shape = rng.choice(program["values"])[0]
    if shape and rng.random() < 0.8:
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 5, -1, 1 << 40, 1 << 63, "2", None, 2.0, [2]))
    else:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice((1, 1, 0, 3)))


def _tree(rng: random.Random, program: Any) -> None:
    """Something goes, comes twice, changes places with something else, or lies under another key."""
    holder, key = _place(rng, program)
    kind = rng.randrange(4)
    if kind == 0 or holder is program:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), json.loads(json.dumps(holder[key])))
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(("$value", "$tuple", "$map", "$size", "$dtype", "$x", "value"))] = holder.pop(key)
    else:
        other, place = _place(rng, program)
        mine, theirs = json.dumps(holder[key]), json.dumps(other[place])
        holder[key], other[place] = json.loads(theirs), json.loads(mine)


def _nesting(rng: random.Random, program: Any) -> str:
    holder, key = _place(rng, program)
    holder[key] = _MARK[1:-1]
    depth = rng.choice((3, 40, 300, 900, 3000, 20_000))
    opening, closing = rng.choice((("[", "]"), ('{"$tuple":[', "]}"), ('{"$map":[["x",', "]]}"), ('{"$value":', "}")))
    return opening * depth + "0" + closing * depth


def _length(rng: random.Random, program: Any) -> str:
    """A very long list or text."""
    holder, key = _place(rng, program)
    holder[key] = _MARK[1:-1]
    count = rng.choice((10, 65, 1000, 5000))
    item = rng.choice(("0", "1", "[]", "null", '{"$value":0}', '"x"', '"aten.relu.default"'))
    return '"' + "x" * count + '"' if rng.random() < 0.2 else "[" + ",".join([item] * count) + "]"


def _name(rng: random.Random, program: Any) -> None:
    """A tensor, an input or a module goes under another name; a tensor is of another kind."""
    owned = [*program["leaves"], *program["unread"]]
    entry = rng.choice((*owned, *owned, *program["inputs"]))
    name = rng.choice((rng.choice(owned)[0], rng.choice(NAMES)))
    kind = rng.randrange(4)
    if kind == 0 and len(entry) > 2:
        entry[2] = rng.choice(("parameter", "buffer", "constant", "module", None, 3))
    elif kind == 1 and len(entry) > 2:
        entry[1] = rng.choice(([], [name], [entry[0], name], name, [name, entry[0]]))
    elif kind == 2 and len(entry) > 2:
        entry[0], entry[1] = name, [name]
    else:
        entry[0] = name


def _call(rng: random.Random, program: Any) -> None:
    """What the model is called with, how it was captured, and in which format it is written."""
    key = rng.choice(("calling", "calling", "calling", "how", "format", "notes", "inputs", "output"))
    if key == "calling" and program["calling"] and rng.random() < 0.7:
        holder, place = rng.choice(_places(program["calling"]))
        holder[place] = deepcopy(rng.choice((*ATOMS, *NAMES)))
    else:
        program[key] = deepcopy(rng.choice((*ATOMS, "recorded", "exported", 2, [["x"], {"$map": []}, {"$map": []}])))


_Change = Callable[[random.Random, Any], str | None]
_CHANGES: dict[str, _Change] = {
    "operator": _operator, "reference": _reference, "atom": _atom, "number": _number, "shape": _shape, "tree": _tree,
    "nesting": _nesting, "length": _length, "name": _name, "call": _call,
}  # fmt: skip
_FRAGILE = (KeyError, IndexError, TypeError, AttributeError, ValueError)
"""What a second change may meet after the first."""


__all__ = ["rewritten"]
