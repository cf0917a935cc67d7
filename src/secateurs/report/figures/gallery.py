"""The pictures of a network, each with a sentence on how to read it, and one page of them."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateurs.base.errors import InputError, explain
from secateurs.base.files import write_text
from secateurs.choose.plan import Plan
from secateurs.couple.group import Groups
from secateurs.report.figures.activity import Activities, Layer, activities, layers, pick
from secateurs.report.figures.agreement import draw_l1_apoz
from secateurs.report.figures.channels import draw_widths
from secateurs.report.figures.dead import dead_filters, draw_dead
from secateurs.report.figures.filters import draw_filters
from secateurs.report.figures.histograms import draw_histograms
from secateurs.report.figures.maps import draw_maps
from secateurs.report.figures.theme import WIDTH, plotly
from secateurs.score.score import score, tensors_of

BATCHES = 8
"""Batches of data that are looked at unless told otherwise."""


@dataclass(frozen=True)
class Picture:
    """A Plotly `figure` with a short `name`, a `title`, and how to read it in words."""

    name: str
    title: str
    caption: str
    figure: Any


def gallery(
    model: nn.Module,
    groups: Groups,
    *,
    data: Iterable[Any] | None = None,
    chosen: Sequence[str] = (),
    criterion: str = "l1",
    batches: int = BATCHES,
    plan: Plan | None = None,
) -> list[Picture]:
    """Every picture that can be made: filters, dead filters and histograms; with `data` activation maps and APoZ too.

    `chosen` names convolutions or linear layers; default: the first one and one in the middle. `data` gives batches
    `(inputs, target)` or inputs, of which the first `batches` are looked at. `plan` adds its widths.

    Raises `InputError` when Plotly is not installed, the data does not fit or the plan is one for another network,
    `UnknownNameError` for a layer that the network does not have or a criterion that does not exist.
    """
    plotly()
    graph = groups.graph
    if plan is not None and plan.graph_hash != graph.hash:
        raise InputError(
            explain(
                "The plan was made for another network, or for inputs of another shape",
                evidence=f"it is for graph {plan.graph_hash[:12]}, this is {graph.hash[:12]}",
                next_step="capture the original that was pruned, with the inputs that it was pruned with (--input)",
            )
        )
    mine = pick(graph, chosen) if chosen else _defaults(layers(graph))
    seen = None if data is None else activities(model, graph, data, mine, limit=batches)
    tensors = tensors_of(groups, model)
    pictures = [picture for layer in mine for picture in _of_layer(layer, tensors[layer.weight], seen)]
    if groups.free:
        pictures.append(_histograms(groups, model, criterion, data, batches))
    if plan is not None and any(not group.frozen for group in plan.groups):
        pictures.append(Picture("widths", "Channels before and after the plan", _WIDTHS, draw_widths(plan)))
    return pictures


def _defaults(found: Sequence[Layer]) -> tuple[Layer, ...]:
    """The first layer and the middle one of those between it and the last."""
    between = found[1:-1]
    return (*found[:1], *between[len(between) // 2 :][:1])


def _of_layer(layer: Layer, weight: Tensor, seen: Activities | None) -> list[Picture]:
    name = layer.name
    slug = name.replace(".", "-")
    activity = None if seen is None else seen.of[name]
    dead = dead_filters(weight, None if activity is None else activity.mean)
    found: list[Picture] = []
    if weight.dim() == 4 and weight.shape[1] in (1, 3) and weight[0, 0].numel() > 1:
        figure = draw_filters(weight, flagged=dead.numbers)
        found.append(Picture(f"{slug}-filters", f"Filters of {name}", _FILTERS, figure))
    if activity is not None and activity.sample.dim() == 3 and activity.sample[0].numel() > 1:
        assert seen is not None
        image = seen.first if seen.first.dim() == 3 and len(seen.first) in (1, 3) else None
        figure = draw_maps(activity.sample, image)
        found.append(Picture(f"{slug}-maps", f"What {name} makes of one input", _MAPS, figure))
    verdict = f"{len(dead.numbers)} of {len(dead.norms)} are flagged. "
    title = f"Dead filters of {name}"
    found.append(Picture(f"{slug}-dead", title, verdict + (_DEAD if activity else _WEAK), draw_dead(dead)))
    if activity is not None and activity.lowest >= 0 and bool((activity.zeros > 0).any()):
        assert seen is not None
        l1 = weight.detach().double().flatten(1).abs().mean(1)
        caption = f"Over {seen.count:,} samples. {_APOZ}"
        found.append(Picture(f"{slug}-apoz", f"L1 against APoZ in {name}", caption, draw_l1_apoz(l1, activity.zeros)))
    return found


def _histograms(groups: Groups, model: nn.Module, criterion: str, data: Iterable[Any] | None, batches: int) -> Picture:
    raw, scaled = (
        score(groups, model, criterion, data=data, batches=batches, normalizer=normalizer)
        for normalizer in ("none", None)
    )
    return Picture("scores", f"Scores by layer: {criterion}", _SCORES, draw_histograms(raw, scaled, criterion))


_FILTERS = (
    "One tile per filter, numbered along the lines from the number at the left; mid-grey is a weight of 0. On one "
    "scale, a grey tile is a filter that has learnt next to nothing; on its own scale it shows as noise. Filters that "
    "are flagged as dead have a red frame."
)
_MAPS = (
    "One tile per channel after the batch norm and the activation behind the layer, all on one colour scale, whose end "
    "at most half a per cent of the entries exceed."
)
_DEAD = (
    "A filter is flagged (red) when both its norm and its mean |activation| are below a tenth of the layer's largest "
    "(dashed line)."
)
_WEAK = (
    "Without data a filter is flagged (red) when its norm is below a tenth of the layer's largest (dashed line); what "
    "it lets through was not looked at."
)
_APOZ = (
    "Few weights (low L1) and few activations (high APoZ) are two reasons to remove a channel. Where the blue curve on "
    "the right is on the dotted line, the two agree no better than chance. Trimming removes what is above the mean of "
    "APoZ by more than one standard deviation (Hu et al., 2016)."
)
_SCORES = (
    "One line per group of coupled channels, in the order of the run. On the left scores as they are: one threshold "
    "over all layers would empty those that lie far left. On the right what a search over all layers ranks: each "
    "divided by its layer's own scale, if the criterion has one."
)
_WIDTHS = "Groups from which nothing may be removed are left out."


def write_page(path: str | os.PathLike[str], pictures: Sequence[Picture], title: str) -> Path:
    """One HTML file that holds everything it needs and opens without a network. Raises `WriteError`."""
    script = plotly("offline").get_plotlyjs() if pictures else ""
    parts = "".join(_section(picture) for picture in pictures)
    links = " · ".join(f'<a href="#{picture.name}">{html.escape(picture.title)}</a>' for picture in pictures)
    write_text(
        path,
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><script>{script}</script></head>\n"
        f"<body><h1>{html.escape(title)}</h1><nav>{links}</nav>{parts}</body></html>\n",
    )
    return Path(path)


def _section(picture: Picture) -> str:
    """Heading, sentence and drawing; the data is JSON that no browser takes for markup."""
    drawing = picture.figure.to_json().replace("</", "<\\/")
    options = json.dumps({"displaylogo": False})
    return (
        f"\n<section id='{picture.name}'><h2>{html.escape(picture.title)}</h2><p>{html.escape(picture.caption)}</p>"
        f"<div id='{picture.name}-plot'></div><script>{{const f = {drawing};"
        f"Plotly.newPlot('{picture.name}-plot', f.data, f.layout, {options});}}</script></section>"
    )


_STYLE = (
    f"body{{font-family:'DejaVu Sans',Verdana,Arial,sans-serif;max-width:{WIDTH}px;margin:2em auto;padding:0 1em;"
    "color:#222}h1{font-size:1.5em}h2{font-size:1.15em;margin:2.2em 0 .3em}p{margin:.3em 0;line-height:1.45;color:#444}"
    "nav{line-height:1.8}a{color:#0072B2}"
)

__all__ = ["BATCHES", "Picture", "gallery", "write_page"]
