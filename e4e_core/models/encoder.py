"""Encoders from a picture to the generator's latent codes: e4e (Tov et al. 2021), pSp (Richardson et al. 2021).

Those of ReStyle (Alaluf et al. 2021) see six channels, the picture and its reconstruction so far, and all their heads
read the last stage; `E4E.invert` makes their passes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core.models import irse
from e4e_core.models.ops import EqualLinear

KINDS = ("e4e", "psp", "w")
TRUNKS = {"irse": (irse.input_layer, irse.body), "resnet": (irse.resnet_input_layer, irse.resnet_body)}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder; the defaults are the published FFHQ one."""

    kind: str = "e4e"  # "e4e": one w plus offsets, "psp": a code from every head, "w": one code and no heads
    input_size: int = 256  # side of the input picture in pixels; the longer one if it is not square
    num_layers: int = 18  # latent codes of the generator
    latent_dim: int = 512
    stem: int = 64  # channels before the first stage
    stages: tuple[int, ...] = (64, 128, 256, 512)  # channels of the stages, each at half the resolution before
    blocks: tuple[int, ...] = (3, 4, 14, 3)  # bottlenecks of the stages
    pyramid: int = 512  # channels of the feature pyramid and of the heads
    coarse: int = 3  # heads that read the last stage
    middle: int = 4  # heads that read the stage before; the others read the one before that
    inputs: int = 3  # channels of the input; 6 is a ReStyle encoder
    trunk: str = "irse"  # or "resnet", ReStyle's for other things than faces

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.inputs not in (3, 6) or self.trunk not in TRUNKS:
            raise ValueError(f"inputs {self.inputs} must be 3 or 6, and trunk {self.trunk!r} {' or '.join(TRUNKS)}")
        if len(self.stages) != len(self.blocks) or len(self.stages) < 3:
            raise ValueError(f"stages {self.stages} and blocks {self.blocks} must be equally many, at least three")

    def head_side(self, layer: int) -> int:
        """Side in pixels of the features that the head of `layer` reads."""
        halvings = len(self.stages) - (layer >= self.coarse) - (layer >= self.coarse + self.middle)
        return -(-self.input_size // 2**halvings)


class Head(nn.Module):
    """Stride-2 convolutions down to one pixel, then a linear layer: [n, c, h, w] -> [n, d], float32."""

    def __init__(self, channels: int, latent_dim: int, side: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range((side - 1).bit_length()):  # ⌈log2(side)⌉ halvings leave one pixel
            layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(channels, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x).flatten(1)  # [n, c]
        return self.linear(x.float())  # codes keep float32: half precision would lose the offsets' last digits

    def multiply(self, x: Tensor, columns: Tensor) -> Tensor:
        """As `forward`, by matrix products on x's `columns`, so that heads may share those of their input.

        Faster on CPUs, see `benchmarks/README.md`; learning would have to keep the columns.
        """
        for index, conv in enumerate(self.convs[::2]):
            if index:
                columns = _columns(x)
            n, c, height, width = x.shape
            y = conv.weight.flatten(1) @ columns  # [n, c, ⌈h/2⌉ * ⌈w/2⌉]
            y = y.view(n, c, -(-height // 2), -(-width // 2))
            x = self.convs[2 * index + 1](y.add_(conv.bias[:, None, None]))
        return self.linear(x.flatten(1))


class Encoder(nn.Module):
    """A picture to latent codes, relative to the mean latent code.

    Attributes:
        config: the shape it was built with.
        num_deltas: how many offsets are added to the first w, from 0 (W) to num_layers - 1 (W^k); e4e only.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        input_layer, body = TRUNKS[config.trunk]
        self.input_layer = input_layer(config.stem, config.inputs)
        self.body = body(config.stem, config.stages, config.blocks)
        self._taps = irse.stage_ends(config.blocks)[-3:]
        if config.kind == "w":
            self.linear = EqualLinear(config.stages[-1], config.latent_dim)
        else:
            heads = (Head(config.pyramid, config.latent_dim, config.head_side(i)) for i in range(config.num_layers))
            self.styles = nn.ModuleList(heads)
            if config.stages[-1] != config.pyramid:
                self.latlayer0 = nn.Conv2d(config.stages[-1], config.pyramid, 1)
            if config.coarse < config.num_layers:  # else there is no pyramid
                self.latlayer1 = nn.Conv2d(config.stages[-2], config.pyramid, 1)
                self.latlayer2 = nn.Conv2d(config.stages[-3], config.pyramid, 1)
        self._num_deltas = config.num_layers - 1

    @property
    def num_deltas(self) -> int:
        return self._num_deltas

    @num_deltas.setter
    def num_deltas(self, value: int) -> None:
        if not 0 <= value < self.config.num_layers:
            raise ValueError(f"num_deltas must be from 0 to {self.config.num_layers - 1}, not {value}")
        self._num_deltas = int(value)

    def forward(self, images: Tensor) -> Tensor:
        """[n, inputs, S, S] (or a shorter side), RGB in [-1, 1] -> float32 [n, L, D] without the mean latent."""
        taps = self._features(images.to(self.input_layer[0].weight.dtype))
        layers = self.config.num_layers
        if self.config.kind == "psp":
            return torch.stack(self._codes(taps, layers), 1)
        if self.config.kind == "w":
            w = self.linear(taps[-1].mean((2, 3)).float())  # [n, D]
            return w[:, None].expand(-1, layers, -1)
        w, *deltas = self._codes(taps, self.num_deltas + 1)
        offsets = torch.stack([torch.zeros_like(w), *deltas], 1)  # [n, 1 + num_deltas, D]
        return w[:, None] + F.pad(offsets, (0, 0, 0, layers - offsets.shape[1]))  # [n, L, D]

    def compile(self, **options) -> None:
        """Compile the trunk and each head by themselves, so that another `num_deltas` compiles nothing anew."""
        self._features = torch.compile(self._features, **options)
        for head in getattr(self, "styles", ()):
            head.compile(**options)

    def _features(self, images: Tensor) -> list[Tensor]:
        """The outputs of the last three stages, the finest first."""
        maps = []
        x = self.input_layer(images)
        for index, block in enumerate(self.body):
            x = block(x)
            if index in self._taps:
                maps.append(x)
        return maps

    def _codes(self, taps: list[Tensor], count: int) -> list[Tensor]:
        """What the first `count` heads say, each float32 [n, D]; finer features are only computed when needed."""
        fine, middle, x = taps
        if hasattr(self, "latlayer0"):
            x = self.latlayer0(x)
        multiplies = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
        codes, columns = [], _columns(x) if multiplies else None
        for layer, head in enumerate(self.styles[:count]):
            if layer in (self.config.coarse, self.config.coarse + self.config.middle):
                finer = self.latlayer1(middle) if layer == self.config.coarse else self.latlayer2(fine)
                x = _upsample_add(x, finer)
                columns = _columns(x) if multiplies else None
            codes.append(head(x) if columns is None else head.multiply(x, columns))
        return codes


def _columns(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, 9c, ⌈h/2⌉ * ⌈w/2⌉]: what each output of a head's 3×3 convolution sees."""
    return F.unfold(x, 3, padding=1, stride=2)


def _upsample_add(coarse: Tensor, fine: Tensor) -> Tensor:
    """One step down a feature pyramid (Lin et al. 2017): [n, c, h, w] and [n, c, 2h, 2w] -> [n, c, 2h, 2w]."""
    return F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True) + fine
