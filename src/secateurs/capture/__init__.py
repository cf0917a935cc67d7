"""Run the model once: `nn.Module` + example inputs -> `Graph`."""

from secateurs.capture.graph import Graph
from secateurs.capture.trace import capture

__all__ = ["Graph", "capture"]
