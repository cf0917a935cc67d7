"""Does a graph draw random numbers?"""

from __future__ import annotations

import torch

from secateurs.capture.graph import Graph, Node
from secateurs.capture.run import operator
from secateurs.couple.rules.registry import arguments


def draws_numbers(graph: Graph) -> bool:
    """Does the model draw random numbers in eval mode?"""
    return any(torch.Tag.nondeterministic_seeded in operator(node.op).tags and not _idle(node) for node in graph.nodes)


def _idle(node: Node) -> bool:
    """Dropout and the like that are switched off."""
    given = arguments(node)
    return given.get("train") is False or given.get("training") is False or given.get("dropout_p") == 0.0
