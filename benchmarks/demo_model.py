"""How good is the demo model? One command prints its figures and makes the sheets to look at.

    python -m benchmarks.demo_model --data ../shared/faces/faces128.zip

Sheets: samples; samples beside the training pictures nearest to them; held-out photos beside their inversions;
every slider at its low end, at 0 and at its high end.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from e4e_core.images import to_picture, to_sheet
from e4e_core.metrics.__main__ import Eye, load_to_measure
from e4e_core.metrics.edits import identity_distances, look_at_all
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures
from e4e_core.training.generator import sample
from editing.attributes import detects
from editing.directions import directions_for


def detection_rate(images: Tensor) -> float:
    """Share of pictures [n, 3, R, R] in which dlib finds a face, enlarged to 256 px with a border of 96 px."""
    return float(np.mean([detects(to_picture(image)) for image in tqdm(images, "detecting")]))


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
    people, inverted = (look_at_all(model, images, Eye()) for images in (targets, w_plus))
    return {
        "found at ψ = 0.7": detection_rate(steady),
        "found at ψ = 1": detection_rate(free),
        "found in photos": detection_rate(kept),
        "nearest training picture, smallest distance": float(distance.min()),
        "inversion W, mean squared error": float(F.mse_loss(w, targets)),
        "inversion W^k, mean squared error": float(F.mse_loss(w_plus, targets)),
        "identity distance of photo and inversion, median": float(np.nanmedian(identity_distances(people, inverted))),
        "identity distance of two people, median": float(np.nanmedian(identity_distances(people[1:], people[:-1]))),
        "precision": "float32, without TF32",
        "directions": {name: dict(direction.measured) for name, direction in directions.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True, help="the pictures it was trained on")
    parser.add_argument("--out", type=Path, default=Path("results/demo_model"))
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--inversions", type=int, default=100)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_to_measure(options.model, "cpu")
    pictures = Pictures(options.data, 128)
    answer = report(model, pictures, options.out, options.samples, options.inversions)
    (options.out / "figures.json").write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")
    directions = answer.pop("directions")
    for name, value in answer.items():
        print(f"| {name} | {value if isinstance(value, str) else f'{value:.3f}'} |")
    for name, measured in directions.items():
        print(f"| {name} | {measured} |")
    print(f"Sheets and figures.json are in {options.out}.")


if __name__ == "__main__":
    main()
