"""dlib's face network in PyTorch: several times as fast here as dlib's own, and with a gradient."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core.checkpoints import dlib_face_network
from errors import ModelError


class DlibFaceNetwork(nn.Module):
    """The 29-layer residual network of `dlib_face_recognition_resnet_model_v1` (King 2017).

    The embeddings of two pictures of one person are usually nearer to each other than 0.6.

    Args: weights: what `dlib_weights` reads.
    """

    MEAN = (122.782, 117.001, 104.298)  # of 255
    WIDTHS = (32, 64, 128, 256)  # of its `features`
    DOWN = (3, 7, 10, 13)  # the blocks that halve the picture
    SIDE, PADDING = 150, 0.25  # px, and what dlib cuts out around a face, in its sides

    def __init__(self, weights: Sequence[Tensor]):
        super().__init__()
        if len(weights) != 59:
            raise ModelError("dlib's face network has another layout than the published one")
        for number, tensor in enumerate(weights):
            self.register_buffer(f"weight{number}", tensor)

    def describe(self, chips: Tensor) -> Tensor:
        """Faces cut out as dlib does, float [n, 3, 150, 150], -> float [n, 128]."""
        return self.embedding(self.features(chips)[-1])

    def embedding(self, last: Tensor) -> Tensor:
        """The last of the `features`, [n, 256, 2, 2] -> float [n, 128]."""
        return last.mean((2, 3)) @ self.get_buffer("weight58").view(-1, 128)

    def features(self, chips: Tensor) -> list[Tensor]:
        """What it sees in `chips`: [n, 32, 35, 35], [n, 64, 17, 17], [n, 128, 8, 8] and [n, 256, 2, 2]."""
        weights = iter(self.buffers())

        def convolve(x: Tensor, size: int, stride: int) -> Tensor:
            values, scale = next(weights), next(weights)
            filters = len(scale) // 2
            kernel, bias = values[:-filters].view(filters, -1, size, size), values[-filters:]
            x = F.conv2d(x, kernel, bias, stride, 0 if stride > 1 else size // 2)
            gamma, beta = scale[:, None, None].chunk(2)
            return gamma * x + beta

        mean = torch.tensor(self.MEAN, device=chips.device)[:, None, None]
        x = F.max_pool2d(convolve(((chips + 1) * 127.5 - mean) / 256, 7, 2).relu(), 3, 2)
        maps = []
        for block in range(14):
            halves = block in self.DOWN
            if halves:
                maps.append(x)
            y = convolve(convolve(x, 3, 2 if halves else 1).relu(), 3, 1)
            x = _add(y, F.avg_pool2d(x, 2) if halves else x).relu()
        return [*maps[:3], x]


def _add(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two [n, c, h, w] of different sizes, as dlib adds them: what one has not is 0."""
    c, h, w = (max(sizes) for sizes in zip(a.shape[1:], b.shape[1:], strict=True))
    return sum(F.pad(x, (0, w - x.shape[3], 0, h - x.shape[2], 0, c - x.shape[1])) for x in (a, b))


def dlib_weights() -> list[Tensor]:
    """The parameters float32 [k] of dlib's face network in the order of its layers: from its package's file.

    Raises ModelError if the package is not there.
    """
    data = dlib_face_network().read_bytes()
    # dlib writes a whole number as its count of bytes and then these, the lowest first, and a tensor as the version 2,
    # four sizes and its floats. A layer's name comes shortly before its tensor.
    size = rb"(\x01.|\x02..|\x03...|\x04....)"
    layer = re.compile(rb"(?:con_4|affine_|fc_2).{0,12}?\x01\x02" + 4 * size, re.DOTALL)
    weights, end = [], 0
    while found := layer.search(data, end):
        count = math.prod(int.from_bytes(digits[1:], "little") for digits in found.groups())
        end = found.end() + 4 * count
        weights.append(torch.frombuffer(bytearray(data[found.end() : end]), dtype=torch.float32))
    return weights
