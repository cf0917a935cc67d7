"""What the rounds of the speed benchmark add up to: ratios, exponents, bars and tables."""

from __future__ import annotations

from math import exp, log
from statistics import geometric_mean, median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.speed_trial import PEER_STAGES, STAGES

WALL, CPU = 0, 1
PROOF = ("check", "prove")
HEAVY_ON_INDICES = ("densenet201", "vgg16_bn")
LONGEST_ALONE = 10.0
STEEPEST = 1.2
TAIL = 3


def total(seconds: dict[str, list[float]], stages: tuple[str, ...], clock: int = CPU) -> float:
    """Seconds of some stages of one run."""
    return sum(seconds[stage][clock] for stage in stages)


def ratios(trial: dict[str, Any], clock: int = CPU) -> list[float]:
    """The peer's seconds over ours, round by round; above 1 we are faster."""
    return [total(row["peer"], PEER_STAGES, clock) / total(row["ours"], STAGES, clock) for row in trial["rounds"]]


def typical(trial: dict[str, Any], side: str, stages: tuple[str, ...], clock: int = CPU) -> float:
    """Median over rounds."""
    return median(total(row[side], stages, clock) for row in trial["rounds"])


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of log seconds over log size, by least squares, over the largest sizes."""
    tail = sorted(points)[-TAIL:]
    sizes, seconds = np.log([size for size, _ in tail]), np.log([spent for _, spent in tail])
    return float(np.polyfit(sizes, seconds, 1)[0])


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Ratios by model, exponents by curve and stage, and whether each bar was met."""
    races = {trial["model"]: _ratio_facts(trial) for trial in found.get("race", {}).values()}
    curves = {name: _curve_facts(points) for name, points in _curves(found).items()}
    bars: dict[str, dict[str, Any]] = {}
    if races:
        middle = {name: facts["ratio"] for name, facts in races.items()}
        slowest = min(middle, key=lambda name: middle[name])
        bars["faster in geometric mean"] = _bar(geometric_mean(middle.values()), 1.0)
        bars[f"none more than 2x slower ({slowest})"] = _bar(middle[slowest], 0.5)
        for name in (name for name in HEAVY_ON_INDICES if name in middle):
            bars[f"5x faster on {name}"] = _bar(middle[name], 5.0)
    for trial in found.get("alone", {}).values():
        spent = typical(trial, "ours", (*STAGES, *PROOF), CPU)
        bars[f"{trial['model']} under {LONGEST_ALONE:.0f} s, proof included"] = _bar(spent, LONGEST_ALONE, most=True)
    for name, facts in curves.items():
        over = "weights" if name == "square" else name
        bars[f"near-linear in {over}"] = _bar(facts["exponents"]["total"], STEEPEST, most=True)
    return {"ratios": races, "growth": curves, "bars": bars}


def _bar(value: float, asked: float, *, most: bool = False) -> dict[str, Any]:
    met = value <= asked if most else value >= asked
    return {"asked": ("at most " if most else "at least ") + f"{asked:g}", "found": round(value, 3), "met": met}


def _ratio_facts(trial: dict[str, Any]) -> dict[str, Any]:
    cpu, wall = ratios(trial, CPU), ratios(trial, WALL)
    return {
        "ratio": round(median(cpu), 3),
        "least": round(min(cpu), 3),
        "most": round(max(cpu), 3),
        "ratio_wall": round(median(wall), 3),
        "rounds": len(cpu),
        "ours_s": round(typical(trial, "ours", STAGES), 4),
        "peer_s": round(typical(trial, "peer", PEER_STAGES), 4),
        "proof_s": round(typical(trial, "ours", PROOF), 4),
    }


