"""Weight sharing of one tensor, and training what is shared."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train.networks import convolutional, images, loader, plain, points, same, state

from secateurs.base.errors import InputError, UnknownNameError
from secateurs.pack.coded import Coded, Scaled, Shared
from secateurs.pack.kmeans import STARTS, cluster
from secateurs.pack.shared_model import SharedModel, share_weights
from secateurs.pack.sharing import rate_of_sharing, share
from secateurs.sparsity import masks, sparsify
from secateurs.train.finetune import FineTune, finetune


def sparse(model: nn.Module, seed: int = 0) -> nn.Module:
    """Half of all weights zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < 0.5)
    return model


def weight_of(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach()


def test_rate_by_hand() -> None:
    assert rate_of_sharing(16, 4, 32) == pytest.approx(3.2)


def test_zeros_are_not_kept_and_stay() -> None:
    tensor = torch.tensor([[0.0, 1.0, 1.5], [4.0, 0.0, -0.0]])
    found = share(tensor, 1)
    assert found.kept is not None and found.kept.tolist() == [[False, True, True], [True, False, False]]
    assert isinstance(found.content, Shared) and found.content.codes.tolist() == [0, 0, 1]
    assert found.decode().tolist() == [[0, 1.25, 1.25], [4, 0, 0]]
    assert not np.signbit(found.decode()).any()


@pytest.mark.parametrize("start", list(STARTS))
def test_a_tensor_without_zeros_is_kept_whole(start: str) -> None:
    tensor = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = share(tensor, 3, start=start)
    assert found.kept is None and found.shape == (5, 3, 2, 2)
    assert len(np.unique(found.decode())) <= 8
    alone = cluster(tensor.flatten().numpy(), 8, start=start)
    assert (found.decode().reshape(-1) == alone.codebook[alone.codes]).all()


def test_sharing_by_importance_is_better_by_importance() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor, matter = torch.randn(40, 50, generator=generator), torch.rand(40, 50, generator=generator) ** 6
    errors = [
        float((matter * (tensor - torch.from_numpy(share(tensor, 3, importance=given).decode())) ** 2).sum())
        for given in (None, matter)
    ]
    assert errors[1] < 0.95 * errors[0]


def test_half_precision() -> None:
    found = share(torch.randn(8, 8).to(torch.bfloat16), 2)
    assert found.dtype == "bfloat16"


def test_without_bits_kernels_have_eight_and_matrices_five() -> None:
    model = nn.Sequential(nn.Conv2d(9, 40, 3), nn.Conv1d(40, 20, 1), nn.Linear(20, 30), nn.LSTM(30, 4))
    found = {name: len(tensor.content.codebook) for name, tensor in share_weights(model).coded().items()}  # type: ignore[union-attr]
    lstm = {"3.weight_ih_l0": 32, "3.weight_hh_l0": 32}
    assert found == {"0.weight": 256, "1.weight": 256, "2.weight": 32} | lstm
    by_class = {nn.Conv2d: 8, nn.Conv1d: 8, nn.Module: 5}
    same_codes = share_weights(model, by_class).coded()
    for name, tensor in share_weights(model).coded().items():
        assert np.array_equal(tensor.decode(), same_codes[name].decode())


def test_bits_by_class_come_after_names() -> None:
    model = convolutional()
    given = {nn.Conv2d: 2, "4": 3, nn.Module: 1}
    counts = {name: len(tensor.content.codebook) for name, tensor in share_weights(model, given).coded().items()}  # type: ignore[union-attr]
    assert counts == {"0.weight": 4, "4.weight": 8, "8.weight": 2}
    with pytest.raises(UnknownNameError, match="No weight is of a Bilinear"):
        share_weights(model, {nn.Bilinear: 3})
    for bits in (True, {7: 3}, {"0": True}):
        with pytest.raises(InputError, match="Bits are a whole number"):
            share_weights(model, bits)


def test_refusals() -> None:
    tensor = torch.ones(2, 2)
    for bits in (0, 17, True):
        with pytest.raises(InputError):
            share(tensor, bits)
    with pytest.raises(InputError, match="1 not finite"):
        share(torch.tensor([1.0, float("nan")]), 2)
    with pytest.raises(InputError, match="importance"):
        share(tensor, 2, importance=-tensor)
    with pytest.raises(UnknownNameError, match=r"did you mean '0.weight'"):
        share_weights(plain(), {"0.wieght": 2})
    with pytest.raises(InputError, match="No weight is chosen"):
        share_weights(plain(), {"0": None})
    with pytest.raises(UnknownNameError, match="importance"):
        share_weights(plain(), {"0": 2}, importance={"2.weight": torch.ones(3, 6)})
    with pytest.raises(InputError, match="does not share"):
        SharedModel(plain(), {"0.weight": Coded((6, 4), Scaled(np.ones(24, np.int64), np.ones(6, np.float32), 8))})


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights() -> None:
    model = sparse(convolutional()).eval()
    shared = share_weights(model, 2)
    inputs, targets = images(8)
    functional.cross_entropy(shared(inputs), targets).backward()
    dense = shared.plain()
    functional.cross_entropy(dense(inputs), targets).backward()
    for codebook, (name, tensor) in zip(shared.codebooks, shared.coded().items(), strict=True):
        assert isinstance(tensor.content, Shared) and tensor.kept is not None
        slopes = dense.get_parameter(name).grad.numpy()[tensor.kept].astype(np.float64)
        sums = [slopes[tensor.content.codes == code].sum() for code in range(len(codebook))]
        np.testing.assert_allclose(codebook.grad.numpy(), sums, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_training_keeps_codes_and_zeros_and_lowers_the_loss(kind: str) -> None:
    model = sparse(plain(width=16))
    before = state(model)
    shared = share_weights(model, 2)
    inputs, targets = points(64)
    first = shared.coded()
    optimizer = torch.optim.SGD(shared.parameters(), 0.1, 0.9, weight_decay=1e-3) if kind == "sgd" else None
    optimizer = optimizer or torch.optim.Adam(shared.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.cross_entropy(shared(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    last = shared.coded()
    assert losses[-1] < 0.8 * losses[0]
    assert same(before, state(model))
    for name in first:
        assert (first[name].content.codes == last[name].content.codes).all()  # type: ignore[union-attr]
        assert (last[name].content.codebook != first[name].content.codebook).any()  # type: ignore[union-attr]
        assert (last[name].decode()[weight_of(model, name).numpy() == 0] == 0).all()


def test_plain_is_the_class_with_the_names_and_the_outputs() -> None:
    model = sparse(convolutional()).eval()
    model[4].weight.requires_grad_(False)
    shared = share_weights(model, {"0": 2, "4.weight": 1, "*": 3})
    back = shared.plain()
    inputs = images(4)[0]
    assert type(back) is type(model) and list(back.state_dict()) == list(model.state_dict())
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(back(inputs), shared(inputs))
    assert not back.training and not any(module.training for module in back.modules())
    coded = shared.coded()
    assert {name: len(np.unique(item.decode()[item.kept])) for name, item in coded.items()} == {
        "0.weight": 4, "4.weight": 2, "8.weight": 8,
    }  # fmt: skip
    for name, item in coded.items():
        assert (weight_of(back, name).numpy() == item.decode()).all()


def test_zeros_are_made_before_weights_are_shared_not_after() -> None:
    """Masks would be on weights that the forward pass never reads."""
    shared = share_weights(plain(), 3)
    with pytest.raises(InputError, match=r"looked up in codebooks.*plain\(\)"):
        masks(shared, 0.5)
    with pytest.raises(InputError, match="looked up in codebooks"):
        sparsify(nn.Sequential(shared), 0.5)
    assert masks(shared.plain(), 0.5)


def test_batch_norms_learn_and_only_what_is_shared_is_a_codebook() -> None:
    shared = share_weights(convolutional(), {"4": 3})
    assert sum(p.numel() for p in shared.codebooks) == 8
    before = state(shared.plain())
    shared.train()(images(8)[0])
    after = state(shared.plain())
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert torch.equal(before["4.weight"], after["4.weight"])


def test_finetune_trains_it(tmp_path: object) -> None:
    model = sparse(plain(width=12)).eval()
    shared = share_weights(model, 2)
    data = loader(points(48))
    result = finetune(shared, data, FineTune(epochs=4, lr=0.1, clip_norm=1.0))
    trained = result.model
    assert isinstance(trained, SharedModel)
    assert result.history[-1].loss < result.history[0].loss
    assert same(state(shared), state(share_weights(model, 2)))
    for name, item in trained.coded().items():
        assert (item.decode()[weight_of(model, name).numpy() == 0] == 0).all()
        assert (weight_of(trained.plain(), name).numpy() == item.decode()).all()


def test_tied_weights_share_one_codebook() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(x)))

    model = Tied()
    shared = share_weights(model, 2)
    assert len(shared.codebooks) == 1
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    back = shared.plain()
    assert back.one.weight is back.two.weight
    assert torch.equal(shared(x), back(x))
    shared(x).sum().backward()
    back(x).sum().backward()
    found = shared.codebooks[0].grad
    assert float(found.sum()) == pytest.approx(float(back.one.weight.grad.sum()), rel=1e-4)


def test_a_recurrent_layer_reads_its_codebook() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True)
    shared = share_weights(model, 1)
    x = torch.randn(2, 5, 3)
    assert torch.equal(shared(x)[0], shared.plain()(x)[0])
    assert not torch.equal(shared(x)[0], model(x)[0])
    shared(x)[0].sum().backward()
    assert all(bool((codebook.grad != 0).all()) for codebook in shared.codebooks)


def test_a_copy_is_independent() -> None:
    shared = share_weights(plain(), 2)
    other = copy.deepcopy(shared)
    with torch.no_grad():
        other.codebooks[0].add_(1)
    assert not torch.equal(shared(points()[0]), other(points()[0]))
