"""`Budget`: the number that the network must get under."""

from __future__ import annotations

from dataclasses import dataclass, fields

from secateurs.base.errors import BudgetError, explain


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may *remain*: a float in (0, 1] is a fraction of the original, an int above 1 an absolute number.

    `channels=0.5` keeps half of every group; `macs=0.5` at most half of the multiply-accumulates; `params` counts
    parameters, `bytes` the bytes of parameters and buffers. Give at least one; several must all hold.

    `threshold` is the exception: it limits scores, not what remains. Units that score below it go (after normalisation
    and equalisation, see `score`), however many they are; other limits are then met by the search.

    Raises `BudgetError` when no limit is given or one is not a positive finite number.
    """

    channels: float | None = None
    macs: float | int | None = None
    params: float | int | None = None
    bytes: float | int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        limits = self.limits
        if not limits:
            raise BudgetError(explain("The budget is empty", next_step="give a limit, such as Budget(macs=0.5)"))
        for metric, limit in limits.items():
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
            if metric == "threshold" and number and 0 <= limit < float("inf"):
                continue
            if not number or not limit > 0 or limit == float("inf"):
                raise BudgetError(
                    explain(
                        f"Budget({metric}={limit!r}) is not a limit",
                        next_step="give a fraction in (0, 1] that may remain, or an absolute number above 1",
                    )
                )
            if metric == "channels" and limit > 1:
                raise BudgetError(
                    explain(
                        f"Budget(channels={limit!r}) is more than all channels",
                        next_step="channels is the fraction of every group that may remain, in (0, 1]",
                    )
                )

    @property
    def limits(self) -> dict[str, float | int]:
        """The limits that were given, by metric."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in given.items() if limit is not None}

    def absolute(self, original: dict[str, int]) -> dict[str, float]:
        """Each limit on a counted metric as an absolute number, given the original's counts."""
        return {
            metric: limit * original[metric] if isinstance(limit, float) and limit <= 1 else float(limit)
            for metric, limit in self.limits.items()
            if metric not in ("channels", "threshold")
        }

    def __str__(self) -> str:
        return ", ".join(_text(metric, limit) for metric, limit in self.limits.items())


def _text(metric: str, limit: float | int) -> str:
    if metric == "threshold":
        return f"scores >= {limit:g}"
    share = isinstance(limit, float) and limit <= 1
    return f"{metric} <= {100 * limit:.4g}% of the original" if share else f"{metric} <= {limit:,}"
