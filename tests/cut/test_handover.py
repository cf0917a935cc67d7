"""What a removed channel still puts out goes to its consumers: against hand-computed values and a run of the original
graph in which the removed channels read as constants.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sec
from secateurs.capture.program import Program
from secateurs.couple.sites import consumption_sites
from secateurs.cut.handover import HandOver, hand_over
from secateurs.deliver.tensors import give_biases, load_into
from secateurs.testing.chain import random_kept
from secateurs.testing.networks import random_network

pytestmark = pytest.mark.medium


def cut_of(model: nn.Module, x: Tensor, keep: dict[str, list[int]], form: str = "auto") -> sec.CutResult:
    graph = sec.capture(model, x)
    groups = sec.couple(graph)
    return sec.cut_detailed(model, sec.plan(graph, groups, keep=keep), x, form=form)


def handed(model: nn.Module, x: Tensor, keep: dict[str, list[int]], form: str = "auto", **options: object) -> HandOver:
    before = copy.deepcopy(model.state_dict())
    result = hand_over(cut_of(model, x, keep, form), model, x, **options)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return result


def with_constant(model: nn.Module, x: Tensor, keep: dict[str, list[int]], constants: dict[str, Tensor]) -> Tensor:
    """The original graph, where every consumer reads the group's constant at the units that are not kept."""
    graph = sec.capture(model, x)
    groups = sec.couple(graph)
    reads: dict[int, Callable[[int, Tensor], Tensor]] = {}
    for name, sites in consumption_sites(groups).items():
        for site in sites:
            gone = [i for i, unit in enumerate(site.units) if unit >= 0 and unit not in keep.get(name, range(10**6))]

            def read(value: int, tensor: Tensor, site=site, gone=gone, name=name) -> Tensor:  # type: ignore[no-untyped-def]
                if value != site.value:
                    return tensor
                held = constants[name][site.units[gone]].view([-1 if d == site.dim else 1 for d in range(tensor.dim())])
                return tensor.index_copy(
                    site.dim, torch.tensor(gone), held.expand_as(tensor.index_select(site.dim, torch.tensor(gone)))
                )

            if gone:
                reads[site.node] = read
    program = Program(graph, {**dict(model.named_parameters()), **dict(model.named_buffers()), **graph.constants})
    result: Tensor = program.output(program.run(program.begin([x]), reads=reads))
    return result


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)).double().eval()


def convolutional(padding: int = 0, bias: bool = True, norm: bool = False, groups: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 4, 3, 1, padding, 1, groups, bias)]
    layers += [nn.BatchNorm2d(4)] if norm else []
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(4, 2, 1)).double().eval()
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(4) + 0.5)  # type: ignore[union-attr]
    return model


def phi_of_beta(model: nn.Module) -> Tensor:
    """c_k = sigmoid(beta_k + gamma_k (b_k - mu_k) / sqrt(var_k + eps)), by hand."""
    conv, norm = model[0], model[1]  # type: ignore[index]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return torch.sigmoid(norm.bias + scale * (conv.bias - norm.running_mean))


X = torch.linspace(-1, 1, 2 * 2 * 7 * 7, dtype=torch.float64).view(2, 2, 7, 7).sin()


def test_a_constant_of_one_through_ones_with_padding_gives_4_6_4() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1)).double().eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))
        model[1].weight.fill_(1.0)
        model[1].bias.zero_()
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    keep = {"0": [0]}
    bias = {p: handed(model, x, keep, padding=p).model.get_parameter("1.bias").item() for p in ("interior", "mean")}
    assert bias["interior"] == pytest.approx(9.0, abs=1e-12)
    assert bias["mean"] == pytest.approx(49 / 9, abs=1e-12)
    mapped = handed(model, x, keep, "graph", padding="map")
    expected = torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.float64)
    (buffer,) = [tensor for tensor in mapped.model.buffers() if tensor.numel() == 9]
    torch.testing.assert_close(buffer[0, 0], expected)
    assert mapped.exact and mapped.worst < 1e-12


def test_propagate_reproduces_a_neuron_without_weights_and_drop_does_not() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 0
    x = torch.randn(5, 4, dtype=torch.float64)
    keep = {"0": [0, 1, 3, 4, 5]}
    result = handed(model, x, keep)
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-6)
    assert result.exact and result.worst < 1e-7 and result.handed == 1
    dropped = handed(model, x, keep, bias="drop")
    expected = model(x) - 0.5 * model[2].weight[:, 2]  # sigmoid(0) is missing
    torch.testing.assert_close(dropped.model(x), expected, rtol=0, atol=1e-12)
    assert dropped.handed == 0


