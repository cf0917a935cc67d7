"""A module's state on disk: bit for bit, tied tensors once, and files that are not what they say are refused."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateurs.base.errors import ArtifactError
from secateurs.deliver.tensors import HEADER_LIMIT, load_into, read_state, write_state


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.embed(ids)))  # type: ignore[no-any-return]


def test_state_comes_back_bit_for_bit_and_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, built = Tied(), Tied()
    saved.norm.running_mean.uniform_()  # type: ignore[union-attr]
    write_state(saved, tmp_path / "m.safetensors")
    assert len(load_file(tmp_path / "m.safetensors")) == len(saved.state_dict()) - 1
    load_into(built, read_state(tmp_path / "m.safetensors"), "here")
    assert all(torch.equal(tensor, built.state_dict()[name]) for name, tensor in saved.state_dict().items())
    assert built.out.weight is built.embed.weight


def test_special_values_and_types_survive(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("odd", torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]))
    module.register_buffer("halved", torch.randn(3).bfloat16())
    module.register_buffer("flags", torch.tensor([True, False]))
    module.register_buffer("empty", torch.zeros(0, 3))
    module.register_buffer("scalar", torch.tensor(3))
    module.register_buffer("slanted", torch.randn(4, 3).t())
    write_state(module, tmp_path / "m.safetensors")
    state = read_state(tmp_path / "m.safetensors")
    for name, tensor in module.state_dict().items():
        assert (state[name].shape, state[name].dtype) == (tensor.shape, tensor.dtype)
        assert bits(state[name]) == bits(tensor)


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()  # type: ignore[no-any-return]


class Shifty(nn.Linear):
    def get_extra_state(self) -> object:
        return "words"

    def set_extra_state(self, state: object) -> None:
        pass


def test_state_that_is_not_a_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="_extra_state.*type str"):
        write_state(Shifty(2, 2), tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("model", "evidence"),
    [
        (nn.Sequential(nn.Linear(4, 3)), "`0.weight` is 2x4 float32 in the file and 3x4 float32 in the class"),
        (nn.Sequential(nn.Linear(4, 2).double()), "`0.weight` is 2x4 float32 in the file and 2x4 float64"),
        (nn.Sequential(nn.Linear(4, 2, bias=False)), "`0.bias` is in the file and not in the class"),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "`1.weight` is in the class and not in the file"),
    ],
)
def test_misfit_names_the_first_tensor(tmp_path: Path, model: nn.Module, evidence: str) -> None:
    write_state(nn.Sequential(nn.Linear(4, 2)), tmp_path / "m.safetensors")
    with pytest.raises(ArtifactError, match=evidence):
        load_into(model, read_state(tmp_path / "m.safetensors"), "here")


def hostile_files() -> dict[str, bytes]:
    def file(header: object, data: bytes = b"") -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {
        "empty": b"",
        "seven bytes": b"1234567",
        "header longer than the file": struct.pack("<Q", 1000) + b"{}",
        "header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "header over the limit": struct.pack("<Q", HEADER_LIMIT + 1) + b"{}",
        "header that is not JSON": struct.pack("<Q", 4) + b"abcd",
        "header that is a list": file([1, 2, 3]),
        "data past the end": file({"w": {**good, "data_offsets": [0, 400]}}, b"1234"),
        "shape and size disagree": file({"w": {**good, "shape": [9]}}, b"1234"),
        "tied to nothing": file({"w": good, "__metadata__": {"tied": '{"v": "u"}'}}, b"1234"),
        "tied to a list": file({"w": good, "__metadata__": {"tied": "[1]"}}, b"1234"),
        "pickle": b"\x80\x02}q\x00." + bytes(20),
    }


@pytest.mark.parametrize("kind", sorted(hostile_files()))
def test_hostile_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(hostile_files()[kind])
    with pytest.raises(ArtifactError, match=r"m\.safetensors"):
        read_state(tmp_path / "m.safetensors")
