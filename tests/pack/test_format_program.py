"""The program in a packed file, run by a second interpreter that was written from `docs/format.md` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec


def run(program: str, tensors: Mapping[str, Tensor], *inputs: Tensor) -> Any:
    """What the model returns for `inputs`, in the order of the program."""
    data = json.loads(program)
    values: list[Any] = [None] * len(data["values"])
    for (_, number), given in zip(data["inputs"], inputs, strict=True):
        values[number] = given
    for name, _, _, number in data["leaves"]:
        values[number] = tensors[name]
    for operator, args, keywords, outputs, listed, _ in data["nodes"]:
        space, name, overload = operator.split(".")
        call = getattr(getattr(getattr(torch.ops, space), name), overload)
        given = meant(args, values, len(inputs[0])), meant(keywords, values, len(inputs[0]))
        found = call(*given[0], **given[1])
        for number, item in zip(outputs, found if listed or isinstance(found, tuple) else [found], strict=True):
            if number is not None:
                values[number] = item
    return meant(data["output"], values, len(inputs[0]))


def meant(tree: Any, values: list[Any], batch: int) -> Any:
    if isinstance(tree, list):
        return [meant(item, values, batch) for item in tree]
    if not isinstance(tree, dict):
        return tree
    [(key, item)] = tree.items()
    if key == "$map":
        return {name: meant(part, values, batch) for name, part in item}
    simple = {
        "$value": lambda: values[item],
        "$tuple": lambda: tuple(meant(part, values, batch) for part in item),
        "$size": lambda: item[0] + item[1] * batch,
        "$float": lambda: float(item),
        "$complex": lambda: complex(*item),
        "$device": lambda: torch.device("cpu"),
    }
    return simple[key]() if key in simple else getattr(torch, item.removeprefix("torch."))


class Net(nn.Module):
    """Convolutions, a batch norm, a split list, in-place operators, constants, and sizes that depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        one, two = torch.relu_(self.norm(self.conv(x))).chunk(2, 1)
        both = torch.cat([one + torch.arange(5.0), two.clamp(max=float("inf"))], 1).view(x.shape[0], 6, -1)
        mask = (both[:, 0] > 1e9).to(dtype=torch.bool)
        logits = self.head(both.mean(2)).mul_(2.0)
        return {"logits": logits, "rest": (both.masked_fill(mask[:, None], -torch.inf).amax(2), [logits])}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.cell(x)


@pytest.mark.parametrize(("kind", "shape"), [(Net, (2, 5, 5)), (Recurrent, (6, 3))])
def test_the_program_says_what_the_model_does(kind: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    sec.pack(net, tmp_path / "m.sec", example_inputs=torch.randn(2, *shape))
    packed = sec.read_packed(tmp_path / "m.sec")
    tensors = {name: torch.from_numpy(packed[name].copy()) for name in packed}
    x = torch.randn(3, *shape)
    program = packed.text("graph")
    assert program is not None and (kind is Recurrent or '"$size"' in program)
    found, expected = run(program, tensors, x.clone()), net(x.clone())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
