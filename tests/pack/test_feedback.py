"""Error feedback against the least squares it stands for, and moments against what hooks see."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train.networks import convolutional, images

from secateurs.base.errors import InputError, TrainError
from secateurs.pack import feedback
from secateurs.pack.chosen import with_coded
from secateurs.pack.coded import Coded
from secateurs.pack.feedback import damped, fitted_codebook, fitted_scales, output_error, settled
from secateurs.pack.integers import quantise, quantise_weights
from secateurs.pack.moments import input_moments
from secateurs.pack.shared_model import share_weights
from secateurs.pack.sharing import share

RIDGE = 0.01


def problem(outputs: int, inputs: int, groups: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and moments of inputs that go together."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(groups, 200, inputs)) @ random.normal(size=(groups, inputs, inputs))
    return random.normal(size=(outputs, inputs)), np.einsum("gni,gnj->gij", mixed, mixed) / 200


def to_integers(column: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    codes = np.rint(column * 2).astype(np.int64)
    return codes, codes / 2


def one_after_the_other(weights: np.ndarray, kept: np.ndarray, gram: np.ndarray, only_kept: bool) -> np.ndarray:
    """The same by solving, after every input, for where the weights of the later ones are best."""
    held = damped(gram, RIDGE)
    codes, settled_to = np.zeros(weights.shape, np.int64), np.zeros(weights.shape)
    for output, row in enumerate(weights):
        order = [i for i in np.argsort(-np.diagonal(gram), kind="stable") if kept[output, i] or not only_kept]
        left = row.copy()
        for position, index in enumerate(order):
            found, values = to_integers(left[[index]], slice(None))
            codes[output, index] = found[0]
            settled_to[output, index] = values[0] if kept[output, index] else 0.0
            fixed, later = order[: position + 1], order[position + 1 :]
            pull = held[np.ix_(later, fixed)] @ (settled_to[output, fixed] - row[fixed])
            left[later] = row[later] - np.linalg.solve(held[np.ix_(later, later)], pull)
    return codes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alone", [True, False])
def test_every_step_is_the_least_squares_of_what_is_left(
    monkeypatch: pytest.MonkeyPatch, alone: bool, seed: int
) -> None:
    if not alone:
        monkeypatch.setattr(feedback, "WORK", 0)
    weights, gram = problem(4, 7, seed=seed)
    kept = np.random.default_rng(seed).random(weights.shape) < 0.7
    weights = weights * kept
    expected = one_after_the_other(weights, kept, gram[0], alone)
    assert (settled(weights, kept, gram, to_integers, RIDGE) == expected).all()


def test_groups_do_not_see_each_other() -> None:
    weights, gram = problem(6, 5, groups=3)
    found = settled(weights, None, gram, to_integers)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        assert (found[rows] == settled(weights[rows], None, gram[group : group + 1], to_integers)).all()


def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_alone() -> None:
    weights, _ = problem(3, 6)
    gram = np.diag([3.0, 1.0, 0.0, 2.0, 5.0, 0.1])[None]
    assert (settled(weights, None, gram, to_integers) == np.rint(weights * 2)).all()


def test_it_comes_near_the_best_of_all_roundings() -> None:
    near = plain = 0.0
    for seed in range(6):
        weights, gram = problem(1, 6, seed=seed)
        every = [
            np.array([codes]) / 2
            for codes in product(*({int(np.floor(2 * w)), int(np.ceil(2 * w))} for w in weights[0]))
        ]
        best = min(output_error(values - weights, gram) for values in every)
        near += output_error(settled(weights, None, gram, to_integers) / 2 - weights, gram) / best
        plain += output_error(np.rint(weights * 2) / 2 - weights, gram) / best
    assert near < 0.5 * plain and near < 6 * 3


def test_scales_and_codebook_are_least_squares() -> None:
    weights, gram = problem(4, 6, groups=2)
    codes = np.rint(weights * 2).astype(np.int64)
    above, below = fitted_scales(weights, codes, gram)
    labels = np.random.default_rng(1).integers(0, 3, weights.shape)
    kept = np.random.default_rng(2).random(weights.shape) < 0.8
    book = fitted_codebook(weights, kept, labels, np.array([7.0, 7.0, 7.0, 9.0]), gram)
    assert book[3] == 9.0

    def moved(scales: np.ndarray, numbers: np.ndarray) -> tuple[float, float]:
        values = np.where(kept, numbers[labels], 0.0)
        return output_error(codes * scales[:, None] - weights, gram), output_error(values - weights, gram)

    best = moved(above / below, book)
    for index, step in product(range(3), (-1e-3, 1e-3)):
        shift = np.eye(4)[index] * step
        assert all(a > b for a, b in zip(moved(above / below + shift, book + shift), best, strict=True))


@pytest.mark.parametrize("sparse", [False, True])
def test_outputs_move_less(sparse: bool) -> None:
    weights, gram = problem(16, 24)
    weights = weights * (np.random.default_rng(1).random(weights.shape) < 0.5) if sparse else weights
    weights[3] = 0 if sparse else weights[3]
    tensor, moments = torch.from_numpy(weights).float(), torch.from_numpy(gram)

    def error(coded: Coded) -> float:
        return output_error(coded.decode() - weights, gram)

    for bits in (2, 3, 4):
        for axis in (0, None):
            with_gram = quantise(tensor, bits, axis=axis, gram=moments)
            assert error(with_gram) < 0.9 * error(quantise(tensor, bits, axis=axis))
            assert np.abs(with_gram.content.codes).max() <= 2 ** (bits - 1) - 1  # type: ignore[union-attr]
        shared = share(tensor, bits, gram=moments)
        assert error(shared) < 0.9 * error(share(tensor, bits))
        assert (shared.decode()[weights == 0] == 0).all() and len(np.unique(shared.decode()[weights != 0])) <= 2**bits


class Grouped(nn.Module):
    """A strided, padded, grouped convolution and a linear layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.head(self.conv(x).mean((2, 3)))))