def _curves(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    curves: dict[str, list[dict[str, Any]]] = {}
    for trial in found.get("growth", {}).values():
        curves.setdefault(trial["curve"], []).append(trial)
    return curves


def _curve_facts(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Exponents of every stage; `square` is fitted over its weights, the others over depth or width."""
    sizes = [point["weights" if point["curve"] == "square" else "size"] for point in points]
    parts = {"total": STAGES, **{stage: (stage,) for stage in STAGES}, "proof": PROOF}
    seconds = {name: [typical(point, "ours", stages) for point in points] for name, stages in parts.items()}
    return {
        "over": "weights" if points[0]["curve"] == "square" else "size",
        "sizes": sizes,
        "seconds": {name: [round(spent, 4) for spent in row] for name, row in seconds.items()},
        "exponents": {name: round(exponent(list(zip(sizes, row, strict=True))), 3) for name, row in seconds.items()},
        "peak_mib": [point["ours"]["peak_mib"] for point in points],
        "base_mib": [point["base_mib"] for point in points],
    }


def tables(found: dict[str, Any], facts: dict[str, Any]) -> list[Table]:
    """Everything that was measured, in CPU seconds unless said otherwise."""
    made = [_race_table(list(found["race"].values()), facts)] if found.get("race") else []
    made += [_alone_table(found)] if found.get("alone") else []
    made += [_growth_table(name, points, facts) for name, points in _curves(found).items()]
    return [*made, _bars_table(facts)]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _race_table(trials: list[dict[str, Any]], facts: dict[str, Any]) -> Table:
    table = _table(
        "Side by side, CPU seconds (median of rounds)",
        "model", *STAGES, "ours", "peer", "peer/ours", "range", "wall", "rounds", "proof", "params left", "peer's",
    )  # fmt: skip
    for trial in trials:
        own = facts["ratios"][trial["model"]]
        table.add_row(
            trial["model"],
            *(f"{typical(trial, 'ours', (stage,)):.3f}" for stage in STAGES),
            f"{own['ours_s']:.3f}",
            f"{own['peer_s']:.3f}",
            f"{own['ratio']:.2f}",
            f"{own['least']:.2f}-{own['most']:.2f}",
            f"{own['ratio_wall']:.2f}",
            str(own["rounds"]),
            f"{own['proof_s']:.2f}",
            f"{trial['ours']['params_left']:.0%}",
            f"{trial['peer']['params_left']:.0%}" + (" broken" * bool(trial["peer"]["runs"])),
        )
    mean = exp(sum(log(own["ratio"]) for own in facts["ratios"].values()) / len(facts["ratios"]))
    table.add_section()
    table.add_row("geometric mean", *[""] * (len(STAGES) + 2), f"{mean:.2f}", style="bold")
    return table


def _alone_table(found: dict[str, Any]) -> Table:
    table = _table("Alone, CPU seconds", "model", *STAGES, "sum", "proof", "peak MiB", "peer")
    limits = found.get("peer_limits", {})
    for trial in found["alone"].values():
        table.add_row(
            trial["model"],
            *(f"{typical(trial, 'ours', (stage,)):.3f}" for stage in STAGES),
            f"{typical(trial, 'ours', STAGES):.2f}",
            f"{typical(trial, 'ours', PROOF):.2f}",
            str(trial["ours"]["peak_mib"]),
            _peer_said(limits.get(trial["model"])),
        )
    return table


def _peer_said(limit: dict[str, Any] | None) -> str:
    if limit is None:
        return "not run"
    if limit["ended"]:
        return f"{total(limit['seconds'], PEER_STAGES):.1f} s" + (" broken" * bool(limit["runs"]))
    return f"no end in {limit['limit']} s" if limit["why"] == "out of time" else limit["why"]


def _growth_table(name: str, points: list[dict[str, Any]], facts: dict[str, Any]) -> Table:
    curve = facts["growth"][name]
    table = _table(f"Growth: {name}, CPU seconds", name, "weights", *curve["seconds"], "peak MiB", "before")
    for index, point in enumerate(points):
        table.add_row(
            f"{point['size']:,}",
            f"{point['weights']:,}",
            *(f"{row[index]:.3f}" for row in curve["seconds"].values()),
            str(point["ours"]["peak_mib"]),
            str(point["base_mib"]),
        )
    table.add_section()
    table.add_row("exponent", f"over {curve['over']}", *(f"{value:.2f}" for value in curve["exponents"].values()))
    return table


def _bars_table(facts: dict[str, Any]) -> Table:
    table = _table("Bars", "bar", "asked", "found", "")
    for name, bar in facts["bars"].items():
        table.add_row(name, bar["asked"], f"{bar['found']:g}", "met" if bar["met"] else "MISSED")
    return table


def line(trial: dict[str, Any]) -> str:
    """One trial on one line of the terminal."""
    name = trial.get("model") or f"{trial['curve']} {trial['size']}"
    if "rounds" not in trial:
        return f"{name:16} peer: {_peer_said(trial)}"
    text = f"{name:16} ours {typical(trial, 'ours', STAGES):.3f} s, proof {typical(trial, 'ours', PROOF):.3f} s"
    if "peer" not in trial:
        return text
    own = _ratio_facts(trial)
    return f"{text}, peer {own['peer_s']:.3f} s, ratio {own['ratio']:.2f} ({own['least']:.2f} to {own['most']:.2f})"
