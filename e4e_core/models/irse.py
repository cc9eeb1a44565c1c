"""Residual trunks: IR-SE (ArcFace, Deng et al. 2019; squeeze and excitation, Hu et al. 2018), and ResNet's."""

from itertools import accumulate

from torch import Tensor, nn

SE_REDUCTION = 16


class SqueezeExcite(nn.Module):
    """Scales every channel of [n, c, h, w] by a factor in (0, 1) computed from all channels' means."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // SE_REDUCTION, 1)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)  # [n, c, 1, 1]
        return x * self.fc2(self.fc1(means).relu()).sigmoid()


class EveryNth(nn.Module):
    """Keeps every `stride`th pixel of [n, c, h, w]; a pooling of one pixel would do the same, but copy."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]


class Bottleneck(nn.Module):
    """[n, in, h, w] -> [n, out, ⌈h/stride⌉, ⌈w/stride⌉]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        if in_channels == out_channels:
            self.shortcut_layer = EveryNth(stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            SqueezeExcite(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def input_layer(channels: int, inputs: int = 3) -> nn.Sequential:
    """The stem: [n, inputs, h, w] -> [n, channels, h, w]."""
    conv = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.PReLU(channels))


def body(stem: int, stages: tuple[int, ...], blocks: tuple[int, ...]) -> nn.Sequential:
    """All bottlenecks of all stages in one sequence; the first of every stage halves height and width."""
    layers, channels = [], stem
    for width, count in zip(stages, blocks, strict=True):
        for index in range(count):
            layers.append(Bottleneck(channels, width, stride=2 if index == 0 else 1))
            channels = width
    return nn.Sequential(*layers)


def resnet_input_layer(channels: int, inputs: int) -> nn.Sequential:
    """The stem of `resnet_body`: [n, inputs, h, w] -> [n, channels, h/2, w/2]."""
    conv = nn.Conv2d(inputs, channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.PReLU(channels))


def resnet_body(stem: int, stages: tuple[int, ...], blocks: tuple[int, ...]) -> nn.Sequential:
    """As `body`, of ResNet's basic blocks (He et al. 2016); the first stage keeps height and width."""
    from torchvision.models.resnet import BasicBlock  # here, because few encoders have such a trunk

    layers, channels = [], stem
    for stage, (width, count) in enumerate(zip(stages, blocks, strict=True)):
        for index in range(count):
            stride = 2 if stage and index == 0 else 1
            shortcut = None
            if stride > 1 or channels != width:
                shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            layers.append(BasicBlock(channels, width, stride, shortcut))
            channels = width
    return nn.Sequential(*layers)


def stage_ends(blocks: tuple[int, ...]) -> list[int]:
    """The index in `body` of each stage's last bottleneck."""
    return [end - 1 for end in accumulate(blocks)]
