"""`sec.list`: the names that can be given as strings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from secateurs.base.errors import UnknownNameError, explain, nearest
from secateurs.choose.search import SEARCHES
from secateurs.couple.rules import RULES
from secateurs.device import devices
from secateurs.pack.integers import SCALES
from secateurs.pack.kmeans import STARTS
from secateurs.score import CRITERIA
from secateurs.sparsity import IMPORTANCES, PATTERNS
from secateurs.sparsity.distribution import DISTRIBUTIONS

KINDS: dict[str, Callable[[], list[str]]] = {
    "criteria": lambda: sorted(CRITERIA),
    "devices": lambda: sorted(devices),
    "searches": lambda: sorted(SEARCHES),
    "patterns": lambda: sorted(PATTERNS),
    "importances": lambda: sorted(IMPORTANCES),
    "distributions": lambda: sorted(DISTRIBUTIONS),
    "starts": lambda: sorted(STARTS),
    "scales": lambda: sorted(SCALES),
    "ops": lambda: sorted(RULES),
}


def names(kind: str) -> list[str]:
    """The known names of one kind: `"criteria"`, `"devices"`, `"searches"`, `"patterns"`, `"ops"`; `"importances"` of
    groups of weights, `"distributions"` of zeros among layers; `"starts"` of shared weights, `"scales"` of integers.

    `"ops"` lists the operators with a rule of their own; operators that PyTorch tags as element-wise need none.
    Raises `UnknownNameError`.
    """
    if kind not in KINDS:
        close = nearest(kind, KINDS)
        raise UnknownNameError(
            explain(
                f"There is no list of {kind!r}",
                evidence=f"there are {', '.join(sorted(KINDS))}",
                next_step=f"did you mean {close[0]!r}?" if close else "ask for one of these",
            )
        )
    return KINDS[kind]()


def families() -> dict[str, list[str]]:
    """The names of `names("ops")`, grouped by what the operators do: each is in the family of its rule."""
    found: dict[str, list[str]] = {}
    for name in names("ops"):
        module = RULES[name].__module__.rpartition(".")[2]
        found.setdefault("elementwise" if module == "registry" else module, []).append(name)
    return dict(sorted(found.items()))


def spelled() -> dict[str, str]:
    """The patterns of zeros, each as it may be written, with the first sentence on what it is."""
    kinds = [PATTERNS[name] for name in names("patterns")]
    firsts = {kind.example: " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()) for kind in kinds}
    return {text: re.split(r"(?<!\.)\. |\.$", said)[0] for text, said in firsts.items()}


__all__ = ["KINDS", "families", "names", "spelled"]
