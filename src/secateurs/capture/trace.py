"""`capture`: model + example inputs -> `Graph`.

The model is traced abstractly (fake tensors: shapes without data). If its control flow looks at data, as detectors do,
one real run is recorded instead, and the graph says so. Either way it runs on a copy of the module tree that shares
the tensors, in eval mode, without gradients, so nothing of the caller's changes.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from secateurs.base.errors import CaptureError, InputError, explain
from secateurs.capture.bind import Calling, Parameters
from secateurs.capture.caches import forget_fakes
from secateurs.capture.copying import copied
from secateurs.capture.exported import export
from secateurs.capture.fold import fold_constants
from secateurs.capture.graph import Decision, Graph, Input, Leaf
from secateurs.capture.modes import eval_mode
from secateurs.capture.refuse import refuse_compiled, refuse_hidden_tensors
from secateurs.capture.tape import ModulePaths, Tape, TapeMode

How = Literal["auto", "traced", "exported", "recorded"]

_LOOKS_AT_DATA = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
    GuardOnDataDependentSymNode,
)


def capture(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    how: How = "auto",
    replay: tuple[Decision, ...] | None = None,
) -> Graph:
    """Run `model` once on `example_inputs` and return what it did.

    `example_inputs` is a tensor or a tuple of positional arguments, `kwargs` the keyword arguments; each may nest
    tensors in lists, tuples and dicts. `how="traced"` insists on an abstract run, `"recorded"` on a real one,
    `"exported"` on the program that `torch.export.export(strict=False)` makes of the model; `"auto"` traces and falls
    back to recording, which the graph's `how` and `notes` then say. With `replay`, a recorded run follows these
    decisions in place of its own.

    Raises `InputError` when `model` is not a module, its parameters are not finite or the inputs hold no entry, and
    `CaptureError` when the model itself fails on the inputs, or can not be captured in the way that was insisted on.
    """
    args, keywords = check_inputs(model, example_inputs, kwargs)
    if how not in get_args(How):
        raise InputError(
            explain(f"There is no way to capture named {how!r}", next_step=f"use {', '.join(get_args(How))}")
        )
    if how != "recorded":
        try:
            return _run(model, args, keywords, how="exported" if how == "exported" else "traced", replay=None)
        except _LOOKS_AT_DATA as error:
            reason = str(error).strip().split("\n")[0]
        except Exception as error:  # noqa: BLE001  whatever stops the abstract run, a real one decides
            reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        if how == "exported":
            raise CaptureError(
                explain(
                    f"{type(model).__name__} can not be captured through torch.export",
                    evidence=reason[:500],
                    next_step="use how='auto', which needs no export",
                )
            )
        if how == "traced":
            raise CaptureError(
                explain("The model cannot be traced without data", evidence=reason, next_step="use how='recorded'")
            )
        note = f"recorded from one real run because tracing stopped: {reason[:300]}"
    else:
        note = "recorded from one real run, as asked"
    try:
        return _run(model, args, keywords, how="recorded", replay=replay, note=note)
    except CaptureError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in pytree.tree_leaves((args, keywords)) if isinstance(t, Tensor))
        raise CaptureError(
            explain(
                f"{type(model).__name__} fails on the example inputs: {type(error).__name__}: {str(error)[:500]}",
                evidence=f"inputs of shape {shapes}",
                next_step="call the model once with these inputs yourself, then pass the same ones",
            )
        ) from error


def check_inputs(
    model: Any, example_inputs: Any, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments in canonical form. Raises `InputError` on what can not be a model call."""
    if not isinstance(model, nn.Module):
        raise InputError(
            explain(
                f"The model is a {type(model).__name__}, not a torch.nn.Module",
                next_step="pass the module that was exported, with how='exported'"
                if isinstance(model, ExportedProgram)
                else "pass an instance of nn.Module",
            )
        )
    args = example_inputs if isinstance(example_inputs, tuple) else () if example_inputs is None else (example_inputs,)
    keywords = dict(kwargs or {})
    refuse_compiled(model)
    refuse_hidden_tensors(args, keywords)
    if not any(isinstance(item, Tensor) for item in pytree.tree_leaves((args, keywords))):
        raise InputError(
            explain(
                "The example inputs hold no tensor",
                evidence=f"got {type(example_inputs).__name__}",
                next_step="pass a tensor, or a tuple with the model's positional arguments",
            )
        )
    tensors = [item for item in pytree.tree_leaves((args, keywords)) if isinstance(item, Tensor)]
    if not any(item.numel() for item in tensors):
        raise InputError(
            explain(
                "The example inputs are empty",
                evidence=f"shapes {', '.join(str(tuple(item.shape)) for item in tensors)}",
                next_step="pass inputs with entries: a batch of at least one",
            )
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.itemsize < 2:
            kind = "has no shape yet" if parameter.itemsize >= 2 else f"is of type {parameter.dtype}"
            raise InputError(
                explain(
                    "These weights can not be cut",
                    where=f"`{name}`",
                    evidence=f"it {kind}",
                    next_step="run the model once, or cut it before it is quantised",
                )
            )
        finite = parameter.device.type == "meta" or bool(torch.isfinite(parameter.detach().sum()))
        if not finite and not bool(torch.isfinite(parameter.detach()).all()):
            bad = int((~torch.isfinite(parameter.detach())).sum())
            raise InputError(
                explain(
                    "The model has weights that are not finite",
                    where=f"`{name}`",
                    evidence=f"{bad} of {parameter.numel()} values are nan or inf",
                    next_step="load sound weights first; a cut can not be proven on these",
                )
            )
    return args, keywords


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    how: Literal["traced", "exported", "recorded"],
    replay: tuple[Decision, ...] | None,
    note: str = "",
) -> Graph:
    tape = Tape(replay=replay)
    fake = None if how == "recorded" else FakeTensorMode(allow_non_fake_inputs=True)
    watched = weakref.ref(fake) if fake is not None else None
    exporter = weakref.ref(model) if how == "exported" else watched  # export's own mode is not ours to watch
    try:
        return _recorded(model, tape, args, kwargs, fake, how, note)
    finally:
        tape.clear()
        del fake
        if exporter is not None:
            forget_fakes(model, exporter)


