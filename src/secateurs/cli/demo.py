"""`secateurs demo`: the whole story on handwritten digits, from training to a checked file, in about a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor, nn

from secateurs.choose.budget import Budget
from secateurs.cli.arguments import AsJson, Seed
from secateurs.cli.console import NOT_MET, progress, show, show_json
from secateurs.cli.digits import DigitNet, Digits, load_digits, new_network
from secateurs.deliver.artifact import load, save
from secateurs.deliver.onnx import export_onnx
from secateurs.prune import prune
from secateurs.report.result import Result
from secateurs.report.tables import comparison_table, layer_table, proof_sentence, reproduce
from secateurs.train.config import FineTune
from secateurs.train.distill import Distill
from secateurs.train.finetune import finetune

MULTIPLE = 8
KEEP = 0.5


def demo(
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder for the artifact and the two ONNX files.")
    ] = "secateurs-demo",
    epochs: Annotated[int, typer.Option(help="Epochs of training before the cut.")] = 8,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Train a small network on handwritten digits, cut it to half its work, prove, fine-tune, export, measure, save."""
    with progress(quiet=json) as stage, one_thread():
        outcome = story(Path(out), epochs=epochs, seed=seed, on_stage=stage, quiet=json)
    show_json(outcome.report()) if json else show(outcome.tables())
    if not (outcome.result.met and outcome.bit_equal):
        raise typer.Exit(NOT_MET)


@dataclass(frozen=True)
class Outcome:
    """What the demo did; `files` are the ONNX files before and after."""

    result: Result
    folder: Path
    files: tuple[Path, Path]
    bit_equal: bool

    def report(self) -> dict[str, Any]:
        sizes = [path.stat().st_size for path in self.files]
        return {**self.result.report(), "onnx_bytes": sizes, "artifact": str(self.folder), "bit_equal": self.bit_equal}

    def tables(self) -> list[RenderableType]:
        """The table that a newcomer reads, and what stands behind it."""
        report = self.report()
        steps = " -> ".join(f"{name} {value:.1%}" for name, value in report["accuracy"].items())
        equal = "bit for bit the same" if self.bit_equal else "DIFFERENT from what was saved"
        return [
            comparison_table(report),
            Text(f"Accuracy on 360 test images, step by step: {steps}"),
            layer_table(report["layers"]),
            Text(proof_sentence(report["proof"])),
            Text(f"Measured: {report['measured']['environment']}, both networks in turn, batch of 1, one thread."),
            Text(f"Saved to {self.folder}/ and loaded again: {equal}. ONNX: {self.files[0]}, {self.files[1]}"),
            Text(reproduce(report)),
        ]


def story(folder: Path, *, epochs: int, seed: int, on_stage: Callable[[str], None], quiet: bool = False) -> Outcome:
    """Everything that the demo does, in order."""
    on_stage("load digits")
    digits = load_digits()
    image = digits.test.tensors[0][:1]

    on_stage("train")
    network = _trained(digits, epochs, seed, quiet)
    result = prune(
        network,
        image,
        budget=Budget(macs=KEEP),
        granularity=MULTIPLE,
        data=digits.loader(),
        evaluate=digits.accuracy,
        finetune=FineTune(epochs=4, lr=0.02, distil=Distill(), seed=seed, progress=not quiet),
        device="onnxruntime",
        seed=seed,
        on_stage=on_stage,
    )

    on_stage("export")
    folder.mkdir(parents=True, exist_ok=True)
    files = (folder / "before.onnx", folder / "after.onnx")
    for model, path in zip((network, result.model), files, strict=True):
        export_onnx(model, image, path)

    on_stage("save and load")
    artifact = save(result, folder / "artifact")
    loaded = load(artifact, build=DigitNet)
    return Outcome(result, artifact, files, bit_equal=_same_bits(result.model, loaded, digits.test.tensors[0]))


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: sums are taken in one order, so that a repeated run gives the same network."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(digits: Digits, epochs: int, seed: int, quiet: bool) -> nn.Module:
    recipe = FineTune(epochs=epochs, lr=0.05, weight_decay=5e-4, warmup=1.0, seed=seed, progress=not quiet)
    return finetune(new_network(seed), digits.loader(), recipe).model.eval()


def _same_bits(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether two modules give the same output, to the last bit."""
    with torch.no_grad():
        return torch.equal(one.eval()(images), other.eval()(images))
