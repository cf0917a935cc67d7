"""How many groups a well-known block has and how large each is, exactly: neither frozen too much nor tied too much.

`shape_of` lists the sizes of the free groups, largest first; every number below was worked out by hand from the block.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sec
from secateurs.testing.chain import check_chain, half_kept
from secateurs.testing.layers import FusedAttention, GatedUnit, GroupedQueryAttention, NormOverChannels, SqueezeExcite
from secateurs.testing.networks import randomize

torch.set_num_threads(1)


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def shape_of(model: nn.Module, *inputs: Tensor, form: str | None = None) -> list[int]:
    """Sizes of the free groups of more than one unit; the block is also cut in half and proven."""
    randomize(model.eval(), torch.Generator().manual_seed(0))
    report = check_chain(model, inputs, half_kept)
    if form is not None:
        assert report.form == form
    return sorted((group.size for group in report.groups.free if group.size > 1), reverse=True)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def classifier(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


# Plain chains


def test_multilayer_perceptron():
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    assert shape_of(net, torch.randn(2, 5), form="native") == [16, 12]


def test_vgg():
    net = nn.Sequential(conv_bn(3, 8), conv_bn(8, 10), nn.MaxPool2d(2), conv_bn(10, 12), nn.Flatten())
    net.extend([nn.Linear(12 * 16, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 4)])
    assert shape_of(net, image(), form="native") == [20, 12, 10, 8]


def test_autoencoder_with_transposed_convolutions():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(12, 10, 2, 2), nn.ReLU(), nn.ConvTranspose2d(10, 3, 2, 2),
    )  # fmt: skip
    assert shape_of(net, image(), form="native") == [12, 10, 8]


# Residual networks


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or outputs
        self.first = conv_bn(inputs, hidden, stride=stride)
        self.second = conv_bn(hidden, outputs)[:2]
        self.short = nn.Identity() if inputs == outputs and stride == 1 else conv_bn(inputs, outputs, 1, stride)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.short(x))


def test_resnet_stages():
    """One group per stage's trunk (8 and 16) and one per inner convolution (6, 7, 12, 14)."""
    net = nn.Sequential(
        conv_bn(3, 8), BasicBlock(8, 8, hidden=6), BasicBlock(8, 8, hidden=7),
        BasicBlock(8, 16, stride=2, hidden=12), BasicBlock(16, 16, hidden=14), classifier(16),
    )  # fmt: skip
    assert shape_of(net, image(), form="native") == [16, 14, 12, 8, 7, 6]


class Bottleneck(nn.Module):
    def __init__(self, width: int, hidden: int, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(width, hidden, 1), conv_bn(hidden, hidden, groups=groups), *conv_bn(hidden, width, 1)[:2]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + x)


def test_resnet_bottleneck():
    net = nn.Sequential(conv_bn(3, 16), Bottleneck(16, 6), Bottleneck(16, 7), classifier(16))
    assert shape_of(net, image(), form="native") == [16, 7, 7, 6, 6]


def test_resnext_bottleneck():
    """A grouped convolution of 4 groups leaves 12 / 4 units before it and 12 / 4 behind it."""
    net = nn.Sequential(conv_bn(3, 16), Bottleneck(16, 12, groups=4), classifier(16))
    assert shape_of(net, image(), form="native") == [16, 3, 3]


class InvertedResidual(nn.Module):
    def __init__(self, width: int, hidden: int, excite: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(width, hidden, 1),
            conv_bn(hidden, hidden, groups=hidden),
            SqueezeExcite(hidden, 5) if excite else nn.Identity(),
            *conv_bn(hidden, width, 1)[:2],
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def test_mobilenet_v2():
    net = nn.Sequential(
        conv_bn(3, 8), InvertedResidual(8, 24), InvertedResidual(8, 20), conv_bn(8, 30, 1), classifier(30)
    )
    assert shape_of(net, image(), form="native") == [30, 24, 20, 8]


def test_efficientnet():
    net = nn.Sequential(conv_bn(3, 8), InvertedResidual(8, 24, True), InvertedResidual(8, 20, True), classifier(8))
    assert shape_of(net, image(), form="native") == [24, 20, 8, 5, 5]


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def test_convnext():
    net = nn.Sequential(nn.Conv2d(3, 6, 2, 2), NormOverChannels(6), ConvNeXtBlock(6), ConvNeXtBlock(6), classifier(6))
    assert shape_of(net, image(), form="native") == [24, 24, 6]


# Concatenation


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))], 1)


