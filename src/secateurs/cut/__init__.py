"""Apply a `Plan`: slice, repair attributes or emit the rewritten graph; then prove it."""

from secateurs.cut.cut import CutResult, cut, cut_detailed
from secateurs.cut.form import GraphModule
from secateurs.cut.prove import Proof

__all__ = ["CutResult", "GraphModule", "Proof", "cut", "cut_detailed"]
