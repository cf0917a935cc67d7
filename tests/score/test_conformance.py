"""Every registered criterion passes the suite that ships with the package; so does a function of one's own."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from secateurs.capture import capture
from secateurs.couple import ChannelGroup, couple
from secateurs.score import CRITERIA, score
from secateurs.score.criterion import Context
from secateurs.testing.criteria import CriterionConformance


class TestL1(CriterionConformance):
    criterion = "l1"


class TestL2(CriterionConformance):
    criterion = "l2"


class TestMeanActivation(CriterionConformance):
    criterion = "mean_activation"


class TestApoz(CriterionConformance):
    """The attention network has values of both signs: only `eps` finds zeros there."""

    criterion = "apoz"
    options: ClassVar = {"eps": 0.3}


class TestBnScale(CriterionConformance):
    """Most of the networks have no batch norm."""

    criterion = "bn_scale"
    options: ClassVar = {"without": "l2"}


class TestFpgm(CriterionConformance):
    criterion = "fpgm"


class TestFpgmOfDirections(CriterionConformance):
    criterion = "fpgm"
    options: ClassVar = {"distance": "cosine"}


@pytest.mark.medium
class TestTaylor(CriterionConformance):
    criterion = "taylor"


@pytest.mark.medium
class TestTaylorWithCost(CriterionConformance):
    criterion = "taylor"
    options: ClassVar = {"flops_weight": 1e-3}


@pytest.mark.medium
class TestTaylorGates(CriterionConformance):
    criterion = "taylor_gates"
    by_batch = True


@pytest.mark.medium
class TestTaylorWeights(CriterionConformance):
    criterion = "taylor_weights"
    by_batch = True


@pytest.mark.medium
class TestTaylorWeightsOfSecondOrder(CriterionConformance):
    criterion = "taylor_weights"
    by_batch = True
    options: ClassVar = {"order": 2, "form": "squares", "momentum": 0.9}


@pytest.mark.medium
class TestThinet(CriterionConformance):
    """A random output for each place would be another unit after an exchange, where a layer feeds its own group."""

    criterion = "thinet"
    options: ClassVar = {"outputs": "all"}


@pytest.mark.medium
class TestLasso(CriterionConformance):
    criterion = "lasso"


@pytest.mark.medium
class TestOracle(CriterionConformance):
    criterion = "oracle"
    tolerance = 1e-4


@pytest.mark.medium
class TestObd(CriterionConformance):
    criterion = "obd"


@pytest.mark.medium
class TestObdByGaussNewton(CriterionConformance):
    criterion = "obd"
    options: ClassVar = {"diagonal": "gauss_newton"}


@pytest.mark.medium
class TestObdByHutchinson(CriterionConformance):
    """The random signs belong to places in the tensors, so that scores do not follow a unit that moves."""

    criterion = "obd"
    looks_at_model = False
    options: ClassVar = {"diagonal": "hutchinson", "probes": 4}


@pytest.mark.medium
class TestNisp(CriterionConformance):
    criterion = "nisp"


class TestRandom(CriterionConformance):
    criterion = "random"
    looks_at_model = False


def largest(group: ChannelGroup, context: Context) -> Tensor:
    """The largest weight of any index that the unit owns, wherever it is."""
    rows = [context.weight(member).abs().amax(1) for member in group.members]
    best = [row.new_zeros(group.size) for row in rows]
    for numbers, row, member in zip(best, rows, group.members, strict=True):
        for unit in range(group.size):
            numbers[unit] = row[member.positions(unit)].max()
    return sum(best[1:], best[0])


class TestOwnFunction(CriterionConformance):
    criterion = largest


@pytest.mark.parametrize("name", CRITERIA)
def test_says_what_one_must_know(name: str):
    """Shapes, direction, cost, when it is a bad choice, and the paper."""
    text = " ".join((CRITERIA[name].__doc__ or "").split())
    for part in (r"Higher = keep", r"[Rr]ows?\b|\[size\]", r"\b[Cc]osts?\b", r"A bad choice", r", (19|20)\d\d\b"):
        assert re.search(part, text), f"nothing like {part}"


def test_none_is_forgotten():
    tested = {suite.criterion for suite in CriterionConformance.__subclasses__() if isinstance(suite.criterion, str)}
    assert tested == set(CRITERIA)


class Unread(nn.Module):
    """A layer whose output goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.lost, self.last, self.used, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.last(torch.relu(self.lost(x)))
        return self.head(torch.relu(self.used(x)))


@pytest.mark.parametrize("name", CRITERIA)
def test_a_layer_that_nothing_reads_has_scores_and_those_of_its_outputs_are_zero(name: str):
    torch.manual_seed(0)
    model = Unread()
    groups = couple(capture(model, torch.zeros(1, 4)))
    data = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]
    options = {"without": "l2"} if name == "bn_scale" else {}
    found = score(groups, model, name, data=data, options=options)
    assert found.keys() == {"lost", "last", "used"}
    assert all(bool(torch.isfinite(row).all()) for row in found.values())
    assert found["used"].std() > 0
    if CRITERIA[name].needs:
        assert not found["last"].any()
