"""Neurons that zeros have cut off: which they are, by a search of one's own, and that removing them changes nothing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sec
from secateurs.testing.networks import Program
from secateurs.testing.strategies import networks
from secateurs.testing.unusual import MultiQueryAttention

pytestmark = pytest.mark.medium


def removed(model: nn.Module, x: Tensor, **options: object) -> sec.DeadRemoval:
    """The removal, after checking that it changes no output by more than rounding, and nothing of the model."""
    before = copy.deepcopy(model.state_dict())
    result = sec.remove_dead(model, x, **options)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if options.get("bias") != "drop":
        for inputs in (x, torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(x.dtype)):
            with torch.no_grad():
                torch.testing.assert_close(result.model.eval()(inputs), model.eval()(inputs), rtol=1e-9, atol=1e-9)
        assert result.worst < 1e-9
    return result


def mlp(*widths: int, seed: int = 0, activation: Callable[[], nn.Module] = nn.Sigmoid) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(widths):
        layers += [nn.Linear(one, other), activation()]
    return nn.Sequential(*layers[:-1]).double()


def survivors(model: nn.Sequential) -> list[int]:
    """Hidden widths, by a search along kept weights from the inputs and from the outputs."""
    layers = [module.weight != 0 for module in model if isinstance(module, nn.Linear)]
    forward, backward = [torch.ones(layers[0].shape[1], dtype=torch.bool)], [torch.ones(len(layers[-1])).bool()]
    for weight in layers:
        forward.append((weight & forward[-1]).any(1))
    for weight in reversed(layers):
        backward.append((weight & backward[-1][:, None]).any(0))
    both = zip(forward[1:-1], backward[-2:0:-1], strict=True)
    return [max(1, int((one & other).sum())) for one, other in both]


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_widths_are_those_of_a_search_along_weights(sparsity: float, seed: int) -> None:
    model = mlp(6, 12, 10, 8, 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) > sparsity)
    result = removed(model, torch.randn(3, 6).double())
    found = [module.out_features for module in result.model if isinstance(module, nn.Linear)][:-1]
    assert found == survivors(model)
    assert sum(result.removed.values()) == 30 - sum(found)
    again = removed(result.model, torch.randn(3, 6).double())
    assert again.removed == {}
    assert again.plan.empty


def test_one_removal_kills_the_next_and_constants_travel_along() -> None:
    """Neuron 0 of layer 1 has no inputs; neuron 0 of layer 2 reads only it; neuron 0 of layer 3 only that."""
    model = mlp(4, 3, 3, 3, 2)
    with torch.no_grad():
        model[0].weight[0] = 0.0
        for layer in (model[2], model[4]):
            layer.weight[0, 1:] = 0.0
            layer.bias.fill_(0.7)
    result = removed(model, torch.randn(2, 4).double())
    assert [result.model[index].out_features for index in (0, 2, 4)] == [2, 2, 2]
    assert result.form == "native"
    chain = torch.tensor(0.0, dtype=torch.float64)
    for weight, bias in ((0.0, model[0].bias[0]), (model[2].weight[0, 0], 0.7), (model[4].weight[0, 0], 0.7)):
        chain = torch.sigmoid(weight * chain + bias)
    expected = model[6].bias + model[6].weight[:, 0] * chain
    torch.testing.assert_close(result.model[6].bias, expected, rtol=1e-12, atol=1e-12)
    once = sec.cut(model, result.plan, torch.randn(2, 4).double())
    assert torch.equal(once[2].weight, result.model[2].weight)


def test_layers_without_a_bias_get_one() -> None:
    """Two rounds: the second begins with a parameter that the original does not have."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 2, bias=False)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[2].weight[0, 1:] = 0.0
    x = torch.randn(2, 4).double()
    result = removed(model, x)
    assert [result.model[0].out_features, result.model[2].out_features] == [4, 4]
    assert result.model[4].bias is not None
    assert torch.equal(sec.cut(model, result.plan, x)[4].weight, result.model[4].weight)


def test_unread_neurons_go_back_to_front_whatever_they_put_out() -> None:
    model = mlp(4, 3, 3, 2)
    with torch.no_grad():
        model[4].weight[:, 1] = 0.0
        model[2].weight[[0, 2], 2] = 0.0
    result = removed(model, torch.randn(2, 4).double())
    assert [result.model[0].out_features, result.model[2].out_features] == [2, 2]
    assert result.left == ()


def test_dropped_constants_are_lost() -> None:
    model = mlp(4, 3, 2)
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].bias[0] = 2.0
    result = removed(model, torch.randn(2, 4).double(), bias="drop")
    assert torch.equal(result.model[2].bias, model[2].bias)
    assert result.worst > 1e-3


def test_one_neuron_of_a_dead_layer_stays() -> None:
    model = mlp(4, 5, 2)
    with torch.no_grad():
        model[0].weight.zero_()
    result = removed(model, torch.randn(2, 4).double())
    assert result.model[0].out_features == 1
    assert result.removed == {"0": 4}


