"""The public way from a model to a small file: shared weights, integers, bits within a budget, in one call or two."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train.networks import convolutional, images

import secateurs as sec
from secateurs.pack.coded import Coded, Scaled, Shared
from secateurs.pack.container import read


def sparse(width: int = 16) -> nn.Module:
    """Half of all weights are zero."""
    model = convolutional(width=width).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(parameter.abs() > parameter.abs().median())
    return model


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*images(64)), batch_size=16)


def contents(path: Path) -> dict[str, Coded]:
    packed = read(path)
    return {name: packed.coded(name) for name in packed}


def outputs(path: Path) -> Tensor:
    back = sec.unpack(path, lambda: convolutional(width=16))
    assert isinstance(back, nn.Module)
    return back(images(8)[0])


def test_in_one_call(tmp_path: Path) -> None:
    model = sparse()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = sec.pack(model, tmp_path / "plain").bytes
    for way, kind in ({"share": 3}, Shared), ({"integers": 4}, Scaled), ({"bytes": 1300}, Shared):
        path = tmp_path / kind.__name__
        book = sec.pack(model, path, **way, biases=8)  # type: ignore[arg-type]
        assert book.bytes == path.stat().st_size == sum(row.bytes for row in book.rows) < 0.6 * plain
        found = contents(path)
        weights = {name: item for name, item in found.items() if len(item.shape) > 1}
        assert {type(item.content) for item in weights.values()} == {kind}
        assert all((item.decode() == 0)[(before[name] == 0).numpy()].all() for name, item in weights.items())
        assert isinstance(found["8.bias"].content, Scaled) and found["8.bias"].content.bits == 8
        assert outputs(path).shape == model(images(8)[0]).shape
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_in_two_calls_is_the_same(tmp_path: Path) -> None:
    model, batches = sparse(), loader()
    pairs = {
        "share": (sec.share_weights(model, 3, data=batches), {"share": 3}),
        "integers": (sec.quantise_weights(model, 4, data=batches), {"integers": 4}),
        "bytes": (sec.mixed_bits(model, 1300, data=batches), {"bytes": 1300}),
    }
    for name, (quantised, options) in pairs.items():
        sec.pack(quantised, tmp_path / name)
        sec.pack(model, tmp_path / f"{name} at once", data=batches, **options)  # type: ignore[arg-type]
        assert (tmp_path / name).read_bytes() == (tmp_path / f"{name} at once").read_bytes()
        own = quantised.plain() if isinstance(quantised, sec.SharedModel) else quantised.model
        assert type(own) is type(model)
        assert torch.equal(outputs(tmp_path / name), own(images(8)[0]))


def test_after_fine_tuning_the_shared_weights(tmp_path: Path) -> None:
    """`sec.finetune` trains codebooks; codes stay, and so do zeros."""
    shared = sec.share_weights(sparse(), 2, codebook="float16")
    result = sec.finetune(shared, loader(), sec.FineTune(epochs=1, lr=0.05))
    trained = result.model
    assert isinstance(trained, sec.SharedModel)
    sec.pack(trained, tmp_path / "file")
    assert torch.equal(outputs(tmp_path / "file"), trained.eval()(images(8)[0]))
    found = contents(tmp_path / "file")
    for name, item in shared.coded().items():
        assert isinstance(item.content, Shared)
        other = found[name].content
        assert isinstance(other, Shared) and (other.codes == item.content.codes).all()
        assert (other.codebook != item.content.codebook).any()
        assert read(tmp_path / "file").record(name).table == "float16"


def test_a_layer_too_small_for_half_precision_does_not_vanish() -> None:
    tiny = nn.Linear(2, 2)
    with torch.no_grad():
        tiny.weight.mul_(1e-9)
    with pytest.raises(sec.InputError, match="float16 has no room"):
        sec.share_weights(tiny, 1, codebook="float16")


def test_half_precision_codebooks_take_half_the_bytes(tmp_path: Path) -> None:
    books = [
        sec.pack(sec.share_weights(sparse(), 4, codebook=kind), tmp_path / kind).parts["codebooks"]
        for kind in ("float32", "float16", "bfloat16")
    ]
    assert books[0] == 2 * books[1] == 2 * books[2] > 0
    with pytest.raises(sec.InputError, match="float16 has no room"):
        sec.share_weights(nn.Linear(2, 2).requires_grad_(False).apply(_enlarge), 1, codebook="float16")
    with pytest.raises(sec.InputError, match="cannot be 'float8'"):
        sec.share_weights(sparse(), 1, codebook="float8")


def _enlarge(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(1e9)


@pytest.mark.parametrize("kind", ["shared", "integers"])
def test_a_file_of_at_most_so_many_bytes(tmp_path: Path, kind: str) -> None:
    """The size asked for is that of the file, and is used up; less is refused with the least there is."""
    model = sparse()
    errors = []
    for size in (1100, 1200, 1300):
        found = sec.mixed_bits(model, size, kind=kind, biases=8)
        taken = sec.pack(found, tmp_path / "file", biases=8).bytes
        assert 0.9 * size < taken <= size
        assert found.allocation is not None
        errors.append(found.allocation.error)
        assert found.bits == found.allocation.bits
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]
    with pytest.raises(sec.BudgetError, match=r"A file of 500 bytes is too small for this model") as refusal:
        sec.mixed_bits(model, 500, kind=kind)
    least = int(re.findall(r"make one of ([\d,]+)", str(refusal.value))[0].replace(",", ""))
    assert sec.pack(sec.mixed_bits(model, least, kind=kind), tmp_path / "least").bytes == least


def test_a_state_dict_can_be_quantised_too(tmp_path: Path) -> None:
    model = sparse()
    sec.pack(model, tmp_path / "model", share=3, biases=8)
    sec.pack(model.state_dict(), tmp_path / "state", share=3, biases=8)
    assert (tmp_path / "model").read_bytes() == (tmp_path / "state").read_bytes()


@pytest.mark.parametrize("given", [{"share": 3}, {"integers": 4}, {"bytes": 800}], ids=str)
def test_a_state_dict_keeps_its_ties(given: dict[str, int], tmp_path: Path) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 6), "head": nn.Linear(6, 9), "own": nn.Linear(6, 6)})
    model["head"].weight = model["embed"].weight
    sec.pack(model, tmp_path / "model", **given)  # type: ignore[arg-type]
    sec.pack(model.state_dict(), tmp_path / "state", **given)  # type: ignore[arg-type]
    assert (tmp_path / "model").read_bytes() == (tmp_path / "state").read_bytes()


@pytest.mark.parametrize(
    ("names", "words"),
    [(["training"], "already exists"), (["a", "a.b"], "already exists"), (["a..b"], "empty"), ([1], "no text")],
    ids=str,
)
def test_names_that_no_module_has_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(sec.InputError, match=words):
        sec.pack({name: torch.ones(2, 2) for name in names}, tmp_path / "file", share=2)


def test_biases_of_norms_and_floats_are_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    sec.pack(model, tmp_path / "file", biases=6)
    found = contents(tmp_path / "file")
    assert {name for name, item in found.items() if isinstance(item.content, Scaled)} == {"0.bias", "3.bias"}
    step = (found["0.bias"].decode() - model.state_dict()["0.bias"].numpy()).max()
    assert 0 < abs(step) < 1 / 31


def test_what_cannot_be(tmp_path: Path) -> None:
    model, path = sparse(), tmp_path / "file"
    with pytest.raises(sec.InputError, match="not by share and bytes"):
        sec.pack(model, path, share=3, bytes=1000)
    with pytest.raises(sec.InputError, match="quantised already"):
        sec.pack(sec.quantise_weights(model), path, share=3)
    with pytest.raises(sec.InputError, match="cannot run on data"):
        sec.pack(model.state_dict(), path, share=3, data=loader())
    with pytest.raises(sec.InputError, match="no scale per 'row'"):
        sec.quantise_weights(model, per="row")
    with pytest.raises(sec.InputError, match="no codes of kind 'floats'"):
        sec.mixed_bits(model, 3000, kind="floats")
    with pytest.raises(sec.UnknownNameError, match="named 'cnov'"):
        sec.pack(model, path, integers={"cnov": 4})
    assert not path.exists()


def test_a_file_is_opened_without_decoding_it(tmp_path: Path) -> None:
    sec.pack(sec.quantise_weights(sparse(), 5), tmp_path / "file")
    packed = sec.read_packed(tmp_path / "file")
    assert isinstance(packed, sec.Packed) and not packed._decoded
    assert sec.ledger(packed).bytes == (tmp_path / "file").stat().st_size and not packed._decoded
    assert packed["4.weight"] is packed["4.weight"] and packed.decoded("4.weight") is not packed["4.weight"]
    assert len(packed._decoded) == 1


def test_quantised_says_what_it_did() -> None:
    found = sec.quantise_weights(sparse(), {"0": 4, "*": 6})
    assert found.bits == {"0.weight": 4, "4.weight": 6, "8.weight": 6}
    assert str(found).splitlines()[0].split() == ["0.weight", "scaled", "4", "bits", "72", "of", "144", "kept"]
    assert sec.list("starts") == ["cube_root", "density", "linear", "optimal", "random"]
    assert sec.list("scales") == ["max", "mse"]
