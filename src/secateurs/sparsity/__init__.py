"""Zeros that stay in place: patterns, from single weights to filters; masks; schedules."""

from secateurs.sparsity import patterns
from secateurs.sparsity.callbacks import hugging_face_callback, lightning_callback
from secateurs.sparsity.importance import IMPORTANCES, GroupedWeight, Obd
from secateurs.sparsity.lowered import LoweredConv2d
from secateurs.sparsity.masks import density, masks
from secateurs.sparsity.pattern import PATTERNS, Grouping, Pattern, parse_pattern
from secateurs.sparsity.regrow import GradientRegrowth, RandomRegrowth
from secateurs.sparsity.schedules import Constant, Gradual, Iterative, OneShot, Schedule
from secateurs.sparsity.settings import Sparsity
from secateurs.sparsity.sparsify import Sparsifier, sparsify
from secateurs.sparsity.storage import stored_ratio
from secateurs.sparsity.surgery import Surgery
from secateurs.sparsity.threshold import Threshold
from secateurs.sparsity.weights import layer_weights

__all__ = [
    "IMPORTANCES", "PATTERNS", "Constant", "GradientRegrowth", "Gradual", "GroupedWeight", "Grouping", "Iterative",
    "LoweredConv2d", "Obd", "OneShot", "Pattern", "RandomRegrowth", "Schedule", "Sparsifier", "Sparsity", "Surgery",
    "Threshold", "density", "hugging_face_callback", "layer_weights", "lightning_callback", "masks", "parse_pattern",
    "patterns", "sparsify", "stored_ratio",
]  # fmt: skip
