"""A model as one small file, and back: `sec.pack`, `sec.unpack`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.deliver.artifact import built
from secateurs.deliver.program import from_program, programmed, without_constants
from secateurs.deliver.state import State, Subject, contents, holder, state_of, unwrapped
from secateurs.deliver.tensors import distinct, give_biases, load_into
from secateurs.deliver.within import Beside, within
from secateurs.pack.baseline import TINY, Baseline, form_bytes, gzip_bytes, raw_bytes, weights_alone
from secateurs.pack.chosen import Bits
from secateurs.pack.coded import Coded
from secateurs.pack.container import GRAPH, Packed, read, write
from secateurs.pack.dtypes import in_memory
from secateurs.pack.integers import coded_integers
from secateurs.pack.ledger import Ledger, ledger
from secateurs.pack.shared_model import coded_shared

MANY = 0.01
"""The share of a tensor's values above which subnormal ones are worth a word."""


def pack(
    model: Subject,
    path: str | os.PathLike[str],
    *,
    share: Bits | None = None,
    integers: Bits | None = None,
    bytes: int | None = None,
    data: Iterable[Any] | None = None,
    batches: int = 16,
    biases: int | None = None,
    coded: Mapping[str, Coded] | None = None,
    example_inputs: Any = None,
    metadata: Mapping[str, Any] | None = None,
    gzip: bool = False,
    original: nn.Module | State | None = None,
    seed: int = 0,
) -> Ledger:
    """Writes parameters and persistent buffers as the file `path`, whole or not at all; what every byte is for.

    `model` may be what `share_weights`, `quantise_weights` and `mixed_bits` give: then their codes are stored. Or one
    of them is done here: `share` and `integers` take bits, one number or globs over layers (`{"conv*": 8, "fc": 5}`;
    `share=True` is 8 for kernels, 5 for matrices), `bytes` the size that the file may have. `data`, batches
    `(inputs, target)`, of which the first `batches` are used (0 for all), makes them err where it matters least.
    `biases`: bits of integers for the biases of layers. Without any of these nothing is quantised: what `unpack` gives
    is what was packed, bit for bit (-0.0 becomes +0.0). Values below the smallest normal float32 (1e-40) that are no
    zeros are kept, too; many of them bring a warning, since they cost what others do.

    Zeros are left out where that is smaller. With `example_inputs` (what the model is called on: a tensor, a tuple, or
    a dict of keyword arguments) the file holds the program too, proven to give the same outputs, so that `unpack` runs
    it without the class; a model in graph form always brings its program along. `gzip` adds what gzip makes of the
    float32 values before (`original`, or the model itself) and after, of all and of the weights alone, and their size
    in sparse rows, with gaps and in groups, unquantised and without an entropy coder. `coded` holds tensors that were
    quantised elsewhere, by name. The model is not modified.

    Raises `InputError` for anything that is no model or does not fit, `BudgetError` when `bytes` are too few,
    `WriteError` when the disk does not take it; with `example_inputs`, what `capture` and `cut` raise.
    """
    subject, own = unwrapped(model)
    before = subject if original is None else unwrapped(original)[0]
    program = None if example_inputs is None else programmed(subject, example_inputs)
    asked = {"share": share, "integers": integers, "bytes": bytes}
    if own and any(value is not None for value in asked.values()):
        raise InputError(explain("These weights are quantised already", next_step="leave out share, integers, bytes"))
    beside = Beside(biases, metadata, program, coded or {})
    found = _quantised(subject, **asked, data=data, batches=batches, beside=beside, seed=seed)  # type: ignore[arg-type]
    codes = {**own, **found, **(coded or {})}
    _warn_of_subnormal({name: item for name, item in distinct(state_of(subject))[0].items() if name not in codes})
    whole = contents(subject, codes, biases, program)
    write(path, whole.tensors, metadata, tied=whole.tied, texts=whole.texts)
    packed = read(path, limit=1 << 62)
    book = ledger(packed)
    if gzip:
        old, new = _floats(distinct(state_of(before))[0]), _floats(_tensors(packed))
        sizes = raw_bytes(old), gzip_bytes(old), gzip_bytes(new)
        alone = (gzip_bytes(some) if (some := weights_alone(each)) else 0 for each in (old, new))
        book = book.with_baseline(Baseline(*sizes, form_bytes(new), *alone))
    return book