def test_densenet_block():
    """Stem (8), per layer its bottleneck (10, 11, 12) and its growth (4 each), transition (9)."""
    net = nn.Sequential(
        conv_bn(3, 8), DenseLayer(8, 4, 10), DenseLayer(12, 4, 11), DenseLayer(16, 4, 12),
        nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 9, 1), nn.AvgPool2d(2), classifier(9),
    )  # fmt: skip
    assert shape_of(net, image()) == [12, 11, 10, 9, 8, 4, 4, 4]


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv_bn(8, 5, 1)
        self.b = nn.Sequential(conv_bn(8, 6, 1), conv_bn(6, 7))
        self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x)], 1)


def test_inception():
    net = nn.Sequential(conv_bn(3, 8), Inception(), conv_bn(16, 10, 1), classifier(10))
    assert shape_of(net, image(), form="native") == [10, 8, 7, 6, 5, 4]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 8), conv_bn(8, 12)
        self.up = nn.ConvTranspose2d(12, 7, 2, 2)
        self.join = conv_bn(15, 9)
        self.out = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        low = self.down2(F.max_pool2d(high, 2))
        return self.out(self.join(torch.cat([high, self.up(low)], 1)))


def test_unet():
    assert shape_of(UNet(), image(), form="native") == [12, 9, 8, 7]


# Split and shuffle


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half of the channels pass, half are computed, then the two halves are interleaved."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            conv_bn(half, hidden, 1), *conv_bn(hidden, hidden, groups=hidden)[:2], conv_bn(hidden, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat([a, self.body(b)], 1)
        batch, count, height, width = y.shape
        return y.view(batch, 2, count // 2, height, width).transpose(1, 2).reshape(batch, count, height, width)


def test_shufflenet_v2():
    """The bottlenecks (7, 9) are free; the interleaved trunk of 16 has at most 8 units and not all are one."""
    net = nn.Sequential(conv_bn(3, 16), ShuffleUnit(16, 7), ShuffleUnit(16, 9), classifier(16))
    sizes = shape_of(net, image())
    assert 9 in sizes and 7 in sizes
    assert 2 <= sum(sizes) - 16 <= 16


def test_ghost_module():
    """A 1x1 convolution of 6 and a depthwise convolution of its result, concatenated: six units of one and one."""

    class Ghost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = conv_bn(8, 6, 1)
            self.cheap = conv_bn(6, 6, groups=6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.main(x)
            return torch.cat([y, self.cheap(y)], 1)

    assert shape_of(nn.Sequential(conv_bn(3, 8), Ghost(), conv_bn(12, 5, 1), classifier(5)), image()) == [8, 6, 5]


# Transformers


class Block(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, manual: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FusedAttention(width, heads, head_dim, manual)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self, manual: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 5, 8))
        self.blocks = nn.Sequential(Block(8, 4, 2, 20, manual), Block(8, 3, 2, 24, manual))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


@pytest.mark.parametrize("manual", [False, True])
def test_vision_transformer(manual):
    """Trunk (8), per block its heads (4, 3) and its hidden layer (20, 24)."""
    assert shape_of(VisionTransformer(manual), image()) == [24, 20, 8, 4, 3]


def test_llama_block():
    """Trunk (8, tied into the output), two key/value heads with their queries, hidden layer (10)."""

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.norm1, self.norm2 = nn.RMSNorm(8), nn.RMSNorm(8)
            self.attention = GroupedQueryAttention(8, 4, 2, 4)
            self.mlp = GatedUnit(8, 10)
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            x = x + self.attention(self.norm1(x))
            return self.out(self.norm2(self.mlp(x)))

    assert shape_of(Llama(), torch.tensor([[1, 5, 3], [0, 10, 2]])) == [10, 8, 2]


def test_encoder_layer_of_torch():
    layer = nn.TransformerEncoderLayer(8, 4, 20, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    assert shape_of(net, torch.randn(2, 6, 5)) == [20, 20, 8, 4, 4]


def test_everything_returned_is_everything_frozen():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    graph = sec.capture(net, image())
    groups = sec.couple(graph)
    assert [group for group in groups.free if group.size > 1] == []
    assert any("returns" in str(group.frozen) for group in groups.frozen)


def test_excluded_layers_stay():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    graph = sec.capture(net, image())
    assert sorted(group.size for group in sec.couple(graph).free) == [6, 8]
    groups = sec.couple(graph, exclude=("0",))
    assert [group.size for group in groups.free] == [6]
