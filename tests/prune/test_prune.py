"""`prune` end to end on a small network: what it promises, what it refuses, what it says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs import recipe
from secateurs.cli.running import FLAGS
from secateurs.report.result import Result
from secateurs.train.config import FineTune
from secateurs.train.distill import Distill


class Net(nn.Module):
    """Two convolutions with batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


IMAGE = torch.zeros(1, 1, 6, 6)


def stripes(count: int = 96, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of images that are brighter above, below or nowhere: three classes that a small network learns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator) / 2
    images[labels == 1, :, :3] += 1
    images[labels == 2, :, :, :2] -= 1
    return list(zip(images.split(32), labels.split(32), strict=True))


def right(model: nn.Module) -> float:
    batches = stripes(seed=1)
    with torch.no_grad():
        return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in batches) / len(batches)


@pytest.fixture(scope="module")
def network() -> Net:
    torch.manual_seed(0)
    config = FineTune(epochs=8, lr=0.1, progress=False)
    trained = sec.finetune(Net(), stripes(), config).model.eval()
    assert isinstance(trained, Net)
    return trained


@pytest.fixture(scope="module")
def result(network: Net) -> Result:
    return sec.prune(
        network,
        IMAGE,
        budget=sec.Budget(macs=0.5),
        granularity=4,
        data=stripes(),
        evaluate=right,
        finetune=FineTune(epochs=2, lr=0.05, distil=Distill(), progress=False),
        device="torch",
    )


def test_the_budget_is_met_and_counted(result: Result) -> None:
    assert result.met
    assert result.after.macs <= result.before.macs / 2
    assert sec.count(result.model, IMAGE).macs == result.after.macs
    widths = [module.out_channels for module in result.model.modules() if isinstance(module, nn.Conv2d)]
    assert all(width % 4 == 0 and width > 0 for width in widths)


def test_the_users_class_comes_back_and_the_original_is_untouched(network: Net) -> None:
    network.train()
    network.body[0].eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    found = sec.prune(network, IMAGE, budget=sec.Budget(macs=0.5), data=stripes(), evaluate=right)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert found.form == "native"
    assert type(found.model) is Net
    assert found.original is network
    network.eval()


def test_accuracy_is_told_step_by_step(result: Result, network: Net) -> None:
    assert list(result.accuracy) == ["original", "cut", "recalibrated", "fine-tuned"]
    assert result.accuracy["original"] == right(network)
    assert result.accuracy["fine-tuned"] == right(result.model.eval())
    assert [row.epoch for row in result.training] == [1, 2]


def test_the_same_seed_gives_the_same_model(network: Net, result: Result) -> None:
    config = FineTune(epochs=2, lr=0.05, distil=Distill(), progress=False)
    again = sec.prune(
        network, IMAGE, budget=sec.Budget(macs=0.5), granularity=4, data=stripes(), evaluate=right, finetune=config
    )
    assert again.plan == result.plan
    assert all(
        torch.equal(tensor, result.model.state_dict()[name]) for name, tensor in again.model.state_dict().items()
    )


def test_a_finished_run_is_taken_from_its_folder(network: Net, result: Result, tmp_path: Path) -> None:
    config = FineTune(epochs=2, lr=0.05, distil=Distill(), progress=False)
    for _ in range(2):
        again = sec.prune(
            network, IMAGE, budget=sec.Budget(macs=0.5), granularity=4, data=stripes(), evaluate=right,
            finetune=config, folder=tmp_path,
        )  # fmt: skip
        state = result.model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())


