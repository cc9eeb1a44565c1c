"""Networks that others trained, asked how alike two pictures are: LPIPS, ArcFace, dlib's face network, MoCo v2.

Each takes two batches of pictures, float [n, 3, h, w], RGB in [-1, 1], and returns a scalar.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core.checkpoints import published_file
from e4e_core.models import irse
from e4e_core.models.dlib_face import DlibFaceNetwork, dlib_weights
from e4e_core.models.e4e import FFHQ_TEMPLATE
from errors import ModelError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def published_weights(name: str) -> dict[str, Tensor]:
    """The tensors of `published_file(name)`. Raises ModelError if they cannot be had or read."""
    path = published_file(name)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes provoke
        raise ModelError(f"{path} cannot be read; remove it and fetch it again") from error
    return content.get("state_dict", content)


def _filled(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> nn.Module:
    """A network built on the meta device, its tensors replaced by published ones."""
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelError(f"the {name} weights have another layout than the published ones") from error
    return network.eval().requires_grad_(False)


class Lpips(nn.Module):
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018, eq. 1).

    Args: trunk with torchvision's keys `features.*`; heads with the keys `lin{0…4}.model.1.weight` [1, c, 1, 1].
    """

    ENDS = (0, 2, 5, 8, 10, 12)  # where the trunk's features are read: after each ReLU

    def __init__(self, trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]):
        super().__init__()
        with torch.device("meta"):
            features = torchvision.models.alexnet().features
        weights = {key.removeprefix("features."): trunk[key] for key in trunk if key.startswith("features.")}
        self.trunk = _filled(features, weights, "AlexNet")
        try:
            for i in range(5):
                self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"][0])  # [c, 1, 1]
        except KeyError as error:
            raise ModelError("the LPIPS weights have another layout than the published ones") from error
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        x = (torch.cat([images, targets]) - self.shift) / self.scale
        distances = []
        for i, (start, end) in enumerate(pairwise(self.ENDS)):
            x = self.trunk[start:end](x)
            a, b = F.normalize(x, dim=1, eps=1e-10).chunk(2)  # unit length over channels
            distances.append(((a - b).square() * self.get_buffer(f"head{i}")).sum(1).mean())
        return torch.stack(distances).sum()


class Identity(nn.Module):
    """1 - cos of ArcFace's embeddings (Deng et al. 2019), IR-SE50.

    Args:
        weights: keys `input_layer.*`, `body.*`, `output_layer.*`.
        template: of the faces' alignment. ArcFace's own crop is cut out of FFHQ's; tighter ones are seen whole.
    """

    def __init__(self, weights: Mapping[str, Tensor], template: tuple[float, float] | None = FFHQ_TEMPLATE):
        super().__init__()
        self.crops = template == FFHQ_TEMPLATE
        with torch.device("meta"):
            head = [
                nn.BatchNorm2d(512),
                nn.Dropout(0.6),
                nn.Flatten(),
                nn.Linear(512 * 7 * 7, 512),
                nn.BatchNorm1d(512),
            ]
            network = nn.Sequential()
            network.add_module("input_layer", irse.input_layer(64))
            network.add_module("body", irse.body(64, (64, 128, 256, 512), (3, 4, 14, 3)))
            network.add_module("output_layer", nn.Sequential(*head))
        self.network = _filled(network, weights, "ArcFace")

    def embed(self, images: Tensor) -> Tensor:
        """float [n, 3, h, w] -> unit vectors, float [n, 512]."""
        if self.crops:
            images = fit(images, 256)[:, :, 35:223, 32:220]
        return F.normalize(self.network(fit(images, 112)), dim=1)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return 1 - (self.embed(images) * self.embed(targets)).sum(1).mean()


