"""The one way in which a packed file is refused."""

from __future__ import annotations

from secateurs.base.errors import ArtifactError, explain

_AGAIN = "copy the file again from where it was written, or pack it again"


def refused(
    evidence: str, *, what: str = "This file is not a sound packed model", next_step: str = ""
) -> ArtifactError:
    """The error for content that must not be used."""
    return ArtifactError(explain(what, evidence=evidence, next_step=next_step or _AGAIN))


__all__ = ["refused"]