def test_printing_tells_the_story_in_order(result: Result) -> None:
    text = str(result)
    parts = [
        "Budget met",
        "macs <= 50%",
        "multiply-accumulates",
        "latency on torch",
        "fine-tuned",
        "body.0",
        "Reproduce: seed 0",
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places, dict(zip(parts, places, strict=True))
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 120


def test_a_missed_budget_is_told(result: Result) -> None:
    missed = replace(result, budget=sec.Budget(macs=0.5, params=100))
    assert not missed.met
    assert "Budget NOT met" in str(missed)
    assert repr(missed).endswith("met=False, form='native')")


class HardCoded(nn.Module):
    """A size written into `forward`, so that the class itself cannot take smaller tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.head = nn.Linear(12 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().reshape(x.shape[0], 12 * 36))  # type: ignore[no-any-return]


def test_a_graph_form_goes_all_the_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FineTune(epochs=1, distil=Distill(), progress=False)
    found = sec.prune(HardCoded(), IMAGE, budget=sec.Budget(macs=0.5), data=stripes(), evaluate=right, finetune=config)
    assert found.form == "graph"
    assert found.why_graph
    assert "graph (the rewritten program" in str(found)
    assert list(found.accuracy) == ["original", "cut", "recalibrated", "fine-tuned"]
    loaded = sec.load(sec.save(found, tmp_path / "artifact"))
    images = stripes()[0][0]
    with torch.no_grad():
        assert torch.equal(loaded(images), found.model.eval()(images))


def test_what_stayed_whole_is_told_with_its_reason(result: Result) -> None:
    assert result.frozen
    assert all(group.why for group in result.frozen)
    assert result.frozen[0].why.split()[0] in str(result)


def test_stages_are_announced_in_order(network: Net) -> None:
    heard: list[str] = []
    found = sec.prune(network, IMAGE, budget=sec.Budget(macs=0.7), on_stage=heard.append)
    assert heard == ["capture", "couple", "score", "choose", "cut", "count"]
    assert [stage.name for stage in found.history] == heard


def test_a_criterion_may_be_a_function(network: Net, tmp_path: Path) -> None:
    """Its name goes into plan and recipe; the recipe asks for a name when it is to be run again."""

    def last_first(group: sec.ChannelGroup, context: object) -> torch.Tensor:
        return torch.arange(group.size)

    result = sec.prune(network, IMAGE, budget=sec.Budget(channels=0.5), criterion=last_first)
    assert all(row.kept[-1] == row.size - 1 for row in result.plan.groups)
    assert result.plan.criterion == "last_first"
    sec.save(result, tmp_path / "out")
    assert sec.load(tmp_path / "out", build=Net) is not None
    read = recipe.load(tmp_path / "out" / "recipe.yaml")
    assert read.criterion is None
    assert "criterion" in read.unnamed
    assert set(read.unnamed) <= set(FLAGS)
    with pytest.raises(sec.InputError, match="no number of batches"):
        sec.prune(network, IMAGE, budget=sec.Budget(macs=0.5), data=stripes(), score_batches=-1)


def test_arguments_that_cannot_work_are_refused_before_any_work(network: Net) -> None:
    heard: list[str] = []
    budget = sec.Budget(macs=0.5)
    with pytest.raises(sec.SecateursError, match="Fine-tuning needs data"):
        sec.prune(network, IMAGE, budget=budget, finetune=FineTune(), on_stage=heard.append)
    with pytest.raises(sec.SecateursError, match="did you mean 'onnxruntime'"):
        sec.prune(network, IMAGE, budget=budget, device="onnxruntim", on_stage=heard.append)
    with pytest.raises(sec.SecateursError, match=r"0\.5 is not a budget"):
        sec.prune(network, IMAGE, budget=0.5, on_stage=heard.append)  # type: ignore[arg-type]
    with pytest.raises(sec.SecateursError, match=r"exclude=\['head'\]"):
        sec.prune(network, IMAGE, budget=budget, exclude="head", on_stage=heard.append)
    with pytest.raises(sec.SecateursError, match="finetune=3 cannot be used"):
        sec.prune(network, IMAGE, budget=budget, data=[], finetune=3, on_stage=heard.append)  # type: ignore[arg-type]
    with pytest.raises(sec.SecateursError, match=r"'accuracy' cannot be called"):
        sec.prune(network, IMAGE, budget=budget, evaluate="accuracy", on_stage=heard.append)  # type: ignore[arg-type]
    with pytest.raises(sec.SecateursError, match=r"0\.5 is not a seed"):
        sec.prune(network, IMAGE, budget=budget, seed=0.5, on_stage=heard.append)  # type: ignore[arg-type]
    with pytest.raises(sec.SecateursError, match=r"`.*weight`.*on the device 'meta'"):
        sec.prune(copy.deepcopy(network).to("meta"), IMAGE, budget=budget, on_stage=heard.append)
    with pytest.raises(sec.SecateursError, match=r"the example inputs.*on the device 'meta'"):
        sec.prune(network, IMAGE.to("meta"), budget=budget, on_stage=heard.append)
    with pytest.raises(sec.SecateursError, match="Module"):
        sec.prune("network", IMAGE, budget=budget, on_stage=heard.append)  # type: ignore[arg-type]
    assert heard == []


def test_what_is_no_result_or_no_class_is_refused(network: Net, tmp_path: Path) -> None:
    found = sec.prune(network, IMAGE, budget=sec.Budget(macs=0.7))
    with pytest.raises(sec.InputError, match=r"not result\.model"):
        sec.save(found.model, tmp_path / "cut")  # type: ignore[arg-type]
    folder = sec.save(found, tmp_path / "cut")
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "one file has other permissions"
    for build in (network, "Net"):
        with pytest.raises(sec.InputError, match="not a class or function"):
            sec.load(folder, build=build)  # type: ignore[arg-type]


def test_what_has_no_values_can_be_neither_scored_nor_cut(network: Net) -> None:
    groups = sec.couple(sec.capture(network, IMAGE))
    chosen = sec.choose(groups.graph, groups, sec.score(groups, network, "l1"), sec.Budget(macs=0.5))
    hollow = copy.deepcopy(network).to("meta")
    with pytest.raises(sec.InputError, match="device 'meta'"):
        sec.score(groups, hollow, "l1")
    with pytest.raises(sec.InputError, match="device 'meta'"):
        sec.cut(hollow, chosen, IMAGE)


def test_outputs_without_a_finite_entry_prove_nothing(network: Net) -> None:
    with pytest.raises(sec.ProofError, match="Nothing was compared: no output has a finite entry"):
        sec.prune(network, IMAGE * float("nan"), budget=sec.Budget(macs=0.5))


def test_a_channel_budget_that_rounding_exceeds_is_not_met(network: Net) -> None:
    assert sec.prune(network, IMAGE, budget=sec.Budget(channels=0.3)).met
    wide = sec.prune(network, IMAGE, budget=sec.Budget(channels=0.3), granularity=16)
    assert not wide.met
    assert "keeps 16 of 24" in " ".join(str(wide).split())


def test_a_metric_that_is_not_a_number_is_refused(network: Net) -> None:
    with pytest.raises(sec.SecateursError, match="finite number"):
        sec.prune(network, IMAGE, budget=sec.Budget(macs=0.5), evaluate=lambda model: float("nan"))


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "no data|empty"), ([(torch.zeros(2, 3, 6, 6), torch.zeros(2).long())], "recalibration batch 0")],
)
def test_data_that_does_not_fit_is_refused(network: Net, data: list[object], message: str) -> None:
    with pytest.raises(sec.SecateursError, match=message):
        sec.prune(network, IMAGE, budget=sec.Budget(macs=0.5), data=data)