class DlibIdentity(DlibFaceNetwork):
    """Squared distance of dlib's face embeddings; that of two pictures of one person is usually below 0.36.

    dlib turns and scales each face by its landmarks; here every face lies where the alignment's template puts it on
    average.

    Args:
        weights: what `dlib_weights` reads.
        template: (centre, scale) of the faces' alignment, see `alignment.align`; None looks at whole pictures.
    """

    REACH = 0.68  # side of the face's square, in sides of an FFHQ crop; measured on aligned photos, as is its middle

    def __init__(self, weights: Sequence[Tensor], template: tuple[float, float] | None = FFHQ_TEMPLATE):
        super().__init__(weights)
        self.square = (0.0, 0.0, 1.0)  # left, top and side, in sides of the picture
        if template is not None:
            centre, scale = template
            side, middle = self.REACH / scale, 0.5 + (0.5 - centre) * 0.25 / scale
            self.square = (0.5 - side / 2, middle - side / 2, side)

    def embed(self, images: Tensor) -> Tensor:
        """float [n, 3, s, s] -> float [n, 128]."""
        return self.describe(self.chips(images))

    def chips(self, images: Tensor) -> Tensor:
        """float [n, 3, s, s] -> the faces cut out, [n, 3, 150, 150]. Beyond the picture its edge goes on."""
        s = images.shape[3]
        left, top, side = (round(part * s) for part in self.square)
        pad = max(0, -left, -top, left + side - s, top + side - s)
        padded = F.pad(images, (pad,) * 4, "replicate")
        return fit(padded[:, :, pad + top :, pad + left :][:, :, :side, :side], self.SIDE)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.embed(targets)
        return (self.embed(images) - wanted).square().sum(1).mean()


class Moco(nn.Module):
    """1 - cos of MoCo v2's features (Chen et al. 2020), ResNet-50. Args: weights with keys `module.encoder_q.*`."""

    PREFIX = "module.encoder_q."

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        with torch.device("meta"):
            network = torchvision.models.resnet50()
            network.fc = nn.Identity()
        trunk = {key.removeprefix(self.PREFIX): weights[key] for key in weights if key.startswith(self.PREFIX)}
        self.network = _filled(network, {key: trunk[key] for key in trunk if not key.startswith("fc.")}, "MoCo")
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None] * 2 - 1)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None] * 2)

    def embed(self, images: Tensor) -> Tensor:
        """float [n, 3, h, w] -> unit vectors, float [n, 2048]."""
        return F.normalize(self.network((fit(images, 224) - self.mean) / self.std), dim=1)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return 1 - (self.embed(images) * self.embed(targets)).sum(1).mean()


def fit(images: Tensor, size: int) -> Tensor:
    """float [n, 3, h, w] -> [n, 3, size, size]: averaged where it shrinks, bilinear where it grows."""
    if min(images.shape[2:]) >= size:
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def load_losses(config: Any) -> tuple[dict[str, tuple[float, nn.Module]], float]:
    """What the settings ask for, as far as its weights can be had; a missing one costs a printed sentence.

    Args: config with the weights `lpips`, `identity`, `moco`, `perceptual`, and the `template`.
    Returns: name -> (weight, network), and the weight of the discriminator's features, which stand in for LPIPS.
        dlib's face network, which needs no download, stands in for ArcFace.
    """
    makers = {
        "lpips": lambda: Lpips(published_weights("alexnet"), published_weights("lpips")),
        "identity": lambda: Identity(published_weights("arcface"), config.template),
        "moco": lambda: Moco(published_weights("moco")),
    }
    instead = {
        "lpips": "the discriminator's features stand in for it",
        "identity": "dlib's face network stands in for it",
        "moco": "it is left out",
    }
    losses, perceptual = {}, config.perceptual
    for name, make in makers.items():
        weight = getattr(config, name)
        if not weight:
            continue
        try:
            losses[name] = (weight, make())
        except ModelError as error:
            print(f"The weights of the {name} loss cannot be had, so {instead[name]}: {str(error).rstrip('.')}.")
            if name == "lpips":
                perceptual += weight
            elif name == "identity":
                losses[name] = (weight, DlibIdentity(dlib_weights(), config.template))
    return losses, perceptual
