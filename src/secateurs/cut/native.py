"""The user's own class with smaller tensors: copy, slice, and repair the attributes that state sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from secateurs.capture.copying import copied
from secateurs.capture.graph import Graph, Node
from secateurs.couple.rules.registry import arguments

Slicer = Callable[[str, Tensor], Tensor]


def sliced_copy(model: nn.Module, slicer: Slicer) -> nn.Module:
    """A deep copy of `model` in which every parameter and buffer is what `slicer(name, tensor)` makes of it.

    Ties stay ties. Gradients are not copied.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        memo[id(parameter)] = nn.Parameter(_own(slicer(name, parameter.detach()), parameter), parameter.requires_grad)
    for name, buffer in model.named_buffers():
        memo.setdefault(id(buffer), _own(slicer(name, buffer.detach()), buffer))
    for module in model.modules():
        for item in vars(module).values():
            if isinstance(item, Tensor):
                memo.setdefault(id(item), item.detach().clone())
    return copied(model, memo)


def _own(part: Tensor, whole: Tensor) -> Tensor:
    """`part` in memory of its own."""
    same = part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    return part.clone() if same else part


def repair_known(model: nn.Module) -> None:
    """Set the size attributes of PyTorch's own modules from the shapes of their tensors."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
        elif isinstance(module, nn.modules.conv._ConvNd):
            module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            held = module.weight if module.weight is not None else module.running_mean
            if held is not None:
                module.num_features = held.shape[0]
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and shape:
            module.normalized_shape = shape
        elif isinstance(module, nn.GroupNorm) and shape:
            module.num_channels = shape[0]
        elif isinstance(module, nn.Bilinear):
            module.out_features, module.in1_features, module.in2_features = shape
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.num_embeddings, module.embedding_dim = shape
        elif isinstance(module, nn.PReLU):
            module.num_parameters = shape[0]
        elif isinstance(module, nn.RNNCellBase):
            module.hidden_size = module.get_parameter("weight_hh").shape[1]
            module.input_size = module.get_parameter("weight_ih").shape[1]
        elif isinstance(module, nn.RNNBase):
            module.hidden_size = module.get_parameter("weight_hh_l0").shape[1]
            module.input_size = module.get_parameter("weight_ih_l0").shape[1]


def repair_named(model: nn.Module, old: Graph, new: Graph) -> None:
    """Set `groups`, `num_groups` and `normalized_shape` of the modules whose operators changed them."""
    modules = dict(model.named_modules())
    for before, after in zip(old.nodes, new.nodes, strict=True):
        module = modules.get(after.module)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.num_features = new.values[after.inputs[0]].shape[1]
        if before is after or before.op != after.op:
            continue
        for name, item in arguments(after).items():
            if name in ("groups", "num_groups", "normalized_shape") and hasattr(module, name):
                setattr(module, name, tuple(item) if isinstance(item, list) else item)


def repair_guessed(model: nn.Module, old: Graph, new: Graph) -> bool:
    """Integer attributes of a module that equal a size which its own operators changed take the new size.

    A guess, so the caller must compare graphs afterwards. Returns whether anything was set.
    """
    modules = dict(model.named_modules())
    wanted: dict[str, dict[int, set[int]]] = {}
    for before, after in zip(old.nodes, new.nodes, strict=True):
        for a, b in changed_sizes(old, new, before, after):
            wanted.setdefault(after.module, {}).setdefault(a, set()).add(b)
    touched = False
    for path, sizes in wanted.items():
        module = modules.get(path)
        for name, item in list(vars(module).items()) if module is not None else []:
            if name.startswith("_") or isinstance(item, bool):
                continue
            if isinstance(item, int) and len(sizes.get(item, ())) == 1:
                setattr(module, name, next(iter(sizes[item])))
                touched = True
            elif (
                isinstance(item, (tuple, list))
                and item
                and all(isinstance(x, int) and not isinstance(x, bool) for x in item)
            ):
                swapped = [next(iter(sizes[x])) if len(sizes.get(x, ())) == 1 else x for x in item]
                if swapped != list(item):
                    setattr(module, name, type(item)(swapped))
                    touched = True
    return touched


def changed_sizes(old: Graph, new: Graph, before: Node, after: Node) -> Iterator[tuple[int, int]]:
    """Pairs of sizes that differ between a node before and after the cut: results' and arguments'."""
    if before.op == after.op:
        for a, b in zip(_integers(arguments(before)), _integers(arguments(after)), strict=False):
            if a != b:
                yield a, b
    for value in before.outputs:
        if value is not None:
            for a, b in zip(old.values[value].shape, new.values[value].shape, strict=True):
                if a != b:
                    yield a, b


def _integers(tree: Any) -> Iterator[int]:
    if isinstance(tree, bool) or tree is None:
        return
    if isinstance(tree, int):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _integers(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _integers(item)
