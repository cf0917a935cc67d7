"""Tensors keep their layout in memory when they are cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sec


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_weights_stay_as_they_were_laid_out(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4))
    model = model.to(memory_format=layout)
    found = sec.prune(model, (torch.randn(2, 3, 8, 8),), budget=sec.Budget(channels=0.5)).model
    for name, parameter in found.named_parameters():
        assert parameter.numel() < model.get_parameter(name).numel() or name == "4.bias"
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=layout)
            assert not (parameter.is_contiguous() and layout == torch.channels_last)
        else:
            assert parameter.is_contiguous()
