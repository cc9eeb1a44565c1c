"""Adaptive discriminator augmentation: a small set of pictures lasts longer (Karras et al. 2020b)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from e4e_core.models.ops import without_autocast

ADJUST_IMAGES = 100_000  # pictures in which the probability can go from 0 to 1
GREY = (0.299, 0.587, 0.114)


class Augment:
    """Shifts, turns, scales and recolours pictures, each with the same probability.

    The probability follows how well the discriminator knows the real pictures by heart, r_t = E[sign D(real)]:
    it rises while r_t is above the target and falls below it (section 3.1). Gradients flow through.

    Attributes:
        target: of r_t; 0 switches augmentation off.
        probability: of each transformation, 0 … 1.
    """

    def __init__(self, target: float):
        self.target = target
        self.probability = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """float [n, 3, r, r] in [-1, 1] -> the same shape; pixels from outside are mirrored ones."""
        if self.probability == 0:
            return images
        return self._recolour(self._move(images))

    def adjust(self, real_logits: Tensor) -> None:
        """Follow the discriminator's answer [n] to real pictures."""
        if self.target:
            excess = real_logits.detach().sign().mean().item() - self.target
            step = math.copysign(len(real_logits) / ADJUST_IMAGES, excess)
            self.probability = min(max(self.probability + step, 0.0), 1.0)

    def state_dict(self) -> dict[str, float]:
        return {"probability": self.probability}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.probability = state["probability"]

    def _sometimes(self, values: Tensor, neutral: float) -> Tensor:
        """Values [n, …] with each sample's replaced by `neutral` where the dice say so."""
        chosen = torch.rand(len(values), *[1] * (values.dim() - 1), device=values.device) < self.probability
        return torch.where(chosen, values, neutral)

    def _move(self, images: Tensor) -> Tensor:
        n, device = len(images), images.device
        scale = self._sometimes(torch.exp2(0.2 * torch.randn(n, device=device)), 1.0)
        angle = self._sometimes((torch.rand(n, device=device) - 0.5) * math.pi / 4, 0.0)
        shift = self._sometimes(0.125 * torch.randn(n, 2, device=device), 0.0)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        rows = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # [n, 2, 2]
        with without_autocast(images):  # a bfloat16 step near the edge of a grid at 1024² is 2 px
            grid = F.affine_grid(torch.cat([rows, shift[:, :, None]], 2), list(images.shape), align_corners=False)
            return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)

    def _recolour(self, images: Tensor) -> Tensor:
        n, device = len(images), images.device
        brightness = self._sometimes(0.2 * torch.randn(n, 1, 1, 1, device=device), 0.0)
        contrast = self._sometimes(torch.exp2(0.5 * torch.randn(n, 1, 1, 1, device=device)), 1.0)
        saturation = self._sometimes(torch.exp2(torch.randn(n, 1, 1, 1, device=device)), 1.0)
        grey = (images * images.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)  # [n, 1, r, r]
        return (grey + (images - grey) * saturation) * contrast + brightness
