"""The terms of the e4e encoder's loss (Tov et al. 2021, section 4), each a small callable."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core.models.discriminators import Discriminator


def delta_penalty(codes: Tensor) -> Tensor:
    """Σ‖Δᵢ‖₂ over the layers, averaged over the batch (eq. 4).

    Args: codes float [n, L, D], the code w in layer 0 and w + Δᵢ in layer i.
    """
    offsets = codes[:, 1:] - codes[:, :1]  # [n, L-1, D]
    return offsets.norm(dim=-1).sum(1).mean()


class DiscriminatorFeatures(nn.Module):
    """Perceptual distance from a trained discriminator, in LPIPS's form (Zhang et al. 2018, eq. 1) with equal weights.

    Each block's feature vectors are scaled to unit length; squared differences are summed over channels
    and averaged over positions and blocks.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.discriminator = discriminator.eval().requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Two float [n, 3, r, r] in [-1, 1] at the discriminator's resolution -> mean distance, a scalar."""
        with torch.no_grad():
            wanted = self.discriminator.features(targets)
        distances = []
        for a, b in zip(self.discriminator.features(images), wanted, strict=True):
            difference = F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)
            distances.append(difference.square().sum(1).mean())
        return torch.stack(distances).mean()


def non_saturating(logits: Tensor) -> Tensor:
    """-log σ(logits), averaged: what a network pays for being told from real ones (Goodfellow et al. 2014)."""
    return F.softplus(-logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log σ(real) - log(1 - σ(fake)), each averaged."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def gradient_penalty(discriminator: nn.Module, reals: Tensor) -> Tensor:
    """R1: the mean of ‖∇D(x)‖² over real samples [n, …], in float32 (Mescheder et al. 2018, eq. 9)."""
    reals = reals.detach().float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(reals).sum(), reals, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
