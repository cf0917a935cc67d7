"""ThiNet: the channels that the next layer misses least, found greedily."""

import torch
from torch import Tensor

from secateurs.base.errors import InputError, explain
from secateurs.couple.group import ChannelGroup
from secateurs.score.contributions import Sampled, order_scores, summed
from secateurs.score.criterion import Context, criterion

OUTPUTS = ("one", "all")


@criterion("thinet", needs="data", normalizer="none")
def thinet(group: ChannelGroup, context: Context, *, positions: int = 10, outputs: str = "one") -> Tensor:
    """The order in which units go if each time the one goes that the next layer misses least. Higher = keep.

    `Xh[i, c]` is what unit c adds to entry i of the next layer's output, bias apart, at `positions` random places for
    each sample: `outputs="one"` random output at each, as in the paper, or `"all"` of them. With T the units that are
    gone, the next to go minimises `sum_i (sum_{j in T + c} Xh[i, j])^2`; the n-th of C scores `n / C`, a unit that adds
    nothing 0. Rows: one per layer that reads the group (an operator other than a convolution or a linear layer counts
    as a plain sum over the units). A group that nothing reads scores 0.

    Needs inputs, no labels; costs one forward pass, a gather of `positions` patches for each sample and layer, and
    `size^2` multiplications for each (with all outputs, `(channels * kernel)^2`). Independent of how the data is split
    into batches. A bad choice with fewer entries than channels, and for a ranking over the whole network: orders say
    nothing about how groups compare.

    Luo et al., ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, 2017.
    """
    if outputs not in OUTPUTS:
        raise InputError(explain(f"outputs={outputs!r} is no choice", next_step=f"take one of {', '.join(OUTPUTS)}"))
    measure = gram if outputs == "one" else Sampled.products
    found = context.once(f"thinet/{positions}/{outputs}", lambda: summed(context, positions, measure))[group.name]
    rows = [order_scores(removal_order(each), each.diagonal()) for each in found]
    return torch.stack(rows) if rows else torch.zeros(group.size)


def gram(sampled: Sampled) -> Tensor:
    """`Xh^T Xh`, `[size, size]`: all that the objective, the order and the scales depend on."""
    shares = sampled.contributions()
    return shares.T @ shares


def removal_order(gram: Tensor) -> Tensor:
    """Units in the order in which they go, `[size]`: the lower index first where two are missed alike."""
    order = []
    missed = torch.zeros(len(gram), dtype=gram.dtype)
    gone = torch.zeros(len(gram), dtype=torch.bool)
    for _ in range(len(gram)):
        cost = (2 * missed + gram.diagonal()).masked_fill(gone, torch.inf)
        unit = int(cost.argmin())
        order.append(unit)
        gone[unit] = True
        missed += gram[unit]
    return torch.tensor(order, dtype=torch.int64)


def scales(gram: Tensor, kept: Tensor) -> Tensor:
    """The factors `[kept]` by which the kept units, each times its own, best replace them all (least squares).

    To fold into the weights that read them.
    """
    found: Tensor = torch.linalg.lstsq(gram[kept][:, kept], gram[kept].sum(1, keepdim=True), driver="gelsd").solution
    return found[:, 0]


def residual(gram: Tensor, kept: Tensor, factors: Tensor | None = None) -> float:
    """`sum_i (y_i - sum_{c kept} factor_c Xh[i, c])^2` with `y_i` the sum over all units (default: factors of one)."""
    left = torch.ones(len(gram), dtype=gram.dtype)
    left[kept] -= 1 if factors is None else factors
    return float(left @ gram @ left)