def _recorded(
    model: nn.Module,
    tape: Tape,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    fake: FakeTensorMode | None,
    how: Literal["traced", "exported", "recorded"],
    note: str,
) -> Graph:
    twin = share_tensors(model)
    kept = {name: buffer.detach().clone() for name, buffer in twin.named_buffers()}
    versions = {name: buffer._version for name, buffer in twin.named_buffers()}
    tape.fake = fake
    try:
        with _quiet_run(model, twin), ExitStack() as stack:
            play = export(twin, args, kwargs, tape, plain_output) if how == "exported" else twin
            stack.enter_context(fake or _nothing())
            stack.enter_context(enable_python_dispatcher())
            if fake is not None:
                args, kwargs = pytree.tree_map_only(Tensor, _without_data, (args, kwargs))
            else:
                args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
            inputs = _number_inputs(tape, model, args, kwargs)
            calling = Calling.of(model, args, kwargs, tape.read)
            with ModulePaths(twin, tape), TapeMode(tape, decisions=fake is None):
                result = play(*args, **kwargs)
            output = tape.read(plain_output(result))
    finally:
        with torch.no_grad():
            for name, buffer in twin.named_buffers():
                before = kept.get(name)
                if before is not None and buffer.shape == before.shape and buffer._version != versions[name]:
                    buffer.copy_(before)
    leaves, constants = _name_leaves(twin, tape)
    _refuse_late_tensors(model, leaves)
    graph = Graph(
        nodes=tuple(tape.nodes),
        values=tuple(tape.values),
        leaves=leaves,
        inputs=inputs,
        calling=calling,
        output=output,
        unread=_unread(twin, leaves),
        constants=constants,
        decisions=tuple(tape.decisions),
        modules={name: type(module).__name__ for name, module in twin.named_modules()},
        how=how,
        notes=(note,) if note else (),
    )
    if not graph.outputs:
        raise CaptureError(explain("The model returns no tensor", evidence=f"it returned a {type(result).__name__}"))
    tensors = {leaf.value: tape.found[leaf.value] for leaf in leaves}
    return fold_constants(graph, tensors)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _quiet_run(model: nn.Module, twin: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no fused attention fast path; these and the random state are restored afterwards.

    The original is put into eval mode too: a patched `forward` or a hook may call its submodules instead of the twin's.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    chatter = logging.getLogger("torch._subclasses.fake_tensor")
    loud = chatter.disabled
    chatter.disabled = True
    torch.backends.mha.set_fastpath_enabled(False)
    random = torch.get_rng_state()
    twin.eval()
    try:
        with eval_mode(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        chatter.disabled = loud
        torch.set_rng_state(random)


def share_tensors(model: nn.Module) -> nn.Module:
    """A deep copy of the module tree whose parameters and buffers are the original's own, views of them included.

    Other tensors that a module holds are copies.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    owned = {_storage(tensor) for tensor in memo.values()}
    for module in model.modules():
        for item in vars(module).values():
            if isinstance(item, Tensor):
                memo.setdefault(id(item), item if _storage(item) in owned else item.detach().clone())
    return copied(model, memo)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else -id(tensor)


def plain_output(result: Any) -> Any:
    """The model's result in tuples, lists and dicts, so that it can be stored as JSON."""
    if isinstance(result, Tensor) or result is None or isinstance(result, (bool, int, float, str)):
        return result
    if isinstance(result, Mapping):
        return {str(key): plain_output(item) for key, item in result.items()}
    if isinstance(result, tuple):
        return tuple(plain_output(item) for item in result)
    if isinstance(result, list):
        return [plain_output(item) for item in result]
    if hasattr(result, "__dataclass_fields__"):
        return {name: plain_output(getattr(result, name)) for name in result.__dataclass_fields__}
    parts, _ = pytree.tree_flatten(result)
    tensors = [item for item in parts if isinstance(item, Tensor)]
    return [plain_output(item) for item in tensors]


def _without_data(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and memory layout; one object given twice becomes two."""
    if tensor.layout != torch.strided:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _number_inputs(tape: Tape, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, ...]:
    names: list[Input] = []
    parameters = Parameters.of(model)
    for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(leaf, Tensor):
            keys: list[Any] = list(path)
            first = parameters.name(keys[1].idx) if keys[0].idx == 0 else str(keys[1].key)
            names.append(Input(first + pytree.keystr(path[2:]), tape.add_value(leaf, None)))
    return tuple(names)


def _refuse_late_tensors(model: nn.Module, leaves: tuple[Leaf, ...]) -> None:
    """Parameters and buffers that the run itself registered are not there to be cut."""
    there = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    for leaf in leaves:
        if leaf.kind != "constant" and leaf.name not in there:
            raise CaptureError(
                explain(
                    "The model registers a tensor only when it runs",
                    where=f"`{leaf.name}`",
                    next_step="run the model once on real inputs first, then capture it",
                )
            )


def _unread(model: nn.Module, leaves: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
    """Parameters and buffers that no operator read."""
    read = {name for leaf in leaves for name in leaf.names}
    rest: list[Leaf] = []
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if name not in read and name not in getattr(model, "constant_names", ()):
                rest.append(Leaf(name, (name,), kind, -1, tuple(tensor.shape), tensor.dtype))  # type: ignore[arg-type]
    return tuple(rest)


def _name_leaves(model: nn.Module, tape: Tape) -> tuple[tuple[Leaf, ...], dict[str, Tensor]]:
    """Leaves for every tensor that the run read and did not make, by identity."""
    names: dict[int, list[str]] = {}
    kinds: dict[int, Literal["parameter", "buffer", "constant"]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        kinds[id(parameter)] = "parameter"
    for name, buffer in model.named_buffers(remove_duplicate=False):
        names.setdefault(id(buffer), []).append(name)
        kinds.setdefault(id(buffer), "buffer")
    leaves: list[Leaf] = []
    constants: dict[str, Tensor] = {}
    held = set(getattr(model, "constant_names", ()))
    owners = {_storage(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    for index, tensor in tape.found.items():
        if id(tensor) not in names and tensor.numel() and _storage(tensor) in owners:
            raise CaptureError(
                explain(
                    "A module holds a second tensor over the memory of a parameter or buffer",
                    where=f"`{owners[_storage(tensor)]}`",
                    evidence=f"the run reads a tensor of shape {tuple(tensor.shape)} that lies in it",
                    next_step="take the view inside `forward`, so that it can be followed",
                )
            )
        alias = tuple(names.get(id(tensor), (f"constant.{len(held)}.{len(constants)}",)))
        kind = "constant" if alias[0] in held else kinds.get(id(tensor), "constant")
        if kind == "constant":
            if isinstance(tensor, FakeTensor):
                raise CaptureError(explain("The model makes a tensor that tracing can not see", evidence=str(tensor)))
            constants[alias[0]] = tape.seen[index]
        leaves.append(Leaf(alias[0], alias, kind, index, tuple(tensor.shape), tensor.dtype))
    return tuple(leaves), constants
