"""Directions found without labels, for any generator: GANSpace (Härkönen et al. 2020) and SeFa (Shen & Zhou 2021).

    python -m editing.unsupervised ganspace --model runs/encoder/model --layers 0 4 --name --out runs/encoder/model

adds sliders to the directions in the folder `--out`; those it holds already stay, unless they have the same name.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from e4e_core import load_model
from e4e_core.images import to_picture
from e4e_core.models.e4e import E4E
from e4e_core.models.stylegan2 import Generator
from editing.attributes import find_aligned_face, measure
from editing.directions import Direction, DirectionSet, directions_to_extend
from errors import DirectionError, E4EError

SAMPLES = 20_000  # mapped codes from which means, components and standard deviations are taken
REACH = 3.0  # a slider's ends, in standard deviations of the coordinate along its direction
LEAST = 0.3  # standard deviations an attribute must move by, per unit of strength, to lend its name
BATCH = 16

Measure = Callable[[Image.Image], Mapping[str, float] | None]  # attributes of a picture; None where there is no face


def ganspace(
    model: E4E, count: int = 10, layers: tuple[int, int] | None = None, samples: int = SAMPLES, seed: int = 0
) -> DirectionSet:
    """The main axes of the codes that the mapping network makes, largest variance first.

    Args:
        count: how many, at most the width of the codes.
        layers: (first, last exclusive) layers to edit; None is all of them.
        samples: mapped codes; the same `seed` gives the same directions.
    Returns: `ganspace-0`, …; a strength of 1 is one standard deviation of the coordinate, sliders end at 3.
    Raises: DirectionError for layers the model does not have.
    """
    w = mapped(model, samples, seed)  # [samples, D]
    _, _, axes = torch.linalg.svd(w - w.mean(0), full_matrices=False)  # rows: components, descending variance
    return _sliders("ganspace", "GANSpace", axes[:count], w, _range(model, layers), model.num_layers)


def sefa(
    model: E4E, count: int = 10, layers: tuple[int, int] | None = None, samples: int = SAMPLES, seed: int = 0
) -> DirectionSet:
    """The directions to which the modulation of the edited layers responds most (closed form, eq. 6).

    They are the eigenvectors of AᵀA with the largest eigenvalues, A [rows, D] being the modulation weights that
    consume the codes of `layers`, each row scaled to unit length as in the authors' code.

    Args: see `ganspace`; the samples only give the standard deviations.
    Returns: `sefa-0`, …; a strength of 1 is one standard deviation of the coordinate, sliders end at 3.
    Raises: DirectionError for layers the model does not have.
    """
    first, last = _range(model, layers)
    weights = torch.cat([modulation(model.decoder, layer) for layer in range(first, last)])  # [rows, D]
    weights = F.normalize(weights.double().cpu(), dim=1)
    _, vectors = torch.linalg.eigh(weights.T @ weights)  # columns, ascending eigenvalues
    axes = vectors.T.flip(0)[:count]
    return _sliders("sefa", "SeFa", axes, mapped(model, samples, seed), (first, last), model.num_layers)


def modulation(generator: Generator, layer: int) -> Tensor:
    """The weights [channels, D] that turn the code of `layer` into the style of the convolution that consumes it.

    `conv1` consumes layer 0, `convs[l - 1]` layer l; only a `to_rgb` consumes the last layer.
    """
    if layer == 0:
        return generator.conv1.conv.modulation.weight
    if layer <= len(generator.convs):
        return generator.convs[layer - 1].conv.modulation.weight
    return generator.to_rgbs[-1].conv.modulation.weight


@torch.no_grad()
def mapped(model: E4E, samples: int, seed: int) -> Tensor:
    """float64 [samples, D] on the CPU: codes of a seeded draw of z."""
    z = torch.randn(samples, model.latent_dim, generator=torch.Generator().manual_seed(seed))
    return torch.cat([model.map(some).double().cpu() for some in z.split(1000)])


def _range(model: E4E, layers: tuple[int, int] | None) -> tuple[int, int]:
    first, last = layers or (0, model.num_layers)
    if not 0 <= first < last <= model.num_layers:
        raise DirectionError(
            f"Layers {first} to {last} cannot be edited; give a first and a last one between 0 and {model.num_layers}."
        )
    return first, last


def _sliders(name: str, label: str, axes: Tensor, w: Tensor, layers: tuple[int, int], num_layers: int) -> DirectionSet:
    """A direction per unit vector of `axes` [count, D], scaled by the standard deviation of w [samples, D] along it.

    An axis and its opposite are equally good: the largest entry is made positive, so that the answer is one.
    """
    directions = {}
    for number, axis in enumerate(axes):
        axis = axis * torch.sign(axis[axis.abs().argmax()])
        deviation = ((w - w.mean(0)) @ axis).std()
        vectors = torch.zeros(num_layers, w.shape[1])
        vectors[layers[0] : layers[1]] = (deviation * axis).float()
        measured = {"standard_deviation": float(deviation)}
        directions[f"{name}-{number}"] = Direction(
            f"{label} {number}", label, -REACH, REACH, vectors, measured, source=f"{label}, component {number}"
        )
    return DirectionSet(directions)


@torch.no_grad()
def name_by_attribute(
    directions: DirectionSet, model: E4E, look: Measure, faces: int = 16, seed: int = 0
) -> DirectionSet:
    """The directions, named by the attribute each moves most and turned so that it rises.

    Invented faces are rendered at strengths -1, 0 and 1. An attribute's change per unit is counted in its standard
    deviations over the faces at 0. Each direction keeps its changes in `measured["effects"]`; one that moves nothing
    by LEAST keeps its name, others get it behind the attribute's: `smile-ganspace-3`.

    Args: look: measures a rendered picture; None where it cannot.
    Raises: DirectionError if nearly no picture can be measured.
    """
    codes = mapped(model, faces, seed).float()[:, None].expand(-1, model.num_layers, -1)  # [n, L, D]
    middle = [row for row in _looks(model, codes, look) if row]
    if len(middle) < 3:
        raise DirectionError(f"Only {len(middle)} of {faces} pictures could be measured; name the directions by hand.")
    spread = {name: float(np.std([row[name] for row in middle])) or 1.0 for name in middle[0]}
    named = {}
    for name, direction in directions.items():
        low, high = (_looks(model, codes + s * direction.vectors, look) for s in (-1.0, 1.0))
        pairs = [(a, b) for a, b in zip(low, high, strict=True) if a and b]
        if not pairs:
            named[name] = direction
            continue
        effects = {key: float(np.mean([b[key] - a[key] for a, b in pairs])) / 2 / spread[key] for key in spread}
        most = max(effects, key=lambda key: abs(effects[key]))
        sign = -1.0 if effects[most] < 0 else 1.0
        effects = {key: round(sign * value, 2) for key, value in effects.items()}
        found = replace(direction, measured={**direction.measured, "effects": effects})
        if abs(effects[most]) < LEAST:
            named[name] = found
            continue
        label = f"{most.replace('_', ' ').capitalize()} ({direction.label})"
        low_end, high_end = (direction.low, direction.high) if sign > 0 else (-direction.high, -direction.low)
        named[f"{most}-{name}"] = replace(
            found, label=label, low=low_end, high=high_end, vectors=sign * direction.vectors
        )
    return DirectionSet(named)


def _looks(model: E4E, codes: Tensor, look: Measure) -> list[Mapping[str, float] | None]:
    return [look(to_picture(image)) for few in codes.split(BATCH) for image in model.synthesize(few)]


def look_at_face(picture: Image.Image) -> Mapping[str, float] | None:
    """The attributes of `editing.attributes.measure`; None where dlib finds no face."""
    found = find_aligned_face(picture)
    return measure(picture, found[1]) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when the directions were written."""
    parser = argparse.ArgumentParser(
        prog="python -m editing.unsupervised", description="Find directions of a generator without labels."
    )
    parser.add_argument("method", choices=("ganspace", "sefa"))
    parser.add_argument("--model", required=True, help="name of a known model, a published .pt file, or a model folder")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder whose directions.safetensors and .json are made or added to; a model's own gives it sliders",
    )
    parser.add_argument("--count", type=int, default=10, help="how many directions")
    parser.add_argument(
        "--layers",
        type=int,
        nargs=2,
        metavar=("FIRST", "END"),
        help="first layer to edit and the one after the last; all by default. Coarse 0 4, middle 4 8, fine from 8",
    )
    parser.add_argument("--name", action="store_true", help="name each by the attribute of a face that it moves most")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    try:
        model = load_model(settings.model)
        there = directions_to_extend(settings.out, model)
        find = ganspace if settings.method == "ganspace" else sefa
        layers = settings.layers and tuple(settings.layers)
        found = find(model, settings.count, layers, seed=settings.seed)
        if settings.name:
            found = name_by_attribute(found, model, look_at_face, seed=settings.seed)
        DirectionSet({**there, **found}).save(settings.out)
    except (E4EError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, direction in found.items():
        print(f"{name:28s} {direction.label:40s} {direction.low:+g} … {direction.high:+g} standard deviations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
