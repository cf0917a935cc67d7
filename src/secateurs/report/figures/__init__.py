"""Pictures of a network: for each a function that gives plain data and one that draws it with Plotly."""

from secateurs.report.figures.activity import Activities, Activity, Layer, activities, layers
from secateurs.report.figures.agreement import Agreement, agreement, draw_l1_apoz, trimmed
from secateurs.report.figures.channels import Widths, draw_widths, widths
from secateurs.report.figures.dead import DeadFilters, dead_filters, draw_dead
from secateurs.report.figures.filters import FilterGrid, draw_filters, filter_grid
from secateurs.report.figures.gallery import Picture, gallery, write_page
from secateurs.report.figures.histograms import Histograms, draw_histograms, histograms
from secateurs.report.figures.maps import MapGrid, activation_maps, draw_maps
from secateurs.report.figures.sensitivity import Curve, curves, draw_sensitivity
from secateurs.report.figures.survivors import Survivors, draw_survivors, survivors
from secateurs.report.figures.weights import WeightHistograms, draw_weight_histograms, weight_histograms

__all__ = [
    "Activities", "Activity", "Agreement", "Curve", "DeadFilters", "FilterGrid", "Histograms", "Layer", "MapGrid",
    "Picture", "Survivors", "WeightHistograms", "Widths", "activation_maps", "activities", "agreement", "curves",
    "dead_filters", "draw_dead", "draw_filters", "draw_histograms", "draw_l1_apoz", "draw_maps", "draw_sensitivity",
    "draw_survivors", "draw_weight_histograms", "draw_widths", "filter_grid", "gallery", "histograms", "layers",
    "survivors", "trimmed", "weight_histograms", "widths", "write_page",
]  # fmt: skip