def test_a_batch_norm_that_leaves_nothing_hands_nothing_over() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.0), nn.ReLU(), nn.Conv2d(2, 1, 1)).double().eval()
    with torch.no_grad():
        for tensor, number in ((model[1].weight, 2), (model[1].bias, 1), (model[1].running_mean, 3)):
            tensor.fill_(number)
        model[1].running_var.fill_(4.0)
        model[0].bias.zero_()
    result = handed(model, torch.randn(1, 1, 3, 3, dtype=torch.float64), {"0": [0]})
    assert result.handed == 0  # relu(1 + 2 * (0 - 3) / 2) = relu(-2)
    assert torch.equal(result.model[3].bias, model[3].bias)  # type: ignore[index]


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("kind", ["bias", "norm", "new", "grouped"])
def test_without_padding_every_consumer_is_exact(kind: str, form: str) -> None:
    model = convolutional(bias=kind in ("bias", "grouped"), norm=kind == "norm", groups=2 if kind == "grouped" else 1)
    constant = phi_of_beta(model)
    name = sec.couple(sec.capture(model, X)).free[0].name
    units = sec.couple(sec.capture(model, X))[name].size
    keep = {name: list(range(units - 1))}
    result = handed(model, X, keep, form)
    assert result.exact and result.worst < 1e-7 and not result.dropped
    if kind != "grouped":
        torch.testing.assert_close(result.model(X), with_constant(model, X, keep, {name: constant}), rtol=0, atol=1e-6)
    if kind == "norm":
        lost = (model[3].weight[:, 3].sum((1, 2)) * constant[3]).detach()  # type: ignore[index]
        torch.testing.assert_close(result.model.get_buffer("4.running_mean"), model[4].running_mean - lost)  # type: ignore[index]
    if kind == "new":
        assert result.model.get_parameter("3.bias").requires_grad
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_a_map_is_exact_with_padding_and_can_be_saved_and_cut_again(bias: bool) -> None:
    model = convolutional(padding=1, bias=bias)
    keep = {"0": [0, 2]}
    expected = with_constant(model, X, keep, {"0": phi_of_beta(model)})
    result = handed(model, X, keep, "graph", padding="map")
    torch.testing.assert_close(result.model(X), expected, rtol=0, atol=1e-6)
    again = type(result.model).from_json(result.model.to_json(), result.model.state_dict())  # type: ignore[operator]
    assert torch.equal(again(X), result.model(X))
    second = sec.couple(sec.capture(result.model, X))
    small = cut_of(result.model, X, {group.name: list(range(group.size - 1)) for group in second.free})
    assert small.proof.worst < 1e-7
    assert any(group.size == 4 for group in second.free)  # the channels behind the map
    with pytest.raises(sec.InputError, match='form="graph"'):
        handed(model, X, keep, padding="map")


@pytest.mark.parametrize("padding", ["interior", "mean"])
def test_one_number_for_a_padded_consumer_is_off_by_at_most_the_missing_taps(padding: str) -> None:
    model = convolutional(padding=1)[:4].double()  # type: ignore[index]
    keep = {"0": [0, 2, 3]}
    constant = phi_of_beta(model)
    expected = with_constant(model, X, keep, {"0": constant})
    result = handed(model, X, keep, padding=padding)
    error = (result.model(X) - expected).abs()
    assert not result.exact
    assert (error.max() / expected.abs().max()).item() == pytest.approx(result.worst)
    bound = model[3].weight[:, 1].abs().sum((1, 2)) * constant[1]
    assert (error.amax((0, 2, 3)) <= bound).all()
    inner = error[:, :, 1:-1, 1:-1].max().item()
    assert (inner < 1e-12) == (padding == "interior")
    if padding == "mean":
        lost = F.conv2d(torch.full_like(X[:1, :1, :5, :5], constant[1].item()), model[3].weight[:, 1:2], padding=1)
        torch.testing.assert_close(result.model[3].bias - model[3].bias, lost.mean((0, 2, 3)))  # type: ignore[index]


