"""The drawings hold the data, the page holds everything it needs, and without Plotly one is told what to install."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sec
from secateurs.choose.plan import GroupDecision, Plan
from secateurs.couple.group import Groups
from secateurs.report import figures

DATA = [(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(k)), torch.zeros(4).long()) for k in range(3)]
PLAN = Plan("0" * 64, {}, (GroupDecision("0", 5, (0, 2), "best"),), criterion="l1", search="global")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(112, 2)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = -1
    return model


def groups_of(model: nn.Module) -> Groups:
    return sec.couple(sec.capture(model, DATA[0][0]))


WITHOUT_DATA = ["0-filters", "0-dead", "2-dead", "scores"]
WITH_DATA = ["0-filters", "0-maps", "0-dead", "0-apoz", "2-maps", "2-dead", "2-apoz", "scores"]


def test_without_plotly_the_next_step_is_named(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(sec.InputError, match=r"pip install 'secateurs\[figures\]'"):
        figures.gallery(model, groups_of(model))
    with pytest.raises(sec.InputError, match="not installed"):
        figures.draw_widths(PLAN)
    assert figures.dead_filters(model[0].weight).numbers == [3]


def test_an_unknown_layer_is_refused_with_the_nearest(model: nn.Module) -> None:
    pytest.importorskip("plotly")
    named = nn.Sequential()
    named.add_module("stem", model[0])
    with pytest.raises(sec.UnknownNameError, match="did you mean 'stem'"):
        figures.gallery(named, groups_of(named), chosen=["sten"])


class TestDrawn:
    @pytest.fixture(autouse=True)
    def plotly(self) -> None:
        pytest.importorskip("plotly")

    def test_pictures_that_need_data_are_made_with_data(self, model: nn.Module) -> None:
        groups = groups_of(model)
        own = replace(PLAN, graph_hash=groups.graph.hash)
        assert [picture.name for picture in figures.gallery(model, groups)] == WITHOUT_DATA
        assert [picture.name for picture in figures.gallery(model, groups, data=DATA)] == WITH_DATA
        assert [picture.name for picture in figures.gallery(model, groups, plan=own)] == [*WITHOUT_DATA, "widths"]
        assert [picture.name for picture in figures.gallery(model, groups, chosen=["5"])] == ["5-dead", "scores"]
        with pytest.raises(sec.InputError, match=r"made for another network.*000000000000.*--input"):
            figures.gallery(model, groups, plan=PLAN)

    def test_dead_filters_are_framed_red_and_crossed(self, model: nn.Module) -> None:
        framed, *_ = (picture.figure for picture in figures.gallery(model, groups_of(model), data=DATA))
        assert len(framed.layout.shapes) == 2  # one in each scaling
        dead = figures.draw_dead(figures.dead_filters(model[0].weight, torch.tensor([1.0, 1, 1, 0, 1])))
        bars = [trace for trace in dead.data if trace.type == "bar"]
        assert [list(trace.y)[3] for trace in bars] == [0, 0]
        assert [[k for k, c in enumerate(trace.marker.color) if c == "#D55E00"] for trace in bars] == [[3], [3]]
        crosses = [trace for trace in dead.data if trace.type == "scatter"]
        assert [list(trace.x) for trace in crosses] == [[3], [3]]

    def test_tiles_are_drawn_as_they_are(self, model: nn.Module) -> None:
        weight = model[0].weight
        figure = figures.draw_filters(weight)
        for trace, scale in zip([t for t in figure.data if t.type == "image"], ("common", "own"), strict=True):
            tile = figures.filter_grid(weight, scale).tiles[0]
            border = 2
            drawn = np.array(trace.z)[border : border + 24 : 8, border : border + 24 : 8]
            assert (drawn == tile).all()

    def test_maps_are_drawn_on_their_scale_with_the_input(self) -> None:
        values, image = torch.arange(18.0).reshape(2, 3, 3), torch.tensor([-1.0, 0, 1, 0]).reshape(1, 2, 2)
        figure = figures.draw_maps(values, image)
        picture, heat = figure.data
        assert np.array(picture.z)[..., 0].tolist() == [[0, 128], [255, 128]]
        assert (heat.zmin, heat.zmax) == (0, 17)
        drawn = np.array(heat.z, dtype=float)
        assert np.nansum(drawn) == values.sum()
        assert drawn[1:4, 5:8].tolist() == values[1].tolist()

    def test_curves_hold_l1_and_apoz_in_the_order_of_l1(self) -> None:
        figure = figures.draw_l1_apoz(torch.tensor([1.0, 4.0, 2.0]), torch.tensor([1.0, 0.25, 0.5]))
        drawn = {trace.name: trace for trace in figure.data}
        assert list(drawn["L1, largest = 100%"].y) == [1, 0.5, 0.25]
        assert list(drawn["APoZ: share of zeros"].y) == [0.25, 0.5, 1]
        assert list(drawn["APoZ: share of zeros"].text) == [1, 2, 0]

    def test_widths_are_drawn_before_and_after(self) -> None:
        before, after = figures.draw_widths(PLAN).data
        assert (list(before.y), list(before.x), list(after.x)) == (["0"], [5], [2])
        assert list(before.text) == ["2 of 5 (40%)"]

    def test_scores_that_have_no_scale_of_their_layer_are_not_said_to_be_on_one(self, model: nn.Module) -> None:
        def titles(criterion: str) -> list[str]:
            figure = figures.gallery(model, groups_of(model), criterion=criterion)[-1].figure
            return [note.text for note in figure.layout.annotations] + [figure.layout.xaxis2.title.text]

        assert titles("l1") == ["l1 as it is", "l1 on the scale of its layer", "score, normalised"]
        assert titles("random") == ["random as it is", "random as it is, linear axis", "score (higher = keep)"]

    def test_histograms_draw_each_group_on_its_line(self) -> None:
        scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0])}
        figure = figures.draw_histograms(scores, scores, "l1")
        assert [trace.text for trace in figure.data] == ["a (2)", "b (1)"] * 2
        assert [max(trace.y) for trace in figure.data] == pytest.approx([0.9, -0.1] * 2)

    def test_the_page_needs_nothing_else(self, model: nn.Module, tmp_path: Path) -> None:
        pictures = figures.gallery(model, groups_of(model), data=DATA)
        path = figures.write_page(tmp_path / "new" / "page.html", pictures, "a <b> & c")
        text = path.read_text()
        assert "<title>a &lt;b&gt; &amp; c</title>" in text
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text)
        for picture in pictures:
            assert f"id='{picture.name}-plot'" in text
            assert picture.caption.split(".")[0].replace("'", "&#x27;") in text

    def test_names_cannot_break_out_of_the_page(self, tmp_path: Path) -> None:
        plan = Plan("0" * 64, {}, (GroupDecision("</script><b>", 2, (0,), "x"),), criterion="l1", search="global")
        picture = figures.Picture("w", "widths", "</section>", figures.draw_widths(plan))
        text = figures.write_page(tmp_path / "page.html", [picture], "t").read_text()
        assert text.count("</script>") == 2  # Plotly's and the picture's own
        assert "&lt;/section&gt;" in text

    def test_the_same_pictures_are_the_same_bytes(self, model: nn.Module, tmp_path: Path) -> None:
        pages = [
            figures.write_page(
                tmp_path / name, figures.gallery(model, groups_of(model), data=DATA), "same"
            ).read_bytes()
            for name in ("a.html", "b.html")
        ]
        assert pages[0] == pages[1]

    @pytest.mark.parametrize(("size", "expected"), [(1, ["0-dead", "0-apoz"]), (2, ["0-dead", "0-apoz", "scores"])])
    def test_a_network_of_few_units_and_no_weights_has_pictures(self, size: int, expected: list[str]) -> None:
        model = nn.Sequential(nn.Linear(2, size), nn.ReLU(), nn.Linear(size, 1)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        data: Any = [torch.ones(2, 2)]
        pictures = figures.gallery(model, sec.couple(sec.capture(model, data[0])), data=data)
        assert [picture.name for picture in pictures] == expected  # a lone unit can not go

    def test_a_network_without_layers_or_groups_has_no_pictures(self, tmp_path: Path) -> None:
        class Twice(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 2

        assert figures.gallery(Twice(), sec.couple(sec.capture(Twice(), torch.ones(2)))) == []
        assert figures.write_page(tmp_path / "empty.html", [], "nothing").read_text().endswith("</html>\n")
