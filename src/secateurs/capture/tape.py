"""The tape: every ATen operator that a model calls, written down while it runs.

The tape sits at PyTorch's pre-dispatch level, where composite operators such as `conv2d`, `linear` and
`scaled_dot_product_attention` have not been taken apart yet. That is the level `torch.export` works at, so both give
the same operators; `docs/decisions.md` says why this house records them itself.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode

from secateurs.base.errors import CaptureError, explain
from secateurs.capture.abstract import empty_result
from secateurs.capture.graph import Decision, Node, Ref, Value, refs
from secateurs.capture.run import operator

_OUR_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH_FOLDER = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


@dataclass
class Tape:
    """What has been written so far."""

    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    found: dict[int, Tensor] = field(default_factory=dict)
    seen: dict[int, Tensor] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    replay: tuple[Decision, ...] | None = None
    turn: int = 0
    fake: Any = None
    module_path: list[str] = field(default_factory=list)
    line: str | None = None
    _index_of: dict[int, int] = field(default_factory=dict)
    _made: dict[Any, int] = field(default_factory=dict)
    _alive: list[Any] = field(default_factory=list)

    def value_of(self, tensor: Tensor) -> int | None:
        """The number of this tensor, or None if the tape has not seen it.

        What PyTorch hands to Python after a factory such as `torch.arange` is a shallow copy of what the operator gave,
        so tensors are also known by their memory.
        """
        index = self._index_of.get(id(tensor))
        if index is None and tensor.layout == torch.strided:
            index = self._made.get(_memory(tensor))
            if index is not None:
                self._index_of[id(tensor)] = index
                self._alive.append(tensor)
        return index

    def add_value(self, tensor: Tensor, producer: int | None) -> int:
        """Give the tensor the next number; from now on this object is that value."""
        index = len(self.values)
        storage = tensor.untyped_storage()._cdata if tensor.layout == torch.strided else -1 - index
        self.values.append(Value(index, tuple(int(n) for n in tensor.shape), tensor.dtype, producer, storage))
        self._index_of[id(tensor)] = index
        self._alive.append(tensor)
        return index

    def clear(self) -> None:
        """Let go of every tensor."""
        self._alive.clear()
        self.found.clear()

    def read(self, tree: Any) -> Any:
        """Arguments with tensors replaced by `Ref`; new tensors are noted in `found`, their contents in `seen`."""
        if isinstance(tree, Tensor):
            index = self.value_of(tree)
            if index is None:
                index = self.add_value(tree, None)
                self.found[index] = tree
                if not isinstance(tree, (nn.Parameter, FakeTensor)):
                    with unset_fake_temporarily():
                        self.seen[index] = tree.detach().clone()
            return Ref(index)
        if isinstance(tree, (list, tuple)):
            items = [self.read(item) for item in tree]
            return items if isinstance(tree, list) else tuple(items)
        if isinstance(tree, Mapping):
            return {key: self.read(item) for key, item in tree.items()}
        if isinstance(tree, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise CaptureError(explain("A size depends on data", evidence=str(tree)))
        return tree

    def join_views(self, refs: Iterable[Ref], results: list[Any]) -> None:
        """A view of a leaf lies in the leaf's memory, although in a trace the leaf itself has real memory."""
        made = {item.untyped_storage()._cdata for item in results if isinstance(item, FakeTensor)}
        for ref in refs:
            leaf = self.found.get(ref.value)
            if leaf is not None and self.values[ref.value].storage not in made:
                storage = self.fake.from_tensor(leaf).untyped_storage()._cdata
                if storage in made:
                    self.values[ref.value] = replace(self.values[ref.value], storage=storage)

    def write(self, op: str, arguments: Any, keywords: Any, result: Any) -> None:
        """Append one call, whose arguments were read before it ran."""
        listed = isinstance(result, (list, tuple))
        flat = list(result) if listed else [result]
        if not any(isinstance(item, Tensor) for item in flat):
            return
        if self.fake is not None and may_alias(op):
            self.join_views(refs((arguments, keywords)), flat)
        index = len(self.nodes)
        outputs = tuple(self.add_value(item, index) if isinstance(item, Tensor) else None for item in flat)
        for item, out in zip(flat, outputs, strict=True):
            if out is not None and item.layout == torch.strided:
                self._made[_memory(item)] = out
        path = self.module_path[-1] if self.module_path else ""
        line = users_line(_stack()) if self.line is None else self.line
        self.nodes.append(Node(index, op, arguments, keywords, outputs, listed, path, line))


