"""Which entries are kept, in as few bits as can be: one encoding per file."""

from secateurs.pack.index import bitmap, context, csr, groups, relative, strided
from secateurs.pack.index.encoding import ENCODINGS, Encoding, Field, Grid, Index, Mask

__all__ = [
    "ENCODINGS", "Encoding", "Field", "Grid", "Index", "Mask", "bitmap", "context", "csr", "groups", "relative",
    "strided",
]  # fmt: skip