class Residual(nn.Module):
    """A stem and two blocks that share eight channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 8, 1)
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.first(x.relu())
        x = x + self.second(x.relu())
        return self.head(x.sigmoid())  # type: ignore[no-any-return]


IMAGE = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()


def test_a_coupled_channel_is_dead_only_if_all_its_producers_are_zero() -> None:
    model = Residual()
    with torch.no_grad():
        for layer, channels in ((model.stem, [0, 1, 2]), (model.first, [1, 2, 3]), (model.second, [1, 2, 4])):
            layer.weight[channels] = 0.0
    result = removed(model, IMAGE)
    assert result.model.stem.out_channels == 6
    assert result.plan.removed["stem.weight"][0] == (1, 2)


def test_a_coupled_channel_is_unread_only_if_all_its_consumers_are_zero() -> None:
    model = Residual()
    with torch.no_grad():
        for layer, channels in ((model.first, [0, 1, 2]), (model.second, [1, 2, 3]), (model.head, [1, 2, 4])):
            layer.weight[:, channels] = 0.0
    result = removed(model, IMAGE)
    assert result.plan.removed["stem.weight"][0] == (1, 2)


def test_a_constant_in_front_of_zero_padding_stays_unless_it_is_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1)).double()
    with torch.no_grad():
        model[0].weight[:3] = 0.0
        model[0].bias[:3] = torch.tensor([0.5, -0.5, 0.0])
    result = removed(model, IMAGE)
    assert result.plan.removed["0.weight"][0] == (1, 2)
    (reason,) = result.left
    assert "exactly" in reason
    assert "`2`" in reason


def test_batch_norm_and_depthwise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6),
        nn.Sigmoid(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[4]):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.copy_(torch.rand(6) + 0.5)
        model[0].weight[:2] = 0.0
        model[3].weight[1:4] = 0.0
        model[6].weight[:, 5] = 0.0
        model[8].weight[2] = 0.0
    result = removed(model, IMAGE)
    assert result.plan.removed["0.weight"][0] == (1, 2, 3, 5)  # 0 puts a constant through a filter that is not zero
    assert result.plan.removed["6.weight"][0] == (2,)


def test_what_is_written_in_place_counts() -> None:
    """A channel that a zero filter produces, and another layer adds to in place."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.other, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            y.add_(self.other(x))
            return self.head(y)  # type: ignore[no-any-return]

    model = Net().double()
    with torch.no_grad():
        model.one.weight[:3] = 0.0
        model.other.weight[2:4] = 0.0
    result = removed(model, torch.randn(3, 4).double())
    assert result.plan.removed["one.weight"][0] == (2,)


def test_a_norm_over_the_channels_keeps_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].weight[:3] = 0.0
        model[2].weight[:, 3:5] = 0.0
    assert removed(model, torch.randn(2, 4).double()).removed == {}


def test_heads_that_nothing_reads() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, dropout=0.0, norm_first=True).double().eval()
    with torch.no_grad():
        model.self_attn.out_proj.weight[:, 2:4] = 0.0
        model.linear2.weight[:, [3, 5]] = 0.0
        model.linear1.weight[7] = 0.0
    result = removed(model, torch.randn(2, 3, 8).double())
    assert sorted(result.removed.values()) == [1, 3]


def test_units_that_only_a_cut_has_made_stay_and_all_others_go() -> None:
    """Of three heads one is left; only then can its columns go, which no plan for the original can say."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.mlp = MultiQueryAttention(4, 3, 2), mlp(4, 3, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(self.attend(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        model.attend.proj.weight[:, 2:] = 0.0
        model.attend.proj.weight[:, 1] = 0.0
        model.mlp[0].weight[0] = 0.0
        model.mlp[2].weight[0, 1:] = 0.0
    x = torch.randn(2, 5, 4).double()
    result = removed(model, x)
    assert result.removed == {"attend.q": 2, "mlp.0": 1, "mlp.2": 1}
    assert any("no units of the original" in reason for reason in result.left)
    replayed = sec.cut(model, result.plan, x).state_dict()
    assert {name: item.shape for name, item in replayed.items()} == {
        name: item.shape for name, item in result.model.state_dict().items()
    }
    assert removed(result.model, x).removed == {"attend.kv": 1}


def test_a_recurrent_layer_beside_zeros_is_a_producer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.cell, self.head = nn.Linear(3, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return self.head(x + self.cell(x)[0])  # type: ignore[no-any-return]

    model = Net().double()
    with torch.no_grad():
        model.inner.weight[:2] = 0.0
    assert removed(model, torch.randn(2, 5, 3).double()).removed == {}


def test_after_training_with_zeros() -> None:
    """The last step of Han's pipeline: prune, retrain, remove."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3))
    x = torch.randn(64, 8)
    data = [(x, x[:, :3].argmax(1))]
    config = sec.FineTune(epochs=30, lr=0.2, progress=False, sparsity=sec.Sparsity(0.88))
    trained = sec.finetune(model, data, config).model
    result = sec.remove_dead(trained, x)
    assert result.removed["0"] > 5
    assert trained(x).std(0).min() > 0, "something is left"
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), trained(x), rtol=1e-5, atol=1e-5)
    assert "dead units removed" in str(result)


@settings(max_examples=60)
@given(networks(max_steps=6), st.integers(0, 2**16), st.floats(0.3, 0.95))
def test_random_networks_answer_as_before(program: Program, seed: int, sparsity: float) -> None:
    model, inputs = program.build()
    generator = torch.Generator().manual_seed(seed)
    model.double()
    inputs = tuple(item.double() if item.is_floating_point() else item for item in inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                rows = torch.rand(len(parameter), generator=generator) > sparsity
                parameter.mul_(rows.reshape(-1, *[1] * (parameter.dim() - 1)))
    model.eval()
    result = sec.remove_dead(model, inputs)
    with torch.no_grad():
        ours, theirs = result.model.eval()(*inputs), model(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(sec.UnknownNameError, match="did you mean 'propagate'"):
        sec.remove_dead(mlp(4, 3, 2), torch.randn(1, 4).double(), bias="propagte")
