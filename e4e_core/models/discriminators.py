"""The critics of both trainings: StyleGAN2's for pictures, e4e's for latent codes."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from e4e_core.models.ops import EPSILON, BiasLeakyReLU, Blur, EqualConv2d, EqualLinear

STDDEV_GROUP = 4


class ConvLayer(nn.Sequential):
    """[blur,] convolution[, bias and leaky ReLU]; halves height and width when `downsample`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, downsample: bool = False, activate: bool = True
    ):
        layers: list[nn.Module] = []
        if downsample and kernel_size == 1:
            layers.append(Blur(pad=1, stride=2))
            layers.append(EqualConv2d(in_channels, out_channels, 1))
        elif downsample:
            layers.append(Blur(pad=2))
            layers.append(EqualConv2d(in_channels, out_channels, kernel_size, stride=2))
        else:
            layers.append(EqualConv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2))
        if activate:
            layers.append(BiasLeakyReLU(out_channels))
        super().__init__(*layers)


class ResBlock(nn.Module):
    """[n, in, h, w] -> [n, out, h/2, w/2]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, downsample=True)
        self.skip = ConvLayer(in_channels, out_channels, 1, downsample=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator; `channels` as in the generator, from 4 pixels up."""

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        down = channels[::-1]
        blocks = [ResBlock(here, below) for here, below in pairwise(down)]
        self.convs = nn.Sequential(ConvLayer(3, down[0], 1), *blocks)
        self.final_conv = ConvLayer(channels[0] + 1, channels[0], 3)
        self.final_linear = nn.Sequential(
            EqualLinear(channels[0] * 4 * 4, channels[0], activation=True), EqualLinear(channels[0], 1)
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """[n, 3, r, r] in [-1, 1] -> the output of every block, from full resolution down to [n, c, 4, 4]."""
        maps = []
        x = images
        for block in self.convs:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, r, r] in [-1, 1] -> logits [n], high for pictures taken for real ones."""
        return self.judge(self.convs(images))

    def judge(self, x: Tensor) -> Tensor:
        """The last of the `features`, [n, c, 4, 4] -> logits [n]."""
        x = torch.cat([x, _stddev_channel(x)], 1)  # [n, c+1, 4, 4]
        x = self.final_conv(x).flatten(1).float()  # [n, c*16]
        return self.final_linear(x).squeeze(1)


class ProjectedDiscriminator(nn.Module):
    """Judges pictures by what a frozen network sees in them (Sauer et al. 2021): small heads on its feature maps.

    Args: channels: of each map.
    """

    def __init__(self, channels: tuple[int, ...], width: int = 64):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(depth, width, 1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 1)),
            )
            for depth in channels
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[n, c, h, w] of every depth -> logits [n, 1, h, w] of every depth, high where they are taken for real."""
        return [head(x) for head, x in zip(self.heads, maps, strict=True)]


def _stddev_channel(x: Tensor) -> Tensor:
    """Minibatch standard deviation (Karras et al. 2018): [n, c, h, w] -> [n, 1, h, w].

    Samples are grouped as i, i + n/4, i + 2n/4, i + 3n/4; a batch that four does not divide is one group.
    """
    n, channels, height, width = x.shape
    group = STDDEV_GROUP if n % STDDEV_GROUP == 0 else n
    y = x.float().reshape(group, n // group, channels, height, width)
    y = (y.var(0, unbiased=False) + EPSILON).sqrt().mean((1, 2, 3))  # [n / group]
    return y.repeat(group).to(x.dtype).reshape(n, 1, 1, 1).expand(n, 1, height, width)


class LatentDiscriminator(nn.Module):
    """e4e's critic of latent codes, a four-layer perceptron (Tov et al. 2021, section 4.1): is this code from W?"""

    def __init__(self, latent_dim: int, width: int = 512):
        super().__init__()
        self.layers = nn.Sequential(
            EqualLinear(latent_dim, width, activation=True),
            EqualLinear(width, width, activation=True),
            EqualLinear(width, width, activation=True),
            EqualLinear(width, 1),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """float [n, d] -> logits [n], high for codes taken for mapped ones."""
        return self.layers(codes).squeeze(1)