def test_moments_are_those_of_what_is_read() -> None:
    model = Grouped().eval()
    batches = [(torch.randn(3, 4, 5, 5), 0), (torch.randn(2, 4, 5, 5), 0)]
    found = input_moments(model, batches, samples_per_image=None)
    patches, rows = [], []
    model.head.register_forward_hook(lambda module, args, out: rows.append(args[0].detach()))
    for x, _ in batches:
        patches.append(functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 2, 18).double())
        model(x)
    every, read = torch.cat(patches), torch.cat(rows).double()
    torch.testing.assert_close(found["conv.weight"], torch.einsum("ngi,ngj->gij", every, every) / len(every))
    torch.testing.assert_close(found["head.weight"], (read.T @ read / len(read))[None])


def test_fewer_positions_give_about_the_same_and_always_the_same() -> None:
    model = convolutional()
    data = [images(32, seed) for seed in (1, 2)]
    whole, part = input_moments(model, data, samples_per_image=None), input_moments(model, data, samples_per_image=12)
    again = input_moments(model, data, samples_per_image=12)
    assert model.training and all(torch.equal(part[name], again[name]) for name in part)
    for name in whole:
        assert float((whole[name] - part[name]).norm() / whole[name].norm()) < 0.3
    assert not torch.equal(whole["0.weight"], part["0.weight"])


def test_a_model_changes_less() -> None:
    model = convolutional(width=12).eval()
    inputs = images(200)[0]
    moments = input_moments(model, [inputs])

    def moved(small: nn.Module) -> float:
        return float((small(inputs) - model(inputs)).square().mean().detach())

    assert moved(with_coded(model, quantise_weights(model, 3, moments=moments).coded)) < 0.85 * moved(
        with_coded(model, quantise_weights(model, 3).coded)
    )
    assert moved(share_weights(model, 2, moments=moments)) < 0.85 * moved(share_weights(model, 2))


def test_refusals() -> None:
    tensor = torch.randn(4, 3)
    with pytest.raises(InputError, match="do not fit the weights"):
        quantise(tensor, 4, gram=torch.eye(3))
    with pytest.raises(InputError, match="not all finite"):
        share(tensor, 4, gram=torch.full((1, 3, 3), float("nan")))
    with pytest.raises(InputError, match="axis 1"):
        quantise(tensor, 4, axis=1, gram=torch.eye(3)[None])
    with pytest.raises(TrainError):
        input_moments(convolutional(), [])
