"""How near a picture comes to another: pixels, structure, and features of published networks where they lie here."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
)

from e4e_core.images import content
from e4e_core.models.e4e import E4E
from e4e_core.training.perception import Identity, Lpips, published_weights
from errors import DownloadError, ModelError

LPIPS, ARCFACE = "LPIPS", "identity distance (ArcFace)"
BATCH = 16  # pictures at a time
WINDOW = 11  # px, the side of SSIM's Gaussian window
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of the five scales (Wang et al. 2003)
LPIPS_SIDE = 64  # px, the smallest picture AlexNet takes


def to_input(model: E4E, images: Tensor) -> Tensor:
    """Rendered pictures [n, 3, R, R] -> what the encoder takes: their content at the input size, in [-1, 1]."""
    images = content(images, model.aspect).clamp(-1, 1)
    scale = model.input_size / images.shape[-1]
    size = (round(images.shape[-2] * scale), model.input_size)
    if scale > 1:
        return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return F.adaptive_avg_pool2d(images, size)


def distortion(
    images: Tensor, targets: Tensor, networks: Mapping[str, nn.Module] | None = None
) -> dict[str, np.ndarray]:
    """Per picture, float64 [n] each, for two float [n, 3, h, w] with RGB in [-1, 1] (the first is clamped to it).

    A few pictures are measured at a time.

    Args: networks: distances of two pictures, see `published_networks`.
    Returns:
        L2: mean squared difference in units of [-1, 1], the reference's. PSNR: dB.
        MS-SSIM: 1 for equal pictures (Wang et al. 2003), with as many of its five scales as the pictures have room
            for, their weights scaled to sum 1; left out below 11 pixels.
        And what each of the networks answers.
    """
    batches = zip(images.split(BATCH), targets.split(BATCH), strict=True)
    measured = [_distortion(some.clamp(-1, 1), few, networks or {}) for some, few in batches]
    return {name: np.concatenate([each[name] for each in measured]) for name in measured[0]}


def _distortion(images: Tensor, targets: Tensor, networks: Mapping[str, nn.Module]) -> dict[str, np.ndarray]:
    answer = {
        "L2": (images - targets).square().mean((1, 2, 3)),
        "PSNR": peak_signal_noise_ratio(images, targets, data_range=2.0, dim=(1, 2, 3), reduction="none"),
    }
    if betas := scales(min(images.shape[-2:])):
        answer["MS-SSIM"] = multiscale_structural_similarity_index_measure(
            (images + 1) / 2, (targets + 1) / 2, data_range=1.0, betas=betas, reduction="none"
        )
    for name, network in networks.items():
        with torch.no_grad():
            answer[name] = torch.stack([network(images[i, None], targets[i, None]) for i in range(len(images))])
    return {name: values.detach().double().cpu().reshape(len(images)).numpy() for name, values in answer.items()}


def published_networks(model: E4E) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """LPIPS, and ArcFace's identity for faces, where their weights lie here or can be fetched.

    Returns: name -> distance of two pictures; and for each that cannot be had, name -> why and what to do.
    """
    makers = {LPIPS: lambda: Lpips(published_weights("alexnet"), published_weights("lpips"))}
    if model.template:
        makers[ARCFACE] = lambda: Identity(published_weights("arcface"), model.template)
    networks, notes = {}, {}
    for name, make in makers.items():
        try:
            if name == LPIPS and model.resolution < LPIPS_SIDE:
                raise ModelError(f"AlexNet takes pictures from {LPIPS_SIDE} px")
            networks[name] = make().eval().requires_grad_(False)
        except ModelError as error:
            notes[name] = f"weights not here: {error}" if isinstance(error, DownloadError) else f"not measured: {error}"
    return networks, notes


def scales(side: int) -> tuple[float, ...]:
    """MS-SSIM's weights for pictures of this shorter side: the first k of five, scaled to sum 1; () for none."""
    room = [k for k in range(1, 6) if side // max(1, k - 1) ** 2 >= WINDOW and side >= 2 ** (k - 1) * WINDOW]
    weights = BETAS[: max(room, default=0)]
    return tuple(weight / sum(weights) for weight in weights)
