"""The callbacks of other trainers step once per optimizer step, and their checkpoints give the same bits."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import secateurs as sec
from benchmarks.zoo import operators
from secateurs.sparsity.callbacks import FILE, hugging_face_callback, lightning_callback


def build(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, sec.Sparsifier]:
    torch.manual_seed(seed)
    model = nn.Linear(12, 5)
    held = sec.sparsify(model, 0.8, mode="dense-update", schedule=sec.Gradual(begin=0, end=6, every=2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1), held


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def handler(model: nn.Module, optimizer: torch.optim.Optimizer, callback: Any) -> Any:
    """The part of Hugging Face's Trainer that calls callbacks: the real one."""
    trainer = pytest.importorskip("transformers.trainer_callback")
    return trainer.CallbackHandler([trainer.DefaultFlowCallback(), callback], model, None, optimizer, None)


def test_hugging_face_steps_saves_and_goes_on(tmp_path: Path) -> None:
    trainer = pytest.importorskip("transformers.trainer_callback")
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=None)

    def go(parts: tuple[Any, Any, sec.Sparsifier], start: int, end: int) -> None:
        calls = handler(parts[0], parts[1], hugging_face_callback(parts[2]))
        state, control = trainer.TrainerState(), trainer.TrainerControl()
        state.global_step = start
        calls.call_event("on_train_begin", args, state, control)
        for step in range(start, end):
            train(parts[0], parts[1], step)
            state.global_step += 1
            calls.call_event("on_step_end", fake_arguments(), state, control)
            if state.global_step == 4:
                calls.call_event("on_save", args, state, control)

    def fake_arguments() -> Any:
        """What Transformers' own callback for the flow of training looks at."""
        return SimpleNamespace(
            logging_first_step=False, logging_strategy="no", eval_strategy="no", save_strategy="no", eval_delay=0
        )

    whole, again = build(), build(7)
    go(whole, 0, 4)
    saved = [{key: value.clone() for key, value in whole[0].state_dict().items()}, whole[1].state_dict()]
    saved[1] = {"state": {k: {n: v.clone() for n, v in s.items()} for k, s in saved[1]["state"].items()},
                "param_groups": saved[1]["param_groups"]}  # fmt: skip
    go(whole, 4, 8)
    assert (tmp_path / "checkpoint-4" / FILE).is_file()
    again[0].load_state_dict(saved[0])
    again[1].load_state_dict(saved[1])
    go(again, 4, 8)
    assert whole[2].steps == again[2].steps == 8
    assert whole[2].sparsity == pytest.approx(0.8)
    for key, value in whole[2].state_dict().items():
        assert torch.equal(value, again[2].state_dict()[key]), key


class Toy(nn.Module):
    """What Hugging Face's Trainer asks of a model: a loss among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}


def hugging_face_trainer() -> Any:
    """`Trainer` and its `TrainingArguments`; the test is skipped where they, or what they need, are not installed."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs accelerate: run `make zoo`")
    if importlib.util.find_spec("torchvision") is not None:
        operators.provide()  # for Transformers, which imports it where it is
    return transformers


