"""`measure` and `compare` on real models: what is returned, what is refused. No claim about how long anything takes."""

import gc
import threading
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from secateurs.base.errors import DeviceError, InputError, UnknownNameError
from secateurs.device import Comparison, Device, Measurement, Measurements, compare, devices, find_device, measure
from secateurs.device.measure import Timing, round_orders, time_rounds
from secateurs.device.torch_eager import EagerModel, TorchEager

QUICK = {"rounds": 6, "min_time": 1e-4, "warmup": 1}
X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Noisy(nn.Linear):
    """Adds fresh noise on every call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


def test_one_model_gives_a_measurement_of_its_class_name() -> None:
    result = measure(nn.Linear(4, 3), X, **QUICK)
    assert isinstance(result, Measurement)
    assert (result.name, result.device, result.threads, result.rounds) == ("Linear", "torch", 1, 6)


def test_against_gives_a_comparison() -> None:
    result = measure(nn.Linear(4, 3), X, against=nn.Linear(4, 5), **QUICK)
    assert isinstance(result, Comparison)
    assert result.paired
    assert (result.baseline.name, result.candidate.name) == ("baseline", "candidate")


@pytest.mark.parametrize("call", [measure, compare])
def test_a_dict_gives_all_in_its_order(call) -> None:
    models = {"b": nn.Linear(4, 3), "a": nn.Linear(4, 3), "c": nn.Linear(4, 3)}
    result = call(models, X, **QUICK)
    assert isinstance(result, Measurements)
    assert list(result) == ["b", "a", "c"]
    assert result.comparison("a", "c").paired


def test_a_device_object_is_as_good_as_its_name() -> None:
    assert measure(nn.Linear(4, 3), X, device=TorchEager(), **QUICK).device == "torch"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rounds_share_positions_evenly_and_follow_the_seed(count: int) -> None:
    names = [f"m{i}" for i in range(count)]
    orders = list(round_orders(names, 30, seed=7))
    assert all(sorted(order) == names for order in orders)
    assert orders == list(round_orders(names, 30, seed=7))
    assert all(later == earlier[::-1] for earlier, later in zip(orders[::2], orders[1::2], strict=True))
    if count == 2:
        assert set(Counter(order[0] for order in orders).values()) == {15}
    if count > 1:
        assert orders != list(round_orders(names, 30, seed=8))


def test_a_sample_lasts_at_least_min_time() -> None:
    program = TorchEager().compile(nn.Linear(4, 3), X)
    _, repeats = time_rounds({"only": program}, Timing(rounds=6, min_time=2e-3))
    _, fewer = time_rounds({"only": program}, Timing(rounds=6, min_time=0))
    assert repeats["only"] > fewer["only"] >= 1


def test_random_state_and_garbage_collection_are_as_before() -> None:
    state = torch.get_rng_state()
    measure(nn.Dropout(0.5), X, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert gc.isenabled()


def test_a_model_in_training_mode_is_measured_in_eval_mode() -> None:
    norm = nn.BatchNorm1d(4).train()
    measure(norm, X, **QUICK)
    assert norm.training
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(4))


def test_outputs_that_disagree_with_the_module_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"other numbers than the module.*output.*largest difference"):
        measure(Noisy(4, 3), X, **QUICK)


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'onnxruntime'"):
        measure(nn.Linear(4, 3), X, device="onnxrt")


def test_missing_runtime_names_the_extra() -> None:
    class Elsewhere(Device):
        name = "elsewhere"
        packages = ("a_runtime_that_nobody_has",)
        extra = "elsewhere"

        def environment(self, compiled):
            raise AssertionError("not reached")

        def _compile(self, model, call, threads):
            raise AssertionError("not reached")

    assert not Elsewhere().available()
    assert "a_runtime_that_nobody_has" in Elsewhere().available().reason
    with pytest.raises(DeviceError, match=r"pip install 'secateurs\[elsewhere\]'"):
        measure(nn.Linear(4, 3), X, device=Elsewhere())


def test_no_operator_in_the_runtime_gives_its_message() -> None:
    class Eigenvalues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(DeviceError, match=r"cannot be exported to ONNX.*linalg_eig.*Next:"):
        measure(Eigenvalues(), torch.eye(3), device="onnxruntime")


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 5},
        {"rounds": "many"},
        {"warmup": 0},
        {"min_time": -1},
        {"min_time": float("nan")},
        {"min_time": float("inf")},
        {"tolerance": -1e-3},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": 10_000},
    ],
)
def test_options_that_cannot_be_used(options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        measure(nn.Linear(4, 3), X, **options)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"Linear fails on these inputs.*\(2, 3\)"):
        measure(nn.Linear(4, 3), torch.ones(2, 3), **QUICK)
    with pytest.raises(InputError, match="hold no tensor"):
        measure(nn.Linear(4, 3), (), **QUICK)
    with pytest.raises(InputError, match="not a torch.nn.Module"):
        measure("model", X, **QUICK)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="no model"):
        compare({}, X)
    with pytest.raises(InputError, match="`against`"):
        measure({"a": nn.Linear(4, 3)}, X, against=nn.Linear(4, 3))  # type: ignore[call-overload]


def test_an_input_of_another_shape_names_itself_and_both_shapes() -> None:
    program = TorchEager().compile(nn.Linear(4, 3), X)
    with pytest.raises(InputError, match=r"`input`.*\(2, 4\).*\(5, 4\)"):
        program(torch.ones(5, 4))


def test_a_second_compiled_model_is_independent_of_later_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9))
    program = TorchEager().compile(model, X)
    model.train()
    assert torch.equal(program(X)[0], program(X)[0])


def test_models_with_weights_computed_on_the_fly_compile() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    layer(X)
    with torch.no_grad():
        expected = layer(X)
    torch.testing.assert_close(find_device("onnxruntime").compile(layer, X)(X)[0], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_clock_waits_for_it() -> None:
    layer = nn.Linear(4, 3).cuda()
    program = TorchEager().compile(layer, X.cuda())
    assert isinstance(program, EagerModel)
    assert program.cuda is not None
    assert measure(layer, X.cuda(), **QUICK).environment.accelerator
    assert measure(layer, X.cuda(), device="onnxruntime", **QUICK).environment.accelerator == ""
    assert layer.weight.is_cuda


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    layer = nn.Linear(4, 3)
    layer.lock = threading.Lock()
    with pytest.raises(DeviceError, match=r"Linear cannot be copied.*lock"):
        measure(layer, X, **QUICK)


def test_both_devices_are_registered() -> None:
    assert {"torch", "onnxruntime"} <= set(devices)
