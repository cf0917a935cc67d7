"""What a network costs, computed from shapes: MACs, parameters, bytes, peak memory; what zeros take and touch."""

from secateurs.cost.count import Cost, count, count_graph
from secateurs.cost.predict import CostModel
from secateurs.cost.references import References, memory_references
from secateurs.cost.storage import mean_storage_ratio, storage_ratio

__all__ = [
    "Cost", "CostModel", "References", "count", "count_graph", "mean_storage_ratio", "memory_references",
    "storage_ratio",
]  # fmt: skip
