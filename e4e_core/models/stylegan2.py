"""The StyleGAN2 generator (Karras et al. 2020) with skip connections, for any resolution from 32 to 1024."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from e4e_core.models.ops import EPSILON, BiasLeakyReLU, EqualLinear, ModulatedConv2d, Upsample

FFHQ_CHANNELS = (512, 512, 512, 512, 512, 256, 128, 64, 32)  # at 4, 8, … 1024 pixels


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a generator; `channels` has one width per resolution 4, 8, … `resolution`."""

    resolution: int = 1024
    latent_dim: int = 512
    mapping_layers: int = 8
    channels: tuple[int, ...] = FFHQ_CHANNELS

    def __post_init__(self):
        levels = int(math.log2(self.resolution)) - 1
        if 2 ** (levels + 1) != self.resolution or not 32 <= self.resolution <= 1024:
            raise ValueError(f"resolution must be a power of two from 32 to 1024, not {self.resolution}")
        if len(self.channels) != levels:
            raise ValueError(f"{self.resolution} pixels need {levels} channel widths, not {len(self.channels)}")

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "GeneratorConfig":
        """The shape of a generator with these tensors. Raises KeyError if they are not a generator's."""
        mapping_layers = sum(re.fullmatch(r"style\.\d+\.weight", key) is not None for key in state)
        levels = sum(re.fullmatch(r"to_rgbs\.\d+\.bias", key) is not None for key in state)
        to_rgbs = ["to_rgb1", *(f"to_rgbs.{level}" for level in range(levels))]
        return cls(
            resolution=4 * 2**levels,
            latent_dim=state["style.1.weight"].shape[1],
            mapping_layers=mapping_layers,
            channels=tuple(state[f"{name}.conv.weight"].shape[2] for name in to_rgbs),
        )

    @property
    def num_layers(self) -> int:
        """How many latent codes one picture takes: two per resolution."""
        return 2 * len(self.channels)


class PixelNorm(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * torch.rsqrt(z.square().mean(1, keepdim=True) + EPSILON)


class ConstantInput(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(nn.init.normal_(torch.empty(1, channels, 4, 4)))


class NoiseInjection(nn.Module):
    """Adds one noise map to all channels, scaled by one learned strength."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight.to(x.dtype) * noise.to(x.dtype)


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU: one latent code's worth of the generator."""

    def __init__(self, in_channels: int, out_channels: int, latent_dim: int, upsample: bool = False):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, latent_dim, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = BiasLeakyReLU(out_channels)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """[n, in, h, w], [n, d] and noise [1, 1, h, w] (None draws it) -> [n, out, h, w]."""
        x = self.conv(x, w)
        if noise is None:
            noise = torch.randn_like(x[:, :1])
        return self.activate(self.noise(x, noise))


class ToRGB(nn.Module):
    """Projects features to RGB and adds the picture of the resolution below, upsampled."""

    def __init__(self, in_channels: int, latent_dim: int, upsample: bool = True):
        super().__init__()
        if upsample:
            self.upsample = Upsample()
        self.conv = ModulatedConv2d(in_channels, 3, 1, latent_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, below: Tensor | None = None) -> Tensor:
        rgb = self.conv(x, w).float() + self.bias.float()  # [n, 3, h, w]
        return rgb if below is None else rgb + self.upsample(below)


class Generator(nn.Module):
    """StyleGAN2: latent codes to pictures.

    Attributes:
        config: the shape it was built with.
        style: the mapping network, z -> w.
        noises: one fixed noise map per layer, so that the same codes give the same picture.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        dim, channels = config.latent_dim, config.channels
        mapping = [EqualLinear(dim, dim, lr_mul=0.01, activation=True) for _ in range(config.mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = ConstantInput(channels[0])
        self.conv1 = StyledConv(channels[0], channels[0], dim)
        self.to_rgb1 = ToRGB(channels[0], dim, upsample=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for below, here in pairwise(channels):
            self.convs.append(StyledConv(below, here, dim, upsample=True))
            self.convs.append(StyledConv(here, here, dim))
            self.to_rgbs.append(ToRGB(here, dim))
        self.noises = nn.Module()
        for layer in range(config.num_layers - 1):
            side = 2 ** ((layer + 5) // 2)
            self.noises.register_buffer(f"noise_{layer}", nn.init.normal_(torch.empty(1, 1, side, side)))

    def map(self, z: Tensor) -> Tensor:
        """float32 [n, d] normal -> w, float32 [n, d]."""
        return self.style(z)

    def forward(self, codes: Tensor, size: int | None = None, random_noise: bool = False) -> Tensor:
        """Render latent codes.

        Args:
            codes: float32 [n, num_layers, latent_dim].
            size: stop at this resolution (4, 8, … resolution); None is the full one.
            random_noise: draw fresh noise, as training does; otherwise the fixed noise maps.
        Returns: float32 [n, 3, size, size], RGB around [-1, 1], not clamped.
        """
        noises = [None] * (self.config.num_layers - 1) if random_noise else list(self.noises.buffers())
        x = self.input.input.expand(len(codes), -1, -1, -1)  # [n, c, 4, 4]
        x = x.contiguous(memory_format=torch.channels_last)  # the faster layout of convolutions on CPUs
        x = self.conv1(x, codes[:, 0], noises[0])
        rgb = self.to_rgb1(x, codes[:, 1])  # [n, 3, 4, 4]
        for level, to_rgb in enumerate(self.to_rgbs):
            if rgb.shape[-1] == size:
                break
            layer = 2 * level + 1
            x = self.convs[layer - 1](x, codes[:, layer], noises[layer])  # [n, c, 2h, 2w]
            x = self.convs[layer](x, codes[:, layer + 1], noises[layer + 1])
            rgb = to_rgb(x, codes[:, layer + 2], rgb)  # [n, 3, 2h, 2w]
        return rgb

    @torch.no_grad()
    def mean_latent(self, samples: int = 10_000, seed: int = 0) -> Tensor:
        """float32 [d]: the mean of `samples` mapped z, the centre of W."""
        parameter = self.input.input
        z = torch.randn(samples, self.config.latent_dim, generator=torch.Generator().manual_seed(seed))
        return self.map(z.to(parameter.device)).mean(0)
