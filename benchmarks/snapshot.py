"""A Plotly figure as a PNG, by a Chromium that is installed: for pages that cannot run a script."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from secateurs.base.files import write_bytes, write_text

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
COLOURS = 256
"""Of the palette: it halves the file, and nobody sees it."""

OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000")


def browser() -> str | None:
    """The path of the first Chromium there is."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def write_png(figure: Any, path: Path, program: str) -> None:
    """The figure at its own width and height. Raises `CalledProcessError` when the browser fails."""
    from PIL import Image  # only pictures need it

    size = int(figure.layout.width), int(figure.layout.height)
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        drawing = figure.to_html(include_plotlyjs=True, full_html=False, config={"displayModeBar": False})
        write_text(page, f"<!doctype html><html><body style='margin:0'>{drawing}</body></html>")
        window = f"--window-size={size[0]},{size[1] + 100}"
        command = [program, *OPTIONS, f"--user-data-dir={folder}/profile", window, f"--screenshot={shot}", str(page)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with Image.open(shot) as image:
            drawn = image.convert("RGB").crop((0, 0, *size))
    file = io.BytesIO()
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    write_bytes(path, file.getvalue())
