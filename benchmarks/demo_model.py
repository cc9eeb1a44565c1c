"""How good is the demo model? One command prints its figures and makes the sheets to look at.

    python -m benchmarks.demo_model --data ../shared/faces/faces128.zip

Sheets: samples; samples beside the training pictures nearest to them; held-out photos beside their inversions;
every slider at its low end, at 0 and at its high end.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import dlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from e4e_core import load_model
from e4e_core.images import to_picture, to_sheet
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures
from e4e_core.training.generator import sample
from editing.attributes import embed, find_aligned_face, with_border
from editing.directions import directions_for

HOLDOUT = 500  # pictures at the end of the data that the encoder was not trained on


def detection_rate(images: Tensor) -> float:
    """Share of pictures [n, 3, R, R] in which dlib finds a face, enlarged to 256 px with a border of 96 px."""
    detector = dlib.get_frontal_face_detector()
    found = [
        len(detector(np.asarray(with_border(to_picture(image), 256)), 0)) > 0 for image in tqdm(images, "detecting")
    ]
    return float(np.mean(found))


def nearest(images: Tensor, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """For each picture [n, 3, R, R] the one of `pictures` (or its mirror) nearest in pixels at 32 px.

    Returns: the nearest pictures [n, 3, S, S], and the distances [n], root mean square in units of [-1, 1].
    """
    small = F.adaptive_avg_pool2d(images, 32).flatten(1)  # [n, 3072]
    best = torch.full([len(images)], torch.inf)
    index = torch.zeros(len(images), dtype=torch.long)
    for start in tqdm(range(0, len(pictures), 500), desc="searching"):
        batch = torch.stack([pictures[i] for i in range(start, min(start + 500, len(pictures)))])
        distances = torch.cdist(small, F.adaptive_avg_pool2d(batch, 32).flatten(1)) / small.shape[1] ** 0.5
        closest, place = distances.min(1)
        index = torch.where(closest < best, place + start, index)
        best = torch.minimum(best, closest)
    return torch.stack([pictures[int(i)] for i in index]), best


def identity_distances(images: Tensor, others: Tensor) -> np.ndarray:
    """dlib's distance of each pair; the same person is usually below 0.6. Pairs without a face are left out."""
    distances = []
    for pair in zip(images, others, strict=True):
        found = [find_aligned_face(to_picture(image)) for image in pair]
        if all(found):
            a, b = (embed(*face) for face in found)
            distances.append(np.linalg.norm(a - b))
    return np.array(distances)


def enlarge(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)


@torch.no_grad()
def slider_sheet(model: E4E, codes: Tensor, side: int) -> Tensor:
    """A row per direction: for each face its low end, itself and its high end. [rows * faces * 3, 3, side, side]"""
    rows = []
    for direction in directions_for(model).values():
        for code in codes:
            rows.append(torch.stack([code + s * direction.vectors for s in (direction.low, 0.0, direction.high)]))
    return enlarge(model.synthesize(torch.cat(rows)), side)


@torch.no_grad()
def report(model: E4E, pictures: Pictures, out: Path, samples: int, inversions: int) -> dict[str, object]:
    """The figures; the sheets are written to `out`."""
    z = torch.randn(samples, model.latent_dim, generator=torch.Generator().manual_seed(3))
    steady, free = (sample(model.decoder, z, truncation) for truncation in (0.7, 1.0))
    to_sheet(steady[:64], 8).save(out / "samples_0.7.png")
    to_sheet(free[:64], 8).save(out / "samples_1.0.png")
    closest, distance = nearest(free[:64], pictures)
    pairs = torch.stack([enlarge(free[:64], 96), enlarge(closest, 96)], 1).flatten(0, 1)
    to_sheet(pairs, 16).save(out / "nearest.png")

    count = len(pictures.names)
    kept = torch.stack([pictures[i] for i in range(count - inversions, count)])
    codes = model.invert(enlarge(kept, model.input_size)).cpu()
    w_plus = model.synthesize(codes)
    w = model.synthesize(codes[:, :1].expand_as(codes))
    size = model.resolution
    targets = F.adaptive_avg_pool2d(kept, size) if kept.shape[-1] > size else enlarge(kept, size)
    trio = torch.stack([targets, w, w_plus], 1)[:30].flatten(0, 1)
    to_sheet(enlarge(trio, 128), 15).save(out / "inversions.png")
    directions = directions_for(model)
    if directions:
        to_sheet(slider_sheet(model, codes[:4], 96), 12).save(out / "sliders.png")
    shuffled = torch.roll(targets, 1, 0)
    return {
        "found at ψ = 0.7": detection_rate(steady),
        "found at ψ = 1": detection_rate(free),
        "found in photos": detection_rate(kept),
        "nearest training picture, smallest distance": float(distance.min()),
        "inversion W, mean squared error": float(F.mse_loss(w, targets)),
        "inversion W^k, mean squared error": float(F.mse_loss(w_plus, targets)),
        "identity distance of photo and inversion, median": float(np.median(identity_distances(targets, w_plus))),
        "identity distance of two people, median": float(np.median(identity_distances(targets, shuffled))),
        "directions": {name: dict(direction.measured) for name, direction in directions.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True, help="the pictures it was trained on")
    parser.add_argument("--out", type=Path, default=Path("results/demo_model"))
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--inversions", type=int, default=100)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model, device="cpu")
    pictures = Pictures(options.data, 128)
    answer = report(model, pictures, options.out, options.samples, options.inversions)
    (options.out / "figures.json").write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")
    directions = answer.pop("directions")
    for name, value in answer.items():
        print(f"| {name} | {value:.3f} |")
    for name, measured in directions.items():
        print(f"| {name} | {measured} |")
    print(f"Sheets and figures.json are in {options.out}.")


if __name__ == "__main__":
    main()
