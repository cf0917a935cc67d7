"""What was asked from Python, as data: named where code can be found again, described where it cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.choose.budget import Budget
from secateurs.deliver.request import request, state_digest
from secateurs.recipe import NamedLoss
from secateurs.score.criterion import CRITERIA, Criterion
from secateurs.train.config import FineTune

X = torch.zeros(2, 3)


class Loader:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(X, torch.zeros(2))])


class Scores:
    def rate(self, model: nn.Module) -> float:
        return 0.0


def error_rate(model: nn.Module) -> float:
    return 0.0


def asked(*args: Any, **rest: Any) -> dict[str, Any]:
    """`request` for a linear layer on X unless given otherwise."""
    return request(nn.Linear(3, 2), args or (X,), {}, **{"data": None, "evaluate": None, **rest})


def test_objects_are_described_and_functions_are_named() -> None:
    found = asked(data=Loader(), evaluate=error_rate, budget=Budget(macs=0.5))
    assert "model" not in found and "data" not in found
    assert found["evaluate"] == f"{__name__}:error_rate"
    assert found["budget"] == {"macs": 0.5}
    handed = found["from_python"]
    assert set(handed) == {"model", "weights", "data"}
    assert (handed["model"], handed["data"]) == ("torch.nn.modules.linear:Linear", f"{__name__}:Loader")


def test_what_no_name_finds_again_is_described() -> None:
    assert asked(evaluate=Scores().rate)["from_python"]["evaluate"] == f"{__name__}:Scores.rate"
    assert asked(evaluate=lambda model: 0.0)["from_python"]["evaluate"].endswith("<lambda>")
    assert asked([X, X])["from_python"]["inputs"] == "builtins:list"
    assert "inputs" not in asked([X, X]) and "inputs" not in asked(X)["from_python"]


def test_a_loss_is_named_or_described_and_the_rest_of_the_config_stays() -> None:
    nameless = asked(finetune=FineTune(epochs=7, loss=lambda outputs, target: outputs.mean()))
    assert nameless["finetune"] == {"epochs": 7}
    assert nameless["from_python"]["loss"].endswith("<lambda>")
    named = asked(finetune=FineTune(epochs=7, loss=NamedLoss("a.b:c")))
    assert named["finetune"] == {"epochs": 7, "loss": "a.b:c"}
    assert "loss" not in named["from_python"]
    assert "loss" not in asked(finetune=FineTune(loss="mse"))["from_python"]


def test_a_criterion_is_named_or_described() -> None:
    registered = asked(criterion=CRITERIA["l1"])
    assert registered["criterion"] == "l1" and "criterion" not in registered["from_python"]
    for mine in (error_rate, Criterion("l1", error_rate)):
        found = asked(criterion=mine)
        assert "criterion" not in found
        assert found["from_python"]["criterion"] == f"{__name__}:error_rate"


def test_the_digest_is_sha256_over_names_and_bytes_and_sees_every_value() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    by_hand = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        by_hand.update(name.encode() + tensor.numpy().tobytes())
    assert state_digest(net) == by_hand.hexdigest()
    for tensor in net.state_dict().values():  # parameters and buffers alike, integers too
        before, kept = state_digest(net), tensor.clone()
        tensor.view(-1)[-1] += 1
        assert state_digest(net) != before
        tensor.copy_(kept)
    assert state_digest(net) == by_hand.hexdigest()
