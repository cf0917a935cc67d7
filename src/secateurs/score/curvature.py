"""The diagonal of the Hessian of the mean loss: three ways to estimate it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateurs.base.errors import InputError, explain
from secateurs.base.loss import describe, logits
from secateurs.capture.program import Program, State
from secateurs.score.criterion import Batch, Context
from secateurs.score.equalize import named
from secateurs.score.gradients import gradients
from secateurs.score.per_sample import Totals, squared_gradients

Diagonal = dict[str, Tensor]
"""`{leaf: h}`, float64, in the shape of the leaf."""


def diagonal_of(context: Context, leaves: Sequence[str], diagonal: str, probes: int, draws: int) -> Diagonal:
    """The diagonal by the name of the way to it; see the criterion `obd`.

    Raises `UnknownNameError` for another name and `InputError` for numbers of probes or draws that make no sense.
    """
    named("diagonal", diagonal, DIAGONALS)
    if probes < 1 or draws < 0:
        raise InputError(explain("There is at least one probe, and no fewer than 0 draws",
                                 evidence=f"probes={probes}, draws={draws}"))  # fmt: skip
    return DIAGONALS[diagonal](context, leaves, probes, draws)


def fisher(context: Context, leaves: Sequence[str]) -> Diagonal:
    """The empirical Fisher: the mean over samples of the squared gradient of each one's own loss."""

    def totals(batch: Batch, state: State, program: Program) -> Iterator[Tensor]:
        with torch.enable_grad():
            yield batch.loss(state, program) * batch.size

    return _mean_squares(context, leaves, totals)


def gauss_newton(context: Context, leaves: Sequence[str]) -> Diagonal:
    """`diag J^T H J`, the mean over samples: J the outputs' slopes, H the Hessian of a sample's loss to its outputs.

    For softmax cross-entropy `H = diag p - p p^T`. Costs one backward pass per output of a sample. Where H has negative
    eigenvalues, they count as zero.
    """

    def totals(batch: Batch, state: State, program: Program) -> Iterator[Tensor]:
        with torch.enable_grad():
            output = _outputs(batch, program.output(state))
            roots = _roots(batch, output, batch.loss(state, program) * batch.size)
            for root in roots.unbind(-1):
                if bool((root != 0).any()):
                    yield (output.flatten(1) * root).sum()

    return _mean_squares(context, leaves, totals)


def sampled_gauss_newton(context: Context, leaves: Sequence[str], draws: int) -> Diagonal:
    """The same for softmax cross-entropy, with labels drawn from the model's own softmax: mean squared gradients."""
    generator = torch.Generator().manual_seed(context.seed)

    def totals(batch: Batch, state: State, program: Program) -> Iterator[Tensor]:
        with torch.enable_grad():
            output = _outputs(batch, program.output(state))
            for labels in _drawn(output.detach(), draws, generator):
                scale = (labels[0].numel() / draws) ** 0.5
                yield batch.with_target(labels).loss(state, program) * batch.size * scale

    return _mean_squares(context, leaves, totals)


def hutchinson(context: Context, leaves: Sequence[str], probes: int) -> Diagonal:
    """The mean over probes v of random signs of `v * (H v)`: unbiased, of either sign.

    The same probes for every batch, so that it does not matter how the data is split. Costs a backward pass through
    the backward pass for each probe.
    """
    total: Diagonal = {}
    samples = 0
    for batch in context.batches():
        samples += batch.size
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # other kernels of attention differentiate only once
            tensors = [batch.program.tensors[name].detach().requires_grad_() for name in leaves]
            program = batch.on(dict(zip(leaves, tensors, strict=True)))
            loss = batch.loss(program.run(program.begin(batch.given)), program)
            slopes = gradients(batch, loss * batch.size, tensors, create_graph=True)
            for probe in range(probes):
                signs = _signs(tensors, (context.seed << 20) + probe)
                along = [(slope * sign).sum() for slope, sign in zip(slopes, signs, strict=True) if slope is not None]
                ahead = torch.stack(along).sum()
                if not ahead.requires_grad:  # a loss without curvature
                    break
                curved = torch.autograd.grad(ahead, tensors, retain_graph=True, allow_unused=True)
                for name, sign, found in zip(leaves, signs, curved, strict=True):
                    if found is not None:
                        part = (sign * found).double()
                        total[name] = total[name] + part if name in total else part
    return {name: total[name] / (samples * probes) if name in total else _blank(context, name) for name in leaves}


Estimate = Callable[[Context, Sequence[str], int, int], Diagonal]
DIAGONALS: dict[str, Estimate] = {
    "hutchinson": lambda context, leaves, probes, draws: hutchinson(context, leaves, probes),
    "gauss_newton": lambda context, leaves, probes, draws: (
        sampled_gauss_newton(context, leaves, draws) if draws else gauss_newton(context, leaves)
    ),
    "fisher": lambda context, leaves, probes, draws: fisher(context, leaves),
}


def _mean_squares(context: Context, leaves: Sequence[str], totals: Totals) -> Diagonal:
    found = {name: _blank(context, name) for name in leaves}
    samples = 0
    for batch in context.batches():
        samples += batch.size
        for name, squares in squared_gradients(batch, leaves, totals).items():
            found[name] += squares
    return {name: squares / samples for name, squares in found.items()}


def _blank(context: Context, name: str) -> Tensor:
    return torch.zeros_like(context.tensors[name], dtype=torch.float64)


def _signs(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1).to(tensor.device, tensor.dtype)
        for tensor in tensors
    ]


def _outputs(batch: Batch, output: object) -> Tensor:
    """The model's one tensor of outputs, samples first."""
    found = logits(output)
    if found.dim() < 2 or found.shape[0] != batch.size:
        raise InputError(
            explain(
                "The Gauss-Newton diagonal needs outputs with one row per sample",
                where=batch.where,
                evidence=f"outputs {describe(found)} for {batch.size} samples",
                next_step='take `diagonal="fisher"`',
            )
        )
    return found


def _roots(batch: Batch, output: Tensor, total: Tensor) -> Tensor:
    """`S` `[N, K, K]` with `S S^T = H_n`, the Hessian of sample n's loss to its K outputs, negative parts left out."""
    (slope,) = gradients(batch, total, [output], create_graph=True)
    count = prod(output.shape[1:])
    hessian = output.new_zeros(len(output), count, count, dtype=torch.float64)
    if slope is not None and slope.requires_grad:
        for entry, column in enumerate(slope.flatten(1).unbind(1)):
            (found,) = torch.autograd.grad(column.sum(), output, retain_graph=True, allow_unused=True)
            if found is not None:
                hessian[:, entry] = found.flatten(1).double()
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    values = torch.where(values > values.amax(1, keepdim=True) * 1e-7, values, 0.0)
    roots: Tensor = vectors * values.sqrt().unsqueeze(1)
    return roots.to(output.dtype)


def _drawn(output: Tensor, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Labels `[N, ...]` from the softmax over dimension 1 of `[N, C, ...]`; the same ones however data is split."""
    shares = output.double().softmax(1).cumsum(1)
    numbers = torch.rand(len(output), draws, *output.shape[2:], generator=generator, dtype=torch.float64)
    for number in numbers.to(output.device).unbind(1):
        yield (shares < number.unsqueeze(1)).sum(1).clamp_max(output.shape[1] - 1)


__all__ = ["DIAGONALS", "Diagonal", "diagonal_of", "fisher", "gauss_newton", "hutchinson", "sampled_gauss_newton"]
