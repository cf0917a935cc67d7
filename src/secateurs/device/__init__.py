"""Where a model runs: one runtime per file; compile, run, measure."""

from secateurs.device import onnx_runtime, torch_eager  # noqa: F401  (registers the devices)
from secateurs.device.base import Availability, Compiled, Device, devices, find_device
from secateurs.device.environment import Environment
from secateurs.device.measure import compare, measure
from secateurs.device.measurement import Comparison, Measurement, Measurements
from secateurs.device.statistics import Interval

__all__ = [
    "Availability",
    "Comparison",
    "Compiled",
    "Device",
    "Environment",
    "Interval",
    "Measurement",
    "Measurements",
    "compare",
    "devices",
    "find_device",
    "measure",
]