@pytest.mark.parametrize("mode", ["hard", "dense-update"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_hugging_face_trains_saves_and_resumes(mode: str, elsewhere: bool, tmp_path: Path) -> None:
    """`Trainer.train()` itself, batches accumulated: zeros in the checkpoint and at the end, the same bits resumed."""
    transformers = hugging_face_trainer()
    numbers = torch.Generator().manual_seed(1)
    data = [
        {"x": torch.randn(12, generator=numbers), "labels": torch.randint(5, (), generator=numbers)} for _ in range(32)
    ]

    def go(seed: int, folder: Path, checkpoint: Path | None) -> tuple[Toy, sec.Sparsifier]:
        torch.manual_seed(seed)
        model = Toy()
        held = sec.sparsify(model, 0.8, mode=mode, schedule=sec.Gradual(begin=0, end=6, every=2))
        args = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            learning_rate=0.05, weight_decay=0.1, save_steps=3, save_strategy="steps", logging_strategy="no",
            report_to=[], disable_tqdm=True, use_cpu=True, seed=0,
            resume_from_checkpoint=str(checkpoint) if checkpoint is not None and checkpoint.parent != folder else None,
        )  # fmt: skip
        trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[hugging_face_callback(held)])
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return model, held

    whole, first = go(0, tmp_path / "one", None)
    saved = tmp_path / "one" / "checkpoint-3"
    weights, state = load_file(saved / "model.safetensors"), load_file(saved / FILE)
    midway = state["mask.layer.weight"]
    assert int(midway.logical_not().sum()) == 34  # of 60, at two thirds of the way from step 2 on
    assert torch.equal(weights["layer.weight"] != 0, midway.bool())
    again, second = go(7, tmp_path / ("two" if elsewhere else "one"), saved)
    assert first.steps == second.steps == 8
    for model, held in ((whole, first), (again, second)):
        zeros = ~held.masks["layer.weight"]
        assert int(zeros.sum()) == 48
        assert torch.equal(model.layer.weight == 0, zeros)
        assert not model.layer.weight[zeros].signbit().any()
    assert torch.equal(whole.layer.weight, again.layer.weight)
    assert torch.equal(whole.layer.bias, again.layer.bias)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    held = build()[2]
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=3)
    with pytest.raises(sec.InputError, match="masks of step 3 are not there"):
        hugging_face_callback(held).on_train_begin(args, state, None)


@pytest.mark.medium
def test_lightning_counts_optimizer_steps_and_keeps_state(tmp_path: Path) -> None:
    if importlib.util.find_spec("torchvision") is not None:
        operators.provide()  # for TorchMetrics, which imports it where it is
    try:
        lightning: Any = importlib.import_module("lightning.pytorch")
    except ModuleNotFoundError:
        lightning = pytest.importorskip("pytorch_lightning")

    def fit(seed: int, epochs: int, checkpoint: str | None) -> tuple[sec.Sparsifier, nn.Module]:
        torch.manual_seed(seed)

        class Module(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(12, 5)

            def training_step(self, batch: Any, index: int) -> Any:
                return self.layer(batch).square().mean()

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.parameters(), lr=0.05)

        module = Module()
        held = sec.sparsify(module, 0.8, mode="dense-update", schedule=sec.Gradual(begin=0, end=6, every=2))
        data = torch.utils.data.DataLoader(
            torch.randn(24, 12, generator=torch.Generator().manual_seed(1)), batch_size=4
        )
        trainer = lightning.Trainer(
            max_epochs=epochs, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[lightning_callback(held)],
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=checkpoint)
        if epochs == 2:
            trainer.save_checkpoint(tmp_path / "two.ckpt")
        return held, module

    whole, first = fit(0, 4, None)
    fit(0, 2, None)
    again, second = fit(9, 4, str(tmp_path / "two.ckpt"))
    assert whole.steps == again.steps == 12
    assert torch.equal(first.layer.weight, second.layer.weight)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("used", ["lightning.pytorch", "pytorch_lightning"])
def test_the_lightning_that_the_program_uses_is_taken(
    used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning comes under two names, whose classes are not the same; with both installed, the trainer's counts."""
    for name in ("lightning", "lightning/pytorch", "pytorch_lightning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("class Callback:\n    of = __name__\n")
        monkeypatch.setitem(sys.modules, name.replace("/", "."), ModuleType("gone"))  # so that all is put back
        monkeypatch.delitem(sys.modules, name.replace("/", "."))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(used)
    assert lightning_callback(build()[2]).of == used


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    held = build()[2]
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    for make, package in ((lightning_callback, "lightning"), (hugging_face_callback, "transformers")):
        with pytest.raises(sec.InputError, match=f"pip install {package}"):
            make(held)
