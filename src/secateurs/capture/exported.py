"""`torch.export` as a way to capture: it makes a program of the model, whose nodes are then played to the tape.

Export runs on a twin of the model (see `share_tensors`), non-strict and without decompositions. Its program names every
parameter, buffer and constant that it reads; they are bound to the twin's own tensors, so that the tape sees the
operators and leaves that it would see in the model's own run. Each node says which module made the call, and which line
of a `forward`; lines of other methods that this line called are lost.
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from secateurs.base.errors import CaptureError, explain
from secateurs.capture.tape import Tape, users_line

_BOUND = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_CUDNN = ("cudnn_enabled", "cudnn_enable")


def export(
    twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tape: Tape, plain: Callable[[Any], Any]
) -> Callable[..., Any]:
    """A function that plays the program of `twin` to the tape: takes the model's arguments, gives its output.

    `plain` turns the model's result into tuples, lists and dicts, so that classes which PyTorch does not know may be
    returned. `twin` is used up. Raises what `torch.export` raises.
    """
    forward, own = twin.forward, vars(twin).get("forward")

    @functools.wraps(forward)
    def plain_forward(*args: Any, **kwargs: Any) -> Any:
        return plain(forward(*args, **kwargs))

    given_args, given_kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
    twin.forward = plain_forward
    try:
        with _silently():
            program = torch.export.export(twin, given_args, given_kwargs, strict=False)
    finally:
        del twin.forward
        if own is not None:
            twin.forward = own
    if program.call_spec.in_spec != pytree.tree_structure((given_args, given_kwargs)):
        raise CaptureError(explain("torch.export takes the arguments in another order"))
    player = Player(program.graph_module, tape, twin)
    return lambda *args, **kwargs: _play(program, player, twin, pytree.tree_leaves((args, kwargs)))


@contextmanager
def _silently() -> Iterator[None]:
    """Export warns, logs and prints half-made programs; what matters of it is in its exception."""
    chatter = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    loud, chatter.disabled = chatter.disabled, True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.disabled = loud


def _play(program: ExportedProgram, player: Player, twin: nn.Module, given: list[Any]) -> Any:
    named = {**dict(twin.named_buffers(remove_duplicate=False)), **dict(twin.named_parameters(remove_duplicate=False))}
    tensors: Mapping[str, Any] = {**program.constants, **named}
    arguments: list[Any] = []
    rest = iter(given)
    for item in program.graph_signature.input_specs:
        if item.kind is InputKind.USER_INPUT:
            arguments.append(next(rest))
        elif item.kind in _BOUND and item.target in tensors:
            arguments.append(tensors[item.target])
        else:
            raise CaptureError(explain("The exported program reads what is no tensor of the model", where=str(item)))
    flat = player.run(*arguments)
    return pytree.tree_unflatten(flat, program.call_spec.out_spec)


class Player(fx.Interpreter):
    """Runs an exported program one node at a time and tells the tape whose node it is."""

    def __init__(self, program: fx.GraphModule, tape: Tape, model: nn.Module) -> None:
        super().__init__(program)
        self.tape, self.model = tape, model
        self.paths: dict[int, str] = {id(module): name for name, module in model.named_modules()}

    def run_node(self, n: fx.Node) -> Any:
        self.tape.module_path[:] = [self._path(n)]
        self.tape.line = users_line(_frames(n.meta.get("stack_trace") or ""))
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (
            target is torch.ops.aten.copy_.default and args[0] is args[1]
        ):  # what export adds for `self.buffer += 1`: nothing is left to copy
            return args[0]
        if isinstance(target, HigherOrderOperator):
            return self._region(target, args, kwargs)
        if isinstance(target, OpOverload):
            if not target._schema.returns:  # an assertion about sizes or types, which export adds
                return None
            args = _with_cudnn(target, args)
        return super().call_function(target, args, kwargs)

    def _region(self, target: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The nodes inside `with torch.no_grad():` or `with torch.autocast(...):`, in place."""
        if target is wrap_with_set_grad_enabled:  # a capture is without gradients anyway
            inner, given = args[1], args[2:]
            return Player(inner, self.tape, self.model).run(*given)
        if target is wrap_with_autocast:
            (device, dtype, enabled, cache, inner), given = args[:5], args[5:]
            with torch.autocast(device, dtype, enabled, cache):
                return Player(inner, self.tape, self.model).run(*given)
        raise CaptureError(explain(f"The exported program holds `{target}`, which has no place in a graph"))

    def _path(self, node: fx.Node) -> str:
        """The innermost module on the node's stack that the model has; for one of several names, the first."""
        stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
        for name, _ in reversed(list(stack.values())):
            try:
                return self.paths[id(self.model.get_submodule(name.partition("@")[0]))]
            except (AttributeError, KeyError):
                continue
        return ""


def _with_cudnn(target: OpOverload[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Export switches cuDNN off for itself and writes that into normalisations; the model's own run says otherwise."""
    names = [argument.name for argument in target._schema.arguments]
    return tuple(
        torch.backends.cudnn.enabled if name in _CUDNN else arg for name, arg in zip(names, args, strict=False)
    )


def _frames(trace: str) -> list[tuple[str, int]]:
    """File names and line numbers of a printed stack, innermost first."""
    frames: list[tuple[str, int]] = []
    for line in trace.split("\n"):
        start, quote, rest = line.strip().partition('", line ')
        if start.startswith('File "') and quote:
            frames.append((start[len('File "') :], int(rest.split(",")[0])))
    return frames[::-1]