def unpack(
    path: str | os.PathLike[str], build: Callable[[], nn.Module] | None = None, *, limit: int | None = None
) -> nn.Module | dict[str, Tensor]:
    """The model in a packed file, in eval mode: of the class that `build` gives, or in graph form; else its state.

    It comes in graph form, without any class, when the file was written with `example_inputs`, or of such a model.

    `build`: a class or function without arguments that makes a model with tensors of these names, shapes and types.
    `limit`: bytes to which the file may decode.

    Whatever the file says, nothing of it is run here. A program, when it is run, calls operators of PyTorch on its own
    tensors and the inputs, and nothing else; it takes the time and memory that it asks for.

    Raises `ArtifactError` when the file is cut short, altered or not one of ours, or, naming the first difference, when
    its tensors do not fit.
    """
    packed = read(path, limit=limit)
    program = packed.text(GRAPH)
    state = _all(packed)
    if build is not None:
        model = built(build)
        if program is not None:
            state = without_constants(program, state, model, str(path))
        give_biases(model, state)
        load_into(model, state, str(path))
        return model.eval()
    return state if program is None else from_program(program, state, str(path))


def _quantised(
    model: nn.Module | State, *, share: Bits | None, integers: Bits | None, bytes: int | None,
    data: Iterable[Any] | None, batches: int, beside: Beside, seed: int,
) -> Mapping[str, Coded]:  # fmt: skip
    """The codes that one of three ways gives; none when none is asked for."""
    asked = [name for name, value in (("share", share), ("integers", integers), ("bytes", bytes)) if value is not None]
    if len(asked) > 1:
        raise InputError(explain(f"Weights are quantised once, not by {' and '.join(asked)}", next_step="give one"))
    if not asked:
        if data is not None:
            raise InputError(
                explain(
                    "Nothing is quantised that data could be of use for",
                    evidence="`data` was given without share, integers or bytes",
                    next_step="give one of these, or leave out the data",
                )
            )
        return {}
    if data is not None and not isinstance(model, nn.Module):
        raise InputError(
            explain("A state dict cannot run on data", next_step="pass the model itself, or leave out `data`")
        )
    subject = model if isinstance(model, nn.Module) else holder(model)
    if share is not None:
        return coded_shared(subject, None if share is True else share, data=data, batches=batches or None, seed=seed)
    if integers is not None:
        return coded_integers(subject, integers, data=data, batches=batches or None, seed=seed)
    assert bytes is not None
    return within(subject, bytes, beside, data=data, batches=batches or None, seed=seed).coded


def _warn_of_subnormal(state: State) -> None:
    """Warns of tensors with many values that are not zero and too small to count."""
    found: dict[str, int] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type != "meta":
            numbers = tensor.detach()
            numbers = numbers if numbers.dtype in (torch.float32, torch.float64) else numbers.float()
            count = int(((numbers != 0) & (numbers.abs() < TINY)).sum())
            if count > MANY * tensor.numel():
                found[name] = count
    if found:
        name, count = max(found.items(), key=lambda item: item[1])
        warnings.warn(
            explain(
                f"{sum(found.values()):,} values are not zero, but too small to count for anything",
                where=f"`{name}`: {count:,} of {state[name].numel():,}" + (" and others" if len(found) > 1 else ""),
                evidence="below 2^-126, the smallest normal float32; each is stored like any other number",
                next_step="set them to zero first: weight[weight.abs() < 2**-126] = 0",
            ),
            stacklevel=3,
        )


def _tensor(values: NDArray[Any], dtype: str) -> Tensor:
    """A decoded array as a tensor of its own memory, of the type it stands for."""
    kind: torch.dtype = getattr(torch, dtype)
    found = torch.from_numpy(values if values.flags.writeable else np.array(values))
    if values.dtype == in_memory(dtype):
        return found.view(kind).reshape(values.shape)
    return found.to(kind)


def _tensors(packed: Packed) -> dict[str, Tensor]:
    return {record.names[0]: _tensor(packed.decoded(record.names[0]), record.dtype) for record in packed.records}


def _all(packed: Packed) -> dict[str, Tensor]:
    """Every tensor under every name."""
    state = _tensors(packed)
    return {name: state[packed.record(name).names[0]] for name in packed}


def _floats(state: State) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().cpu().float().numpy() for name, tensor in state.items() if tensor.is_floating_point()}


__all__ = ["pack", "unpack"]
