"""Packed files that hold the program: they run without the class, and still load into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import secateurs as sec
from secateurs.cli.app import app
from secateurs.cli.pack import called_with
from secateurs.cut.form import GraphModule


class Positions(nn.Module):
    """Tied embedding and head, a table of positions that the code makes, keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.mix = nn.Linear(8, 8)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        angles = torch.arange(tokens.shape[1])[:, None] / torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        y: Tensor = self.head(torch.relu(self.mix(self.embed(tokens) + angles.sin())) * scale)
        return y


def positions() -> Positions:
    torch.manual_seed(0)
    return Positions().eval()


CALL = {"tokens": torch.tensor([[1, 2, 3, 4]]), "scale": torch.tensor([1.5])}


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))


def test_a_file_with_its_program_runs_without_the_class_and_loads_into_it(tmp_path: Path) -> None:
    model, x = convolutions().train(), torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sec.pack(model, tmp_path / "m.sec", example_inputs=x[:1])
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    alone, own = sec.unpack(tmp_path / "m.sec"), sec.unpack(tmp_path / "m.sec", convolutions)
    assert isinstance(alone, GraphModule) and isinstance(own, nn.Sequential) and not alone.training
    assert torch.equal(own(x), model.eval()(x))
    torch.testing.assert_close(alone(x), own(x))
    assert dict(alone.named_parameters()).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("how", [{}, {"share": 4}, {"integers": 6}])
def test_shared_and_integer_weights_tied_ones_and_constants(tmp_path: Path, how: dict[str, int]) -> None:
    model = positions()
    sec.pack(model, tmp_path / "m.sec", example_inputs=CALL, **how)
    sec.pack(model, tmp_path / "plain.sec", **how)
    alone, own, plain = (
        sec.unpack(tmp_path / "m.sec"),
        sec.unpack(tmp_path / "m.sec", Positions),
        sec.unpack(tmp_path / "plain.sec", Positions),
    )
    assert isinstance(alone, GraphModule) and isinstance(own, Positions) and isinstance(plain, Positions)
    assert own.head.weight is own.embed.weight
    for name, tensor in plain.state_dict().items():
        assert torch.equal(own.state_dict()[name], tensor)
    torch.testing.assert_close(alone(**CALL), plain(**CALL))


def test_what_was_quantised_before(tmp_path: Path) -> None:
    model, x = convolutions().eval(), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    quantised = sec.quantise_weights(model, 5)
    sec.pack(quantised, tmp_path / "m.sec", example_inputs=x)
    alone = sec.unpack(tmp_path / "m.sec")
    assert isinstance(alone, GraphModule)
    torch.testing.assert_close(alone(x), quantised.model(x) if hasattr(quantised, "model") else quantised(x))


def test_a_state_dict_and_wrong_inputs_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(sec.InputError, match="A state dict has no program"):
        sec.pack(convolutions().state_dict(), tmp_path / "m.sec", example_inputs=torch.zeros(1, 3, 6, 6))
    with pytest.raises(sec.CaptureError, match="fails on the example inputs"):
        sec.pack(convolutions(), tmp_path / "m.sec", example_inputs=torch.zeros(1, 4, 6, 6))
    assert not list(tmp_path.iterdir())


def test_a_class_that_does_not_fit_is_still_refused(tmp_path: Path) -> None:
    sec.pack(positions(), tmp_path / "m.sec", example_inputs=CALL)
    with pytest.raises(sec.ArtifactError, match="is in the file and not in the class|is in the class and not in the"):
        sec.unpack(tmp_path / "m.sec", convolutions)


def test_the_command_line_takes_shapes(tmp_path: Path) -> None:
    factory, out = f"{__name__}:convolutions", str(tmp_path / "m.sec")
    done = CliRunner().invoke(app, ["pack", "--model", factory, "--out", out, "--input", "1x3x6x6"])
    assert done.exit_code == 0, done.output
    alone = sec.unpack(out)
    assert isinstance(alone, GraphModule) and alone(torch.zeros(2, 3, 6, 6)).shape == (2, 5)
    with pytest.raises(sec.InputError, match="by position or by name"):
        called_with(["1x3x6x6", "mask=1x3"], 0)
    assert called_with(None, 0) is None and list(called_with(["mask=1x3"], 0)) == ["mask"]
