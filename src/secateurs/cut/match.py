"""Is this call the one that was captured, on other tensors? A graph has the numbers and flags of its call built in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from secateurs.base.errors import InputError, explain
from secateurs.capture.batch import Scaled
from secateurs.capture.bind import Opaque, Parameters, is_literal, same_literal
from secateurs.capture.graph import Graph, Ref

AGAIN = "capture and cut with the arguments that you need, or call as captured"


class Matcher:
    """Finds the tensors of a call in the order of the graph's inputs; refuses a call that differs in anything else.

    Raises `InputError` at once for a graph whose call holds an object that can not be compared by value, or whose
    outputs hold numbers that were read from data. Where the graph does not know its call (`calling` is None, as in
    stored programs from before calls were stored with them), only the number of tensors is checked.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.numbers = any(True for _ in _numbers(graph.output))
        """Do the outputs hold numbers? They were computed from the shapes of the inputs."""
        self._strict = any(not isinstance(item, Scaled) for item in _numbers(graph.output))
        if self.numbers and graph.how == "recorded":
            raise InputError(
                explain(
                    "The model returns a number that it may have read from data, which a graph would repeat for ever",
                    evidence=f"{next(_numbers(graph.output))!r} among its outputs",
                    next_step="return it as a tensor, without `.item()`, `float` or `int`",
                )
            )
        calling = graph.calling
        self._parameters = calling.parameters if calling else Parameters()
        self._leaves: Mapping[str, Any] | None = calling.leaves if calling else None
        for name, leaf in (self._leaves or {}).items():
            if isinstance(leaf, Opaque):
                raise InputError(
                    explain(
                        "A graph can not tell whether this argument is the captured one",
                        where=f"argument `{name}`",
                        evidence=f"it is a {leaf.kind}, which has no value to compare",
                        next_step="pass its numbers and strings instead, or make the module so that its own class can "
                        "be cut",
                    )
                )
        self._values = [item.value for item in graph.inputs]
        self._usual = self._all_positional_tensors()

    def _all_positional_tensors(self) -> int:
        """How many positional tensors make up the whole captured call, defaults aside; 0 if it is not such a call."""
        leaves, count = self._leaves or {}, len(self._values)
        names = self._parameters.positional[:count]
        rest = {name: leaf for name, leaf in leaves.items() if name not in names}
        defaults = self._parameters.defaults
        usual = [leaves.get(name) for name in names] == [Ref(value) for value in self._values]
        plain = all(name in defaults and same_literal(leaf, defaults[name]) for name, leaf in rest.items())
        return count if usual and plain else 0

    def tensors(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of this call, in the order of the graph's inputs. Raises `InputError` if it is another call."""
        if not kwargs and len(args) == self._usual and all(isinstance(item, Tensor) for item in args):
            found = list(args)
        elif self._leaves is None:
            found = self._counted(args, kwargs)
        else:
            found = self._named(self._leaves, args, kwargs)
        if self.numbers:
            self._check_shapes(found)
        return found

    def _counted(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        found = [item for item in pytree.tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        if len(found) != len(self._values):
            raise self._other(f"{len(found)} tensors given, expected {self._expected()}")
        return found

    def _named(self, leaves: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        given = self._parameters.bind(args, kwargs)
        for name in given:
            if name not in leaves:
                raise self._other(f"`{name}` is given and was not in the captured call: {self._expected()}")
        found: dict[int, Tensor] = {}
        for name, captured in leaves.items():
            if name not in given:
                raise self._other(f"`{name}` is missing, captured with {_shown(captured)}")
            now = given[name]
            if isinstance(captured, Ref) and isinstance(now, Tensor):
                found[captured.value] = now
            elif not same_literal(captured, now):
                evidence = f"captured with {_shown(captured)}, given {_shown(now)}"
                raise InputError(
                    explain(
                        "This graph was captured with another value of an argument",
                        where=f"argument `{name}`",
                        evidence=evidence,
                        next_step=AGAIN,
                    )
                )
        if sorted(given, key=_argument) != sorted(leaves, key=_argument):
            raise self._other("the keys of a dict are in another order than they were captured in")
        return [found[value] for value in self._values]

    def _check_shapes(self, found: list[Tensor]) -> None:
        """Numbers among the outputs hold for the captured shapes; for any batch only where that was shown."""
        free = 0 if self._strict else 1
        for item, tensor in zip(self.graph.inputs, found, strict=True):
            expected = self.graph.values[item.value].shape
            if tensor.dim() != len(expected) or tuple(tensor.shape[free:]) != expected[free:]:
                raise InputError(
                    explain(
                        "The model returns numbers that depend on the shapes of its inputs",
                        where=f"argument `{item.name}`",
                        evidence=f"shape {tuple(tensor.shape)} given, captured with {expected}",
                        next_step="capture and cut with example inputs of the shape you need, or return tensors only",
                    )
                )

    def _expected(self) -> str:
        return ", ".join(item.name for item in self.graph.inputs)

    def _other(self, evidence: str) -> InputError:
        return InputError(explain("This module takes other inputs", evidence=evidence, next_step=AGAIN))


def _argument(name: str) -> str:
    """`batch` of `batch['ids']`."""
    return name.partition("[")[0].partition(".")[0] if not name.startswith("args[") else name.partition("]")[0]


def _shown(item: Any) -> str:
    if isinstance(item, (Ref, Tensor)):
        return "a tensor"
    return repr(item) if is_literal(item) else f"a {type(item).__name__}"


def _numbers(tree: Any) -> Iterator[Any]:
    """Numbers in an output structure."""
    if isinstance(tree, (bool, int, float, complex, Scaled)):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from _numbers(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _numbers(item)
