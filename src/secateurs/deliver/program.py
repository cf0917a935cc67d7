"""The program of a model beside its tensors, so that a file runs without the class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateurs.base.errors import ArtifactError, InputError, explain
from secateurs.capture import capture
from secateurs.choose.choose import plan
from secateurs.couple import couple
from secateurs.cut.cut import cut_detailed
from secateurs.cut.form import GraphModule


def programmed(model: nn.Module | Mapping[str, Tensor], example_inputs: Any) -> GraphModule:
    """The whole model in graph form, tensors under the same names, proven to give the same outputs.

    `example_inputs` as `capture` takes them, a dict being keyword arguments. Raises `InputError` for a state dict,
    and what `cut` raises for a model that has no graph form.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            explain(
                "A state dict has no program",
                evidence="`example_inputs` were given",
                next_step="pass the model itself, or leave out `example_inputs`",
            )
        )
    if isinstance(model, GraphModule):
        return model
    args, kwargs = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (example_inputs, None)
    graph = capture(model, args, kwargs=kwargs)
    groups = couple(graph)
    found = cut_detailed(model, plan(graph, groups, {}), args, kwargs=kwargs, groups=groups, form="graph").model
    assert isinstance(found, GraphModule)
    return found


def from_program(program: str, state: Mapping[str, Tensor], where: str) -> GraphModule:
    """The model of a stored program, in eval mode. Raises `ArtifactError` when the two do not fit each other."""
    try:
        return GraphModule.from_json(program, state).eval()
    except ArtifactError as error:
        raise ArtifactError(
            explain("The packed program cannot be used", where=where, evidence=str(error)[:500])
        ) from error


def without_constants(program: str, state: Mapping[str, Tensor], model: nn.Module, where: str) -> dict[str, Tensor]:
    """What a class is given of `state`: not the constants of the program, which the code of the class makes itself."""
    constants = set(from_program(program, state, where).constant_names) - model.state_dict().keys()
    return {name: tensor for name, tensor in state.items() if name not in constants}
