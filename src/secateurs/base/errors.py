"""Every error that Secateurs raises on purpose.

A message has four parts: what was impossible, where (module path and the user's own line), the evidence (the numbers
that disagree), and what to do next. `explain` puts them together in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NEXT = "Next: "


class SecateursError(Exception):
    """Base of every error below; `except sec.SecateursError` catches all refusals and nothing else."""


class InputError(SecateursError):
    """An argument cannot be used: wrong type, wrong shape, empty, non-finite, contradictory."""


class UnknownNameError(InputError):
    """A criterion, device, search, pattern, recipe key or layer name that does not exist; nearest names are given."""


class CaptureError(SecateursError):
    """The model could not be captured as a graph with these inputs."""


class BudgetError(SecateursError):
    """The budget is empty, contradictory or unreachable; states the minimum that can be reached and what holds it."""


class ProofError(SecateursError):
    """A cut was made and one of its proofs failed, so nothing is returned; names the first node that differs."""


class PlanError(SecateursError):
    """A plan does not fit the model it is applied to; names the first difference."""


class ArtifactError(SecateursError):
    """A saved folder is truncated, tampered with, foreign, or does not fit the class given."""


class RecipeError(InputError):
    """A recipe cannot be read: unknown key (nearest valid one and line are given), wrong type, missing value."""


class DeviceError(SecateursError):
    """A runtime is not installed, cannot compile this model, or gave wrong numbers."""


class TrainError(SecateursError):
    """Training cannot go on: the loss is not finite, the loader is empty, a checkpoint does not fit."""


def explain(what: str, *, where: str = "", evidence: str = "", next_step: str = "") -> str:
    """One message from its four parts; empty parts are left out.

    A part may quote a message that this function made. A message has one next step: the outer one, or else the quoted.
    """
    what, where, evidence, quoted = _without_steps(what, where, evidence)
    next_step = next_step or quoted
    parts = [what if what.endswith("?") else what.rstrip(".") + "."]
    if where:
        parts.append(f"Where: {where.rstrip('.')}.")
    if evidence:
        parts.append(f"Evidence: {evidence.rstrip('.')}.")
    if next_step:
        parts.append(f"{_NEXT}{next_step.rstrip('.')}" + ("" if next_step.endswith("?") else "."))
    return " ".join(parts)


def _without_steps(what: str, where: str, evidence: str) -> tuple[str, str, str, str]:
    """The parts without the next steps of quoted messages, which end the part that quotes them; and the first step."""
    cut = [part.partition(f" {_NEXT}") for part in (what, where, evidence)]
    step = next((after for _, mark, after in cut if mark), "")
    return cut[0][0], cut[1][0], cut[2][0], step.partition(f" {_NEXT}")[0]


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """The valid names closest to `name`, best first; empty when nothing is close."""
    return difflib.get_close_matches(name, list(valid), n=count, cutoff=0.5)