class TapeMode(SchemaCheckMode):
    """Dispatch mode that runs each operator and writes it on the tape.

    PyTorch admits three kinds of mode on its pre-dispatch stack; this one takes the place of its schema checker, which
    is never active in a capture.
    """

    def __init__(self, tape: Tape, decisions: bool) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self.tape = tape
        self.decisions = decisions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = str(func)
        arguments, keywords = self.tape.read(tuple(args)), self.tape.read(dict(kwargs))
        result = None if self.decisions else empty_result(func, args, kwargs, self.tape.fake)
        result = func(*args, **kwargs) if result is None else result
        flat = tuple(result) if isinstance(result, (list, tuple)) else (result,)
        if self.decisions and _decides(func, args, kwargs) and any(is_discrete(item) for item in flat):
            result = self._decided(op, result)
            flat = tuple(result) if isinstance(result, (list, tuple)) else (result,)
            outputs = tuple(item.detach().clone() if isinstance(item, Tensor) else item for item in flat)
            self.tape.decisions.append(Decision(op, len(self.tape.nodes), outputs))
        self.tape.write(op, arguments, keywords, result)
        return result

    def _decided(self, op: str, result: Any) -> Any:
        """The recorded outcome if there is one to replay; folded decisions may be missing from the run."""
        replay = self.tape.replay or ()
        while self.tape.turn < len(replay) and replay[self.tape.turn].op != op and replay[self.tape.turn].node < 0:
            self.tape.turn += 1
        if self.tape.turn >= len(replay) or replay[self.tape.turn].op != op:
            return result
        self.tape.turn += 1
        return replayed(replay[self.tape.turn - 1], lambda: result)


@cache
def may_alias(op: str) -> bool:
    """Can a result of this operator lie in the memory of an argument?"""
    return any(item.alias_info is not None for item in operator(op)._schema.returns)


def replayed(decision: Decision, run: Callable[[], Any]) -> Any:
    """The recorded outputs of a decision; floating-point outputs beside them are computed afresh by `run`."""
    fresh = tuple(item.clone() if isinstance(item, Tensor) else item for item in decision.outputs)
    if not all(is_discrete(item) for item in fresh):
        now = run()
        flat = tuple(now) if isinstance(now, (list, tuple)) else (now,)
        fresh = tuple(old if is_discrete(old) else new for old, new in zip(fresh, flat, strict=True))
    return fresh if len(fresh) != 1 else fresh[0]


def is_discrete(item: Any) -> bool:
    """True for integer and boolean tensors and for Python numbers."""
    if isinstance(item, Tensor):
        return not item.dtype.is_floating_point and not item.dtype.is_complex
    return isinstance(item, (bool, int, float))


class ModulePaths:
    """While active, keeps the path of the module that runs on top of the tape's stack."""

    def __init__(self, model: nn.Module, tape: Tape) -> None:
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.tape = tape
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            parent = self.tape.module_path[-1] if self.tape.module_path else ""
            self.tape.module_path.append(self.paths.get(id(module), parent))

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            self.tape.module_path.pop()

        hooks = torch.nn.modules.module
        self.handles.append(hooks.register_module_forward_pre_hook(enter))
        self.handles.append(hooks.register_module_forward_hook(leave, always_call=True))

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()


def _decides(func: Any, args: Any, kwargs: Any) -> bool:
    """Could this call turn floating-point data into integers, booleans or Python numbers?"""
    tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
    return any(item.dtype.is_floating_point for item in tensors) or func in _HOST_READS


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two views of the same elements have in common."""
    return (tensor.untyped_storage()._cdata, tuple(tensor.shape), tensor.stride(), tensor.storage_offset())


_HOST_READS = {
    torch.ops.aten.item.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
}


def _stack() -> Iterator[tuple[str, int]]:
    """File names and line numbers of the running frames, innermost first."""
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        if frame.f_back is None:
            break
        frame = frame.f_back


def users_line(frames: Iterable[tuple[str, int]]) -> str:
    """`file.py:12: code` of the first frame that is neither PyTorch's nor ours."""
    for name, line in frames:
        if not name.startswith((_TORCH_FOLDER, _OUR_FOLDER, "<")):
            code = linecache.getline(name, line).strip()
            return f"{os.sep.join(name.split(os.sep)[-2:])}:{line}" + (f": {code}" if code else "")
    return ""
