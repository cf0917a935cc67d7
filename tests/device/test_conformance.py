"""Both devices pass the suite that ships with the package."""

from secateurs.testing.devices import DeviceConformance


class TestTorch(DeviceConformance):
    device = "torch"
    tolerance = 0.0


class TestOnnxRuntime(DeviceConformance):
    device = "onnxruntime"
