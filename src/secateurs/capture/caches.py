"""Function caches of the model's code, which must not keep what an abstract run made.

Code such as `@lru_cache def position_index(window): ...` keeps its result. After a trace that is a tensor without data,
and the caller's next real run would find it there.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

_SPARED = {*sys.stdlib_module_names, "torch", "numpy", "scipy", "secateurs"} - {"__main__"}


def forget_fakes(model: nn.Module, watched: weakref.ref[Any]) -> None:
    """Empty every function cache that may hold a tensor of the trace whose mode `watched` refers to.

    Such a tensor keeps its mode alive. Looked through: the model itself, the modules that define its classes, and all
    others that are neither Python's nor PyTorch's, which are listed anew only after imports.
    """
    if watched() is None:
        return
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    own = {kind.__module__ for kind in kinds if kind.__module__.split(".")[0] not in _SPARED} | {"__main__"}
    near = [cache for name in own if name in sys.modules for cache in _caches_of(sys.modules[name])]
    held = (item for module in model.modules() for item in list(vars(module).values()))
    near += [item for item in held if type(item) is functools._lru_cache_wrapper]
    for cache in (*near, *_everywhere(len(sys.modules))):
        if cache.cache_info().currsize:
            cache.cache_clear()
    for name in own:
        for table in _tables_of(sys.modules.get(name)):
            for key in [key for key, item in list(table.items()) if _without_data(item)]:
                del table[key]


def _tables_of(module: ModuleType | None) -> Iterator[dict[Any, Any]]:
    """Dictionaries at the top level of a module and in the classes that it defines."""
    for item in list(vars(module).values()) if module is not None else []:
        if type(item) is dict:
            yield item
        elif isinstance(item, type) and item.__module__ == vars(module)["__name__"]:
            yield from (inner for inner in list(vars(item).values()) if type(inner) is dict)


def _without_data(item: Any) -> bool:
    if isinstance(item, (tuple, list)):
        return any(_without_data(part) for part in item)
    return isinstance(item, FakeTensor)


@functools.lru_cache(maxsize=1)
def _everywhere(modules: int) -> list[Any]:
    found = [module for name, module in list(sys.modules.items()) if name.split(".")[0] not in _SPARED]
    return list({id(cache): cache for module in found for cache in _caches_of(module)}.values())


def _caches_of(module: ModuleType) -> Iterator[Any]:
    """Caches at the top level of a module and in the classes that it defines, behind decorators too."""
    for item in list(vars(module).values()):
        if isinstance(item, type):
            if item.__module__ == module.__name__:
                for inner in list(vars(item).values()):
                    yield from _behind(inner.__func__ if isinstance(inner, (staticmethod, classmethod)) else inner)
        else:
            yield from _behind(item)


def _behind(item: Any, depth: int = 3) -> Iterator[Any]:
    """The cache that `item` is, or those that a function holds in its closure."""
    if type(item) is functools._lru_cache_wrapper:
        yield item
    elif depth and isinstance(item, FunctionType):
        for cell in item.__closure__ or ():
            try:
                yield from _behind(cell.cell_contents, depth - 1)
            except ValueError:  # a cell that is still empty
                continue
