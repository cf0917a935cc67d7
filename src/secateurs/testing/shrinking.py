"""Make a failing program smaller while it still fails, for failures found outside hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from secateurs.testing.networks import OUTPUTS, Program, Step


def shrink(program: Program, fails: Callable[[Program], bool], *, attempts: int = 400) -> Program:
    """The smallest program found by deleting steps and inputs and lowering numbers, in at most `attempts` trials."""
    tried = {program}
    improved = True
    while improved:
        improved = False
        for candidate in _simpler(program):
            if candidate in tried:
                continue
            if len(tried) > attempts:
                return program
            tried.add(candidate)
            if fails(candidate):
                program, improved = candidate, True
                break
    return program


def _simpler(program: Program) -> Iterator[Program]:
    """Programs one change simpler, the boldest changes first."""
    count = len(program.steps)
    for size in (count // 2, 1):
        for start in range(count):
            if size:
                yield replace(program, steps=program.steps[:start] + program.steps[start + size :])
    for i in range(len(program.inputs)):
        if len(program.inputs) > 1:
            yield replace(program, inputs=program.inputs[:i] + program.inputs[i + 1 :])
    if program.output != OUTPUTS[0]:
        yield replace(program, output=OUTPUTS[0])
    if program.seed:
        yield replace(program, seed=0)
    for i, step in enumerate(program.steps):
        for simpler in _simpler_steps(step):
            yield replace(program, steps=(*program.steps[:i], simpler, *program.steps[i + 1 :]))


def _simpler_steps(step: Step) -> Iterator[Step]:
    """The step with fewer or smaller numbers."""
    for on in _simpler_numbers(step.on):
        yield replace(step, on=on)
    for pick in _simpler_numbers(step.pick):
        yield replace(step, pick=pick)


def _simpler_numbers(numbers: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if numbers:
        yield ()
        yield numbers[:-1]
    for i, number in enumerate(numbers):
        for lower in sorted({0, number // 2, number - 1}):
            if 0 <= lower < number:
                yield (*numbers[:i], lower, *numbers[i + 1 :])
