"""How like real pictures a generator's are: Fréchet distances of features, and how often a face is found."""

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from e4e_core.images import content, to_picture
from e4e_core.metrics.edits import Look, render
from e4e_core.metrics.reconstruction import BATCH
from e4e_core.metrics.report import Table
from e4e_core.metrics.statistics import bootstrap, frechet_estimate
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures

SHOWN = 64  # samples that are given back
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's conversion of the original network


def measure(
    model: E4E,
    pictures: Pictures,
    count: int,
    look: Look | None,
    detects: Callable[[Image.Image], bool] | None,
    seed: int = 0,
) -> tuple[Table, Tensor]:
    """The generator's figures at truncation ψ = 1, beside the best that can be hoped for, and some of its samples.

    Args:
        pictures: real ones at the model's resolution; `count` of them are drawn, or all if there are fewer.
        look, detects: what sees and what finds a face, None for other domains.
    Returns: rows, and float32 [SHOWN or fewer, 3, R, R].
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=random)[:count].tolist()
    with torch.no_grad():
        codes = model.map(torch.randn(count, model.latent_dim, generator=random)).cpu()
    codes = codes[:, None].expand(-1, model.num_layers, -1)
    note = inception_note()
    inception = None if note else FrechetInceptionDistance(feature=2048, normalize=True)  # Heusel et al. 2017

    def see(batches: Iterable[Tensor], real: bool) -> tuple[list[bool], np.ndarray]:
        """Whether a face is found in each picture of [n, 3, h, w], and the embeddings [m, d] of those seen."""
        found, embeddings = [], []
        for few in batches:
            if inception:
                inception.update((few.clamp(-1, 1) + 1) / 2, real=real)
            if look and detects:
                some = [to_picture(image) for image in few]
                found += map(detects, some)
                embeddings += [seen.embedding for seen in map(look, some) if seen]
        return found, np.array(embeddings)

    made = (content(render(model, few), model.aspect) for few in tqdm(codes.split(BATCH), "looking at samples"))
    photos = tqdm(DataLoader(Subset(pictures, order), BATCH), "looking at real pictures")
    (found, a), (real_found, b) = see(made, real=False), see(photos, real=True)
    rows = []
    if look and detects:
        rows.append(
            {
                "figure": "share with a face (dlib's detector)",
                "samples": bootstrap(found),
                "real pictures": bootstrap(real_found),
            }
        )
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
    fid = float(inception.compute()) if inception else note
    rows.append({"figure": "FID (Inception)", "samples": fid, "real pictures": ""})
    return rows, render(model, codes[:SHOWN])


def inception_note() -> str:
    """Why FID cannot be measured here, as a sentence with what to do; empty where it can."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return "not measured: run pip install torch-fidelity."
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / INCEPTION).is_file():
        page = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
        return f"weights not here: put {page}/{INCEPTION} into {folder}."
    return ""
