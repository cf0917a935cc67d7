"""What a network costs, from its shapes: MACs, parameters, bytes, peak memory; what zeros spare, take and touch."""

from secateurs.cost.count import Cost, count, count_graph
from secateurs.cost.effective import EffectiveMacs, Macs, captured_row, effective_macs, effective_of
from secateurs.cost.predict import CostModel
from secateurs.cost.references import References, memory_references
from secateurs.cost.storage import mean_storage_ratio, storage_ratio

__all__ = [
    "Cost", "CostModel", "EffectiveMacs", "Macs", "References", "captured_row", "count", "count_graph",
    "effective_macs", "effective_of", "mean_storage_ratio", "memory_references", "storage_ratio",
]  # fmt: skip
