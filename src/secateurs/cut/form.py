"""`GraphModule`: a rewritten graph as a module that runs, trains, saves and loads without the original class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.base.errors import ArtifactError, InputError, explain
from secateurs.capture.batch import scale_sizes
from secateurs.capture.graph import Graph, Node, Ref, map_refs
from secateurs.capture.run import last_use, operator
from secateurs.couple.rules.registry import arguments, base_name
from secateurs.cut.match import Matcher
from secateurs.cut.text import graph_from_json, graph_to_json

TRAINING_FLAGS = {
    "aten.dropout": "train", "aten.feature_dropout": "train", "aten.alpha_dropout": "train",
    "aten.feature_alpha_dropout": "train", "aten.lstm": "train", "aten.gru": "train", "aten.rnn_tanh": "train",
    "aten.rnn_relu": "train", "aten.rrelu": "training",
}  # fmt: skip


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation for inputs of any rank; a real module, so that training and recalibration treat it as one."""

    def _check_input_dim(self, input: Tensor) -> None:
        return


class GraphModule(nn.Module):
    """Runs `graph` on its own copies of `tensors` (`{leaf name: tensor}`).

    Parameters keep the names they have in the original. Inputs are passed as to the original. In training mode dropout
    and batch normalisation behave as they do there; stochastic depth, which leaves no trace in eval mode, does not.

    Numbers, flags, strings and None among the arguments are part of the program: a call with other values than the
    captured ones raises `InputError`, as does one whose tensors are other arguments than then. Arguments are told apart
    by name, so positional and keyword do not matter. Numbers among the outputs are the original's for the captured
    shapes; inputs of other shapes are refused where there are any (another batch size only where the number was not
    shown to follow it), and so is the graph form of a model that reads such a number from data.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        matcher = Matcher(graph)
        super().__init__()
        self.graph = graph
        self._paths: dict[int, tuple[nn.Module, str]] = {}
        self.constant_names = tuple(graph.constants)
        """Buffers that are part of the program, not of the weights; captured again, they stay constants."""
        self._norms: dict[int, nn.Module] = {}
        self._done = last_use(graph.nodes, graph.outputs)
        self._inputs = [item.value for item in graph.inputs]
        self._matcher = matcher
        for leaf in graph.leaves:
            tensor = graph.constants[leaf.name] if leaf.kind == "constant" else tensors[leaf.name]
            self._paths[leaf.value] = self._hold(leaf.name, leaf.kind, tensor)
        for leaf in graph.unread:
            self._hold(leaf.name, leaf.kind, tensors[leaf.name])
        self._norms = self._make_norms()
        self.eval()

    def _hold(self, name: str, kind: str, tensor: Tensor) -> tuple[nn.Module, str]:
        *path, last = name.split(".")
        owner: nn.Module = self
        for part in path:
            if not isinstance(owner._modules.get(part), nn.Module):
                _check_free(owner, part, name)
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        _check_free(owner, last, name)
        if kind == "parameter":
            keep = tensor.requires_grad if isinstance(tensor, nn.Parameter) else tensor.is_floating_point()
            owner.register_parameter(last, nn.Parameter(tensor.detach().clone(), requires_grad=keep))
        else:
            owner.register_buffer(last, tensor.detach().clone())
        return owner, last

    def _make_norms(self) -> dict[int, nn.Module]:
        """A batch-norm module for every node that reads the tensors of one module path; nodes may share it.

        The whole model cannot be one: a network that is a single batch norm stays an operator.
        """
        names = {leaf.value: leaf.name for leaf in self.graph.leaves}
        made: dict[str, tuple[dict[str, int], nn.Module]] = {}
        norms: dict[int, nn.Module] = {}
        for node in self.graph.nodes:
            if base_name(node.op) != "aten.batch_norm":
                continue
            given = arguments(node)
            keys = ("weight", "bias", "running_mean", "running_var")
            mine = {key: given[key].value for key in keys if isinstance(given[key], Ref)}
            proper = all(names.get(value, "").rpartition(".")[2] == key for key, value in mine.items())
            owners = {names.get(value, "").rpartition(".")[0] for value in mine.values()}
            whole = {"running_mean", "running_var"} <= mine.keys() and ("weight" in mine) == ("bias" in mine)
            if not (proper and whole and len(owners) == 1 and isinstance(given["input"], Ref)) or given["training"]:
                continue
            path = owners.pop()
            if not path:
                continue
            if path not in made:
                made[path] = (mine, self._norm(path, mine, given))
            if made[path][0] == mine:
                norms[node.index] = made[path][1]
        return norms

    def _norm(self, path: str, mine: dict[str, int], given: dict[str, Any]) -> nn.Module:
        parent, _, last = path.rpartition(".")
        owner = self.get_submodule(parent)
        old = owner.get_submodule(last)
        norm = _BatchNorm(old.running_mean.shape[0], given["eps"], given["momentum"], affine="weight" in mine)  # type: ignore[index, arg-type]
        if "num_batches_tracked" in old._buffers:
            norm.num_batches_tracked = old.get_buffer("num_batches_tracked")
        for key in mine:
            setattr(norm, key, getattr(old, key))
            self._paths[mine[key]] = (norm, key)
        setattr(owner, last, norm)
        return norm

    def _read(self, value: int, values: dict[int, Tensor]) -> Tensor:
        if value in values:
            return values[value]
        owner, name = self._paths[value]
        found: Tensor = getattr(owner, name)
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self._matcher.tensors(args, kwargs)
        values = dict(zip(self._inputs, given, strict=True))
        batch = given[0].shape[0] if given[0].dim() else 1
        for node in self.graph.nodes:
            try:
                results = self._run(node, values, batch, given[0].device)
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                self._explain(node, given, error)
                raise
            self._check_count(node, given, len(results))
            for out, result in zip(node.outputs, results, strict=True):
                if out is not None:
                    values[out] = result
            for value in self._done.get(node.index, ()):
                values.pop(value, None)
        output = map_refs(self.graph.output, lambda ref: self._read(ref.value, values))
        return scale_sizes(output, batch, given[0].device) if self._matcher.numbers else output

    def _check_count(self, node: Node, given: list[Tensor], count: int) -> None:
        """Operators such as `split` give as many tensors as their input has pieces."""
        if count != len(node.outputs):
            error = ValueError(f"{count} results instead of {len(node.outputs)}")
            self._explain(node, given, error)
            raise InputError(explain(f"This graph can not run: {error}", where=node.where))

    def _explain(self, node: Node, given: list[Tensor], error: Exception) -> None:
        """If the inputs are not shaped as captured, that is the likely cause."""
        for item, tensor in zip(self.graph.inputs, given, strict=True):
            expected = self.graph.values[item.value].shape
            if tuple(tensor.shape) != expected:
                raise InputError(
                    explain(
                        f"This graph can not run on these inputs: {error}",
                        where=node.where,
                        evidence=f"`{item.name}` has shape {tuple(tensor.shape)}, captured with {expected}",
                        next_step="capture and cut with example inputs of the shape you need",
                    )
                ) from error

    def _run(self, node: Node, values: dict[int, Tensor], batch: int, device: torch.device) -> tuple[Any, ...]:
        norm = self._norms.get(node.index)
        if norm is not None:
            return (norm(self._read(node.inputs[0], values)),)
        args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: self._read(ref.value, values))
        args, kwargs = scale_sizes(args, batch, device), scale_sizes(kwargs, batch, device)
        flag = TRAINING_FLAGS.get(base_name(node.op)) if self.training else None
        if flag is not None:
            schema = [item.name for item in operator(node.op)._schema.arguments]
            if flag in schema and schema.index(flag) < len(args):
                args = tuple(True if i == schema.index(flag) else item for i, item in enumerate(args))
        result = operator(node.op)(*args, **kwargs)
        return tuple(result) if isinstance(result, (list, tuple)) else (result,)

    def tensors(self) -> dict[str, Tensor]:
        """`{leaf name: tensor}` of what the graph reads, constants included."""
        return {leaf.name: getattr(*self._paths[leaf.value]) for leaf in self.graph.leaves}

    def to_json(self) -> str:
        """The program as text; the tensors are in the state dict, under the same names."""
        return graph_to_json(self.graph)

    @classmethod
    def from_json(cls, text: str, tensors: Mapping[str, Tensor]) -> GraphModule:
        """The module back from `to_json` and its state dict. Raises `ArtifactError` if they do not fit each other.

        Tensors may be there under further names that they had in the original.
        """
        graph = graph_from_json(text, tensors)
        further = {name for leaf in (*graph.leaves, *graph.unread) for name in leaf.names[1:]}
        try:
            module = cls(graph, tensors)
            module.load_state_dict({name: tensor for name, tensor in tensors.items() if name not in further})
        except (InputError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            evidence = f"{type(error).__name__}: {error}"[:500]
            raise ArtifactError(explain("The tensors do not fit the graph", evidence=evidence)) from error
        return module

    def extra_repr(self) -> str:
        return f"{len(self.graph.nodes)} operators, inputs {', '.join(item.name for item in self.graph.inputs)}"


def _check_free(owner: nn.Module, part: str, name: str) -> None:
    """Raises `InputError` where a module of this program has something else of that name."""
    if not part or hasattr(owner, part):
        raise InputError(
            explain(
                "The graph form has no room for a tensor of this name",
                where=f"`{name}`",
                evidence=f"`{part}` is taken by something else there" if part else "a part of the name is empty",
                next_step="rename that attribute of the model",
            )
        )
