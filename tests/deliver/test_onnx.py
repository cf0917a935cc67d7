"""ONNX files: names, batch sizes, agreement with the module, and everything that is refused."""

import logging

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from secateurs.base.errors import DeviceError, InputError
from secateurs.base.files import WriteError
from secateurs.deliver.onnx import export_onnx

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Two(nn.Module):
    """A keyword input, tied weights and a dict that nests a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.down = nn.Linear(4, 4, bias=False)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor, *, mask: Tensor) -> dict[str, object]:
        hidden = self.up(x) * mask
        return {"hidden": hidden, "scores": (self.down(hidden), hidden.argmax(1)), "x": x, "again": hidden}


class FixedBatch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(3, 2, 2)


class LooksAtBatch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.shape[0] == 3 else 2.0)


class LooksAtData(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


def run(path, **feed: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(item) for item in session.run(None, {name: value.numpy() for name, value in feed.items()})]


def test_the_file_gives_the_modules_numbers_at_any_batch_size(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    written = export_onnx(model, torch.ones(1, 3, 4, 4), tmp_path / "net.onnx")
    assert written.checked == (1, 2)
    for size in (1, 2, 7):
        x = torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            torch.testing.assert_close(run(written.path, input=x)[0], model(x))


def test_names_of_inputs_outputs_and_weights_are_the_models_own(tmp_path) -> None:
    written = export_onnx(Two(), X, tmp_path / "two.onnx", kwargs={"mask": torch.ones(3, 1)})
    assert written.inputs == ("x", "mask")
    assert written.outputs == ("hidden", "scores.0", "scores.1", "output.x", "again")
    assert written.dynamic_batch
    stored = onnx.load(written)
    onnx.checker.check_model(stored)
    weights = {item.name for item in stored.graph.initializer}
    assert "up.bias" in weights
    assert len(weights & {"up.weight", "down.weight"}) == 1  # tied: stored once
    assert {item.type.tensor_type.shape.dim[0].dim_param for item in stored.graph.input} == {"batch"}


def test_fixed_batch(tmp_path) -> None:
    written = export_onnx(FixedBatch(4, 4), X, tmp_path / "fixed.onnx", dynamic_batch=False)
    assert written.checked == (3,)
    assert "fixed batch size" in str(written)
    assert onnx.load(written).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3


def test_scalars_have_no_batch(tmp_path) -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 3

    path = tmp_path / "scalar.onnx"
    assert export_onnx(Scale(), torch.tensor(2.0), path, dynamic_batch=False).checked == ()
    with pytest.raises(InputError, match="dynamic_batch=False"):
        export_onnx(Scale(), torch.tensor(2.0), path)


def test_the_model_is_untouched(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    model[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    export_onnx(model, X, tmp_path / "net.onnx")
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_it_says_nothing(tmp_path, capfd, recwarn, caplog) -> None:
    export_onnx(nn.Linear(4, 4), X, tmp_path / "net.onnx")
    with pytest.raises(DeviceError):
        export_onnx(LooksAtData(4, 4), X, tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_printing_says_what_was_checked(tmp_path) -> None:
    written = export_onnx(nn.Linear(4, 4), X, tmp_path / "net.onnx")
    assert str(written).startswith(f"{tmp_path / 'net.onnx'}: ")
    assert "any batch size; input -> output; differs from the module by" in str(written)
    assert written.bytes == (tmp_path / "net.onnx").stat().st_size
    assert written.difference <= 1e-6
    assert written.opset >= 18


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FixedBatch(4, 4), r"batch size written into it.*runs at batch 3 and fails at 4.*dynamic_batch=False"),
        (LooksAtBatch(4, 4), r"batch size written into it.*dynamic_batch=False"),
        (LooksAtData(4, 4), r"cannot be exported to ONNX.*data-dependent.*float32 of shape \(3, 4\)"),
        (Noisy(4, 4), r"other numbers than the module.*`output`.*largest difference .*tolerance 0.0001"),
        (nn.Linear(4, 4).bfloat16(), r"ONNX Runtime .* cannot load this model"),
    ],
    ids=["fixed batch", "looks at batch", "looks at data", "random", "bfloat16"],
)
def test_refusals_leave_no_file(tmp_path, model: nn.Module, message: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    inputs = X.to(next(model.parameters()).dtype)
    with pytest.raises(DeviceError, match=message):
        export_onnx(model, inputs, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tolerance_that_is_too_tight_is_refused_with_the_difference(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 4))
    with pytest.raises(DeviceError, match=r"largest difference .*e-0\d, allowed 0 "):
        export_onnx(model, X * 3.3, tmp_path / "net.onnx", tolerance=0)


def test_a_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError):
        export_onnx(nn.Linear(4, 4), X, tmp_path / "file" / "net.onnx")


def test_what_is_no_model_call(tmp_path) -> None:
    with pytest.raises(InputError, match=r"not a torch\.nn\.Module"):
        export_onnx("net", X, tmp_path / "net.onnx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hold no tensor"):
        export_onnx(nn.Linear(4, 4), None, tmp_path / "net.onnx")
