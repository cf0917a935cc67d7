"""Images, their labels and what networks make of them, side by side in one PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import camvid_data as scenes
from secateurs.base.files import write_bytes

COLOURS = {"road": (40, 200, 80), "wrongly road": (240, 60, 40), "missed": (60, 90, 255), "unlabelled": (0, 0, 0)}
ZOOM, GAP, TITLE = 2, 6, 16


def write(path: Path, images: Tensor, classes: Tensor, models: Mapping[str, nn.Module], which: Sequence[int]) -> None:
    """A row for each of the images `which`: image, label, then the answer of each model."""
    from PIL import Image, ImageDraw  # only pictures need it

    titles = ["image", "label: green road, black unlabelled"]
    titles += [f"{name}: green right, red wrong, blue missed" for name in models]
    rows = [panels(images[number], classes[number], list(models.values())) for number in which]
    high, wide = (ZOOM * side for side in scenes.SIZE)
    sheet = Image.new("RGB", (len(titles) * (wide + GAP) - GAP, TITLE + len(rows) * (high + GAP) - GAP), "white")
    for column, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((column * (wide + GAP) + 2, 2), title, fill="black")
        for row, drawn in enumerate(rows):
            panel = Image.fromarray(drawn[column].permute(1, 2, 0).numpy()).resize(
                (wide, high), Image.Resampling.NEAREST
            )
            sheet.paste(panel, (column * (wide + GAP), TITLE + row * (high + GAP)))
    file = io.BytesIO()
    sheet.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    write_bytes(path, file.getvalue())


@torch.no_grad()
def panels(image: Tensor, classes: Tensor, models: Sequence[nn.Module]) -> list[Tensor]:
    """Bytes [3, H, W]: the image, with the label over it, and with each answer compared to the label."""
    target = scenes.target_of(classes.unsqueeze(0))[0, 0]
    road, unlabelled = target == 1, target == scenes.IGNORED
    drawn = [image, tinted(image, {"road": road, "unlabelled": unlabelled})]
    for model in models:
        said = (model(scenes.scaled(image.unsqueeze(0))) > 0)[0, 0] & ~unlabelled
        parts = {"road": said & road, "wrongly road": said & ~road, "missed": road & ~said, "unlabelled": unlabelled}
        drawn.append(tinted(image, parts))
    return drawn


def tinted(image: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """The image, half covered by the colour of each part where that part is."""
    found = image.float()
    for name, where in parts.items():
        colour = torch.tensor(COLOURS[name], dtype=torch.float32).view(3, 1, 1)
        found = torch.where(where, (found + colour) / 2, found)
    return found.to(torch.uint8)


__all__ = ["panels", "tinted", "write"]
