"""The terms of both trainings' losses, each a small callable: e4e (Tov et al. 2021), StyleGAN2 (Karras et al. 2020)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def delta_penalty(codes: Tensor, order: float = 2.0) -> Tensor:
    """Σ‖Δᵢ‖ over the layers in the norm of that order, averaged over the batch (eq. 4, which has order 2).

    Args: codes float [n, L, D], the code w in layer 0 and w + Δᵢ in layer i.
    """
    offsets = codes[:, 1:] - codes[:, :1]  # [n, L-1, D]
    return torch.linalg.vector_norm(offsets, order, dim=-1).sum(1).mean()


def feature_distance(maps: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Perceptual distance in LPIPS's form (Zhang et al. 2018, eq. 1) with equal weights, a scalar.

    Feature vectors are scaled to unit length; squared differences are summed over channels and averaged over
    positions, pictures and maps.
    Args: maps, targets: as many float [n, c, h, w] of the same shapes, a network's answers to two sets of pictures.
    """
    distances = []
    for a, b in zip(maps, targets, strict=True):
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


class PathLength:
    """Path-length regularisation (Karras et al. 2020, eq. 4): E (‖Jᵀy‖ - a)², a the running mean of the lengths.

    Args: average: the mean of a scalar over all processes.
    """

    DECAY = 0.01

    def __init__(self, average: Callable[[Tensor], Tensor] = Tensor.detach):
        self.average = average
        self.mean = 0.0

    def __call__(self, images: Tensor, codes: Tensor) -> Tensor:
        """float [n, 3, r, r] rendered from codes float [n, L, D], with their graph -> a scalar."""
        noise = torch.randn_like(images) / (images.shape[2] * images.shape[3]) ** 0.5
        (gradient,) = torch.autograd.grad((images * noise).sum(), codes, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()  # [n]
        self.mean += self.DECAY * (self.average(lengths.mean()).item() - self.mean)
        return (lengths - self.mean).square().mean()

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean = float(state["mean"])
