"""The layers StyleGAN2 and e4e are made of, in plain PyTorch operators.

Names of parameters and buffers follow the widely used PyTorch layout of StyleGAN2, so that published
checkpoints load without renaming. Every layer computes in the dtype of the features it is given; its
parameters stay float32 unless the caller casts them. Under autocast convolutions compute in its dtype, but codes,
styles and pictures stay float32.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2)  # keeps the variance of a leaky ReLU's output near that of its input
EPSILON = 1e-8


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """The context in which operators on `x` and what is on its device keep their dtypes; free without autocast."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with gain √2, any shape."""
    return F.leaky_relu(x, LEAKY_SLOPE) * LEAKY_GAIN


def fir_kernel(gain: float) -> Tensor:
    """float32 [4, 4]: the low-pass filter [1, 3, 3, 1] ⊗ [1, 3, 3, 1] of StyleGAN2, summing to `gain`."""
    taps = (1.0, 3.0, 3.0, 1.0)
    return torch.tensor([[gain / 64 * row * column for column in taps] for row in taps])


class Blur(nn.Module):
    """Filters every channel of [n, c, h, w], padded by `pad`, with the FIR kernel; keeps every `stride`th pixel."""

    def __init__(self, pad: int, gain: float = 1.0, stride: int = 1):
        super().__init__()
        self.pad = pad
        self.stride = stride
        self.register_buffer("kernel", fir_kernel(gain))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(x, weight, stride=self.stride, padding=self.pad, groups=channels)


class Upsample(nn.Module):
    """Doubles height and width: zeros between the pixels, then the FIR kernel with gain 4."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", fir_kernel(4.0))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self.kernel.flip(0, 1).to(x.dtype).expand(channels, 1, -1, -1)
        with without_autocast(x):
            return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)  # [n, c, 2h, 2w]


class EqualLinear(nn.Module):
    """A linear layer whose weights are scaled at run time (equalized learning rate, Karras et al. 2018)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_mul: float = 1.0,
        activation: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(out_features, in_features), std=1 / lr_mul))
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init) / lr_mul))
        self.scale = lr_mul / math.sqrt(in_features)
        self.lr_mul = lr_mul
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            x = F.linear(x.to(self.weight.dtype), self.weight * self.scale, self.bias * self.lr_mul)
        return leaky_relu(x) if self.activation else x


class EqualConv2d(nn.Module):
    """A convolution without bias whose weights are scaled at run time."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(out_channels, in_channels, kernel_size, kernel_size)))
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.weight * self.scale).to(x.dtype), stride=self.stride, padding=self.padding)


class BiasLeakyReLU(nn.Module):
    """Adds a bias per channel, then leaky ReLU with gain √2."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x + self.bias.to(x.dtype)[:, None, None])


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels are scaled by a style (Karras et al. 2020, eq. 1–3).

    The style scales the features and demodulation scales the result, which equals scaling the weights of
    each sample but keeps one shared convolution for the whole batch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        latent_dim: int,
        demodulate: bool = True,
        upsample: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(1, out_channels, in_channels, kernel_size, kernel_size)))
        self.modulation = EqualLinear(latent_dim, in_channels, bias_init=1.0)
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2
        self.demodulate = demodulate
        self.upsample = upsample
        if upsample:
            self.blur = Blur(pad=1, gain=4.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[n, in, h, w] features and [n, d] latent codes -> [n, out, h, w], or twice that size."""
        style = self.modulation(w)  # [n, in]
        if self.demodulate and x.dtype == torch.float16:  # keeps the features in its range; demodulation undoes it
            style = style / style.abs().amax(1, keepdim=True)
        weight = self.weight[0] * self.scale  # [out, in, k, k]
        features = x * style.to(x.dtype)[:, :, None, None]
        if self.upsample:
            y = F.conv_transpose2d(features, weight.transpose(0, 1).to(x.dtype), stride=2)  # [n, out, 2h+1, 2w+1]
            y = self.blur(y)  # [n, out, 2h, 2w]
        else:
            y = F.conv2d(features, weight.to(x.dtype), padding=self.padding)
        if self.demodulate:
            with without_autocast(style):
                power = style.square() @ weight.float().square().sum((2, 3)).T  # [n, out]
            y = y * torch.rsqrt(power + EPSILON).to(y.dtype)[:, :, None, None]
        return y
