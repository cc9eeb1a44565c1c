"""The only conversions between pictures (PIL, 8 bits) and tensors (float32 in [-1, 1])."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def to_tensor(picture: Image.Image) -> Tensor:
    """PIL RGB picture -> float32 [1, 3, h, w], RGB in [-1, 1]."""
    return from_pixels(to_pixels(picture)[None])


def to_pixels(picture: Image.Image) -> Tensor:
    """PIL RGB picture -> uint8 [3, h, w]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 [..., 3, h, w] -> float32 of the same shape, RGB in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_picture(image: Tensor) -> Image.Image:
    """float [1, 3, h, w] or [3, h, w], RGB in [-1, 1] (clamped) -> PIL RGB picture."""
    image = image[0] if image.dim() == 4 else image
    pixels = ((image.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def content(images: Tensor, aspect: tuple[int, int]) -> Tensor:
    """[..., R, R] -> its largest centred part of the ratio `aspect`: cars fill rows 64 … 448 of 512."""
    width, height = (images.shape[-1] * part // max(aspect) for part in aspect)
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def in_square(images: Tensor) -> Tensor:
    """[..., h, R] -> [..., R, R], black above and below: what `content` takes the pictures out of again."""
    rows = images.shape[-1] - images.shape[-2]
    return F.pad(images, (0, 0, rows // 2, rows - rows // 2), value=-1.0)


def to_sheet(images: Tensor, columns: int) -> Image.Image:
    """float [n, 3, h, w], RGB in [-1, 1] -> one PIL picture, `columns` to a row, black where none is left."""
    from torchvision.utils import make_grid  # here, because only training and measuring make sheets

    return to_picture(make_grid(images.detach(), nrow=columns, padding=0, pad_value=-1.0))
