"""How like real pictures a generator's are: Fréchet distances of features, and how often a face is found."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from e4e_core.images import content, to_picture
from e4e_core.metrics.edits import BATCH, Look, render
from e4e_core.metrics.report import Table
from e4e_core.metrics.statistics import bootstrap, frechet_estimate
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's conversion of the original network


def measure(
    model: E4E,
    pictures: Pictures,
    count: int,
    look: Look | None,
    detects: Callable[[Image.Image], bool] | None,
    seed: int = 0,
) -> tuple[Table, Tensor]:
    """The generator's figures at truncation ψ = 1, beside the best that can be hoped for, and its samples.

    Args:
        pictures: real ones at the model's resolution; `count` of them are drawn, or all if there are fewer.
        look, detects: what sees and what finds a face, None for other domains.
    Returns: rows, and float32 [count, 3, R, R].
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=random)[:count].tolist()
    with torch.no_grad():
        codes = model.map(torch.randn(count, model.latent_dim, generator=random)).cpu()
    samples = render(model, codes[:, None].expand(-1, model.num_layers, -1))
    rows = []
    if look and detects:
        made = [to_picture(image) for image in content(samples, model.aspect)]
        real = [to_picture(pictures[i]) for i in order]
        found = {"samples": made, "real pictures": real}
        rows.append(
            {"figure": "share with a face (dlib's detector)"}
            | {name: bootstrap([detects(picture) for picture in tqdm(some, desc="detecting")])
               for name, some in found.items()}
        )  # fmt: skip
        a, b = (_embeddings(some, look) for some in (made, real))
        half = len(b) // 2
        rows.append(
            {
                "figure": f"Fréchet distance, dlib's embedding, {min(half, len(a))} and {half} faces",
                "samples": frechet_estimate(a[:half], b[:half]),
                "real pictures": frechet_estimate(b[half:], b[:half]),
            }
        )
        rows.append(
            {
                "figure": f"Fréchet distance, dlib's embedding, {len(a)} and {len(b)} faces",
                "samples": frechet_estimate(a, b),
                "real pictures": "",
            }
        )
    note = inception_note()
    rows.append(
        {
            "figure": "FID (Inception)",
            "samples": note or inception_distance(content(samples, model.aspect), pictures, order),
            "real pictures": "",
        }
    )
    return rows, samples


def _embeddings(pictures: list[Image.Image], look: Look) -> np.ndarray:
    seen = [look(picture) for picture in tqdm(pictures, desc="embedding")]
    return np.array([face.embedding for face in seen if face])  # [m, d]


def inception_note() -> str:
    """Why FID cannot be measured here, as a sentence with what to do; empty where it can."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return "not measured: run pip install torch-fidelity."
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / INCEPTION).is_file():
        page = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
        return f"weights not here: put {page}/{INCEPTION} into {folder}."
    return ""


def inception_distance(samples: Tensor, pictures: Pictures, order: list[int]) -> float:
    """FID (Heusel et al. 2017) of pictures [n, 3, h, w] in [-1, 1] and the real ones at `order`."""
    distance = FrechetInceptionDistance(feature=2048, normalize=True)
    for few in samples.split(BATCH):
        distance.update((few.clamp(-1, 1) + 1) / 2, real=False)
    for start in range(0, len(order), BATCH):
        few = torch.stack([pictures[i] for i in order[start : start + BATCH]])
        distance.update((few + 1) / 2, real=True)
    return float(distance.compute())
