"""Training takes over from a real cut, in both forms that a cut can give back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from train.networks import convolutional, images, loader, state

import secateurs as sec
from secateurs.cut.form import GraphModule
from secateurs.train.distill import Distill, kept_channels
from secateurs.train.evaluate import accuracy
from secateurs.train.finetune import FineTune, finetune
from secateurs.train.optimizer import cut_optimizer
from secateurs.train.recalibrate import recalibrate

EXAMPLE = images(2)[0]


def as_graph(model: nn.Module) -> GraphModule:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return GraphModule(sec.capture(model, EXAMPLE), tensors)


def halved(model: nn.Module) -> tuple[nn.Module, sec.Plan]:
    graph = sec.capture(model, EXAMPLE)
    groups = sec.couple(graph)
    plan = sec.choose(graph, groups, sec.score(groups, model, "l1"), sec.Budget(channels=0.5))
    return sec.cut(model, plan, EXAMPLE), plan


def test_the_rewritten_graph_trains_as_the_module_does() -> None:
    data = loader(images(40))
    config = FineTune(epochs=2, lr=0.05, recalibrate=2, progress=False)
    native = finetune(convolutional().eval(), data, config, validation=data)
    graph = finetune(as_graph(convolutional().eval()), data, config, validation=data)
    for name, tensor in native.model.named_parameters():
        torch.testing.assert_close(graph.model.get_parameter(name), tensor, rtol=1e-4, atol=1e-5)
    assert [row.metric for row in graph.history] == [row.metric for row in native.history]


def test_the_rewritten_graph_recalibrates_as_the_module_does() -> None:
    model, data = convolutional().eval(), loader(images(40))
    native, graph = recalibrate(model, data), recalibrate(as_graph(model), data)
    for name in ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var"):
        assert not torch.equal(native.get_buffer(name), model.get_buffer(name))
        torch.testing.assert_close(graph.get_buffer(name), native.get_buffer(name))


@pytest.mark.parametrize("form", ["native", "graph"])
def test_an_optimizer_crosses_a_real_cut(form: str) -> None:
    data = loader(images(40))
    before = finetune(convolutional().eval(), data, FineTune(epochs=1, progress=False))
    small, plan = halved(before.model)
    target = small if form == "native" else as_graph(small)
    carried = cut_optimizer(before.optimizer, before.model, target, plan)
    old = dict(before.model.named_parameters())
    for name, parameter in target.named_parameters():
        moment = before.optimizer.state[old[name]]["momentum_buffer"]
        for dim, gone in plan.removed.get(name, {}).items():
            stay = [index for index in range(moment.shape[dim]) if index not in gone]
            moment = moment.index_select(dim, torch.tensor(stay))
        assert torch.equal(carried.state[parameter]["momentum_buffer"], moment), name
    after = finetune(target, data, FineTune(epochs=1, progress=False), optimizer=carried)
    assert after.history[0].loss > 0


def test_a_cut_network_learns_from_the_uncut_one() -> None:
    data = loader(images(96))
    teacher = finetune(convolutional(width=12).eval(), data, FineTune(epochs=12, lr=0.05, progress=False)).model
    small, plan = halved(teacher)
    kept = kept_channels(teacher, plan.removed, ["0", "4"])
    assert {name: len(indices) for name, indices in kept.items()} == {
        name: small.get_submodule(name).out_channels for name in kept
    }
    distil = Distill(features=kept)
    config = FineTune(epochs=8, lr=0.05, recalibrate=4, distil=distil, progress=False)
    result = finetune(small, data, config, teacher=teacher, validation=data)
    cut_only = accuracy(data)(small)
    assert result.history[-1].metric is not None
    assert result.history[-1].metric > cut_only
    assert state(small).keys() == state(result.model).keys()