class Twice(nn.Module):
    """One hidden layer that a linear layer behind a flattening and a second convolution read."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(2, 4, 3)
        self.side = nn.Conv2d(4, 3, 1, bias=False)
        self.flat = nn.Linear(4 * 25, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.hidden(x))
        result: Tensor = self.flat(y.flatten(1)).sum(1) + self.side(y).sum((1, 2, 3))
        return result


def test_every_consumer_of_a_group_gets_its_share_flattened_or_not() -> None:
    torch.manual_seed(0)
    model = Twice().double().eval()
    keep = {"hidden": [1, 3]}
    constant = torch.sigmoid(model.hidden.bias)
    result = handed(model, X, keep)
    expected = with_constant(model, X, keep, {"hidden": constant})
    torch.testing.assert_close(result.model(X), expected, rtol=0, atol=1e-6)
    assert result.handed == 2 * 25 + 2
    gone = [c * 25 + i for c in (0, 2) for i in range(25)]
    share = model.flat.weight[:, gone] @ constant[[0, 2]].repeat_interleave(25)
    torch.testing.assert_close(result.model.get_parameter("flat.bias"), model.flat.bias + share)


def test_the_mean_over_data_is_the_best_constant() -> None:
    model = mlp()
    batches = [torch.randn(8, 4, dtype=torch.float64) for _ in range(3)]
    keep = {"0": [0, 1, 2, 5]}
    means = torch.sigmoid(model[0](torch.cat(batches))).mean(0)
    result = handed(model, batches[0], keep, bias="propagate_mean", data=batches)
    torch.testing.assert_close(
        result.model(batches[0]), with_constant(model, batches[0], keep, {"0": means}), rtol=0, atol=1e-6
    )
    error = (result.model(torch.cat(batches)) - model(torch.cat(batches))).mean(0)
    torch.testing.assert_close(error, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


class Padded(nn.Module):
    """Average pooling that counts padded zeros: what was constant differs at the border."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.first(x))
        result: Tensor = self.second(F.avg_pool2d(y, 3, 1, padding=1))
        return result


class Gated(nn.Module):
    """A gate that depends on the image: constant over positions, not over images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.second = nn.Conv2d(2, 4, 3), nn.Linear(2, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.first(x)) * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None].exp() * x.mean()
        result: Tensor = self.second(y)
        return result


@pytest.mark.parametrize(("model", "operator"), [(Padded(), "avg_pool2d"), (Gated(), "mul")])
@pytest.mark.parametrize("images", [1, 2])
def test_what_is_no_constant_is_dropped_and_the_line_is_named(model: nn.Module, operator: str, images: int) -> None:
    model = model.double().eval()
    cutting = cut_of(model, X[:images], {"first": [0, 1]})
    with pytest.warns(UserWarning, match=rf"2 removed channels .*`{operator}.*test_handover.py"):
        result = hand_over(cutting, model, X[:images])
    assert len(result.dropped) == 1 and result.handed == 0
    assert torch.equal(result.model(X[:images]), cutting.model(X[:images]))


def test_a_native_model_with_a_new_bias_is_loaded_again() -> None:
    model = convolutional(bias=False)
    result = handed(model, X, {"0": [0, 2]})
    again = cut_of(model, X, {"0": [0, 2]}).model
    give_biases(again, result.model.state_dict())
    load_into(again, result.model.state_dict(), "here")
    assert torch.equal(again(X), result.model(X))


def test_names_and_missing_data_are_refused() -> None:
    model, x = mlp(), torch.randn(2, 4, dtype=torch.float64)
    cutting = cut_of(model, x, {"0": [0]})
    with pytest.raises(sec.UnknownNameError, match="did you mean 'propagate'"):
        hand_over(cutting, model, x, bias="propagat")
    with pytest.raises(sec.UnknownNameError, match="interior, mean, map"):
        hand_over(cutting, model, x, padding="zero")
    with pytest.raises(sec.InputError, match="needs data"):
        hand_over(cutting, model, x, bias="propagate_mean")


def test_a_trained_model_is_refused() -> None:
    model, x = mlp(), torch.randn(2, 4, dtype=torch.float64)
    cutting = cut_of(model, x, {"0": [0, 1]})
    with torch.no_grad():
        cutting.model[2].weight.add_(0.1)  # type: ignore[index]
    with pytest.raises(sec.ProofError, match="right after the cut"):
        hand_over(cutting, model, x)


@pytest.mark.medium
@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["auto", "graph"]), st.sampled_from(["interior", "mean", "map"]))
def test_random_networks_hand_over_what_they_can(seed: int, form: str, padding: str) -> None:
    """Every exact hand-over is proven inside; here the networks come from nowhere in particular."""
    model, inputs = random_network(seed)
    graph = sec.capture(model, inputs)
    groups = sec.couple(graph)
    plan = sec.plan(graph, groups, keep=random_kept(seed)(groups))
    cutting = sec.cut_detailed(model, plan, inputs, groups=groups, form=form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = hand_over(cutting, model, inputs, groups=groups, padding=padding if form == "graph" else "mean")
    if result.exact:
        assert result.worst <= 1e-3
