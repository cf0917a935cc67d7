"""Messages: four parts in order, and one next step however often a message quotes another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sec
from secateurs.base.errors import explain


def test_four_parts_in_order():
    assert explain("No.", where="`a`", evidence="1 and 2.", next_step="do this") == (
        "No. Where: `a`. Evidence: 1 and 2. Next: do this."
    )
    assert explain("No", next_step="did you mean 'b'?") == "No. Next: did you mean 'b'?"
    assert explain("How many are 'b'?", next_step="count") == "How many are 'b'? Next: count."


INNER = explain("Inner", evidence="1", next_step="inner step")


@pytest.mark.parametrize("part", ["what", "where", "evidence"])
def test_a_quoted_message_loses_its_next_step(part: str):
    parts = {"what": "Outer", "evidence": "2", part: f"because: {INNER}"}
    message = explain(**parts, next_step="outer step")
    assert message.endswith(" Next: outer step.")
    assert message.count("Next:") == 1 and "inner step" not in message
    assert "Inner. Evidence: 1" in message


def test_without_a_step_of_its_own_a_message_ends_with_the_quoted_one():
    message = explain(f"Outer: {INNER}", where="here")
    assert message == "Outer: Inner. Evidence: 1. Where: here. Next: inner step."
    assert explain("Outermost", evidence=message).count("Next:") == 1


class Refuses(nn.Module):
    """Its own checks speak as ours do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise sec.InputError(explain("Not like this", next_step="give something else"))


def test_capture_of_a_model_that_refuses_with_a_message_of_ours():
    with pytest.raises(sec.CaptureError) as refused:
        sec.capture(Refuses(), torch.zeros(1, 4))
    assert str(refused.value).count("Next:") == 1
    assert "Not like this" in str(refused.value)
