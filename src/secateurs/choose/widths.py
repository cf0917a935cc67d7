"""How many units of a group may stay: rounding, floors and what is never removed."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd

from secateurs.base.errors import BudgetError, explain
from secateurs.couple.group import ChannelGroup


@dataclass(frozen=True)
class Widths:
    """Which widths a group may take.

    `granularity`: kept channels are a multiple of this (rounded to the nearest, half up), except that a group left
    whole is left alone and one narrower than that loses nothing. `min_channels`: at least this many channels stay.
    `floor`: at least this fraction of every group stays. One unit always stays.
    """

    granularity: int = 1
    min_channels: int = 1
    floor: float = 0.0

    def __post_init__(self) -> None:
        whole = all(isinstance(count, int) and count >= 1 for count in (self.granularity, self.min_channels))
        if not whole or not isinstance(self.floor, (int, float)) or not 0 <= self.floor <= 1:
            raise BudgetError(
                explain(
                    "These limits on widths make no sense",
                    evidence=f"granularity={self.granularity!r}, min_channels={self.min_channels!r}, "
                    f"floor={self.floor!r}",
                    next_step="granularity and min_channels are whole numbers of at least 1, floor lies in [0, 1]",
                )
            )

    def step(self, group: ChannelGroup) -> int:
        """Units per step, so that a step is a whole multiple of channels."""
        return self.granularity // gcd(self.granularity, group.width)

    def least(self, group: ChannelGroup) -> int:
        """The fewest units that may stay."""
        least = max(1, ceil(self.min_channels / group.width), ceil(self.floor * group.size - 1e-9))
        step = self.step(group)
        return min(group.size, ceil(least / step) * step)

    def at_least(self, group: ChannelGroup, units: int) -> int:
        """The fewest units allowed that are no fewer than `units`: raised to the minimum, then rounded up."""
        step = self.step(group)
        return min(group.size, max(self.least(group), ceil(units / step) * step))

    def nearest(self, group: ChannelGroup, units: int) -> int:
        """The allowed number of units nearest to `units`, half up."""
        if units >= group.size:
            return group.size
        step = self.step(group)
        rounded = step * int(units / step + 0.5 + 1e-9)
        return min(group.size, max(self.least(group), rounded))
