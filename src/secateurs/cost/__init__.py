"""What a network costs, computed from shapes: MACs, parameters, bytes, peak activation memory."""

from secateurs.cost.count import Cost, count, count_graph
from secateurs.cost.predict import CostModel

__all__ = ["Cost", "CostModel", "count", "count_graph"]
