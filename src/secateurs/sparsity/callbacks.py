"""A `Sparsifier` as a callback of Lightning's Trainer or of Hugging Face's. Neither library is imported before asked.

The sparsifier is made before training starts, on the model that is trained:

    held = sec.sparsify(model, 0.9, schedule=sec.Gradual(begin=0, end=1000))
    Trainer(callbacks=[sec.sparsity.lightning_callback(held)])
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from secateurs.base.errors import InputError, explain
from secateurs.base.files import write_bytes

if TYPE_CHECKING:
    from secateurs.sparsity.sparsify import Sparsifier

FILE = "sparsifier.safetensors"
"""In a checkpoint folder of Hugging Face's Trainer."""


def lightning_callback(sparsifier: Sparsifier) -> Any:
    """A `lightning.pytorch.Callback`: one `step()` per optimizer step; its state is part of Lightning's checkpoints.

    Raises `InputError` when Lightning is not installed.
    """
    base: Any = _imported(("lightning.pytorch", "pytorch_lightning"), "lightning").Callback

    class SparsifierCallback(base):  # type: ignore[misc]
        """Steps are counted as Lightning counts them, so accumulated batches make one."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self._seen = trainer.global_step

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            for _ in range(trainer.global_step - self._seen):
                sparsifier.step()
            self._seen = trainer.global_step

        def state_dict(self) -> dict[str, Any]:
            return sparsifier.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            sparsifier.load_state_dict(state)

    return SparsifierCallback()


def hugging_face_callback(sparsifier: Sparsifier) -> Any:
    """A `transformers.TrainerCallback`: one `step()` per optimizer step.

    Its state is a file in every checkpoint folder, and is taken from there when training goes on from one. The Trainer
    does not tell where it goes on from: if that is not in its output folder, `TrainingArguments` must say so too
    (`resume_from_checkpoint`). Raises `InputError` when transformers is not installed, or there is no such file.
    """
    base: Any = _imported(("transformers",), "transformers").TrainerCallback

    class SparsifierCallback(base):  # type: ignore[misc]
        """Masks follow the Trainer's own count of steps."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step != sparsifier.steps:
                sparsifier.load_state_dict(load(_saved(args, state).read_bytes()))

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            sparsifier.step()

        def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.is_world_process_zero:
                folder = _folder(args, state)
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / FILE, save(sparsifier.state_dict()))

    return SparsifierCallback()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _saved(args: Any, state: Any) -> Path:
    given = getattr(args, "resume_from_checkpoint", None)
    places = [Path(given)] if isinstance(given, str) else []
    for place in [*places, _folder(args, state)]:
        if (place / FILE).is_file():
            return place / FILE
    raise InputError(
        explain(
            f"The masks of step {state.global_step} are not there",
            evidence=f"no file {FILE} in {_folder(args, state)}",
            next_step="go on from a checkpoint that was written with this callback; if it is elsewhere, name it "
            "in TrainingArguments(resume_from_checkpoint=...), too",
        )
    )


def _imported(names: tuple[str, ...], package: str) -> Any:
    """The library under the first of its names; under the one that the program has imported already, if any."""
    for name in sorted(names, key=lambda item: sys.modules.get(item) is None):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise InputError(explain(f"{package} is not installed", next_step=f"run `pip install {package}`"))


__all__ = ["hugging_face_callback", "lightning_callback"]
