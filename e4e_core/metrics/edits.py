"""What editing does: consistency of inverting an edited picture (LEC), and what a direction changes in a face."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e4e_core.images import content, to_picture
from e4e_core.metrics.reconstruction import BATCH, to_input
from e4e_core.metrics.statistics import Estimate, bootstrap, middle_mean
from e4e_core.models.e4e import E4E

PIXELS = 1 << 22  # rendered at a time
TOLERANCE = 0.1  # standard deviations an attribute may fall back by and still count as monotone


@dataclass(frozen=True, eq=False)
class Seen:
    """A face as a measuring function saw it: named numbers, and an embedding, float64 [d], that identifies a person."""

    attributes: Mapping[str, float]
    embedding: np.ndarray


Look = Callable[[Image.Image], Seen | None]  # None: no face in this picture


@torch.no_grad()
def invert(model: E4E, images: Tensor) -> Tensor:
    """Codes float32 [n, L, D] on the CPU of pictures [n, 3, S, S] at the input size, a few at a time."""
    return torch.cat([model.invert(few).cpu() for few in images.split(BATCH)])


@torch.no_grad()
def render(model: E4E, codes: Tensor) -> Tensor:
    """Pictures float32 [n, 3, R, R] on the CPU, a few at a time."""
    count = max(1, min(BATCH, PIXELS // model.resolution**2))
    return torch.cat([model.synthesize(few).float().cpu() for few in codes.split(count)])


def look_at_all(model: E4E, images: Tensor, look: Look) -> list[Seen | None]:
    """What `look` sees in rendered pictures [n, 3, R, R]."""
    return [look(to_picture(image)) for image in content(images, model.aspect)]


def look_at_codes(model: E4E, codes: Tensor, look: Look) -> list[Seen | None]:
    """What `look` sees in the pictures of codes [n, L, D], a few at a time."""
    return [seen for few in codes.split(BATCH) for seen in look_at_all(model, render(model, few), look)]


def identity_distances(faces: Sequence[Seen | None], others: Sequence[Seen | None]) -> np.ndarray:
    """float64 [n]: distance of the embeddings of each pair, NaN where one has no face."""
    return np.array(
        [np.linalg.norm(a.embedding - b.embedding) if a and b else np.nan for a, b in zip(faces, others, strict=True)]
    )


def spreads(faces: Sequence[Seen | None]) -> dict[str, float]:
    """Each attribute's standard deviation over the faces seen; {} for fewer than two, and none that never varies."""
    seen = [face.attributes for face in faces if face]
    if len(seen) < 2:
        return {}
    deviations = {name: float(np.std([attributes[name] for attributes in seen])) for name in seen[0]}
    return {name: deviation for name, deviation in deviations.items() if deviation > 0}


@dataclass(frozen=True, eq=False)
class Consistency:
    """Per picture, float64 [n]: how far inverting an edited picture and undoing the edit misses the first codes.

    Attributes:
        codes: ‖E(x) − f⁻¹(E(G(f(E(x)))))‖², summed over layers and width (Tov et al. 2021, LEC).
        relative: the same, divided by the mean of ‖E(x) − mean‖²: 1 is as far as another photo.
        pictures: mean squared difference of the pictures of the first and the last codes, in units of [-1, 1].
        steps: of the first BATCH pictures those two and the edited one, float [n, 3, R, R] each: first, edited, last.
    """

    codes: np.ndarray
    relative: np.ndarray
    pictures: np.ndarray
    steps: tuple[Tensor, Tensor, Tensor]


def consistency(model: E4E, codes: Tensor, vectors: Tensor) -> Consistency:
    """LEC of the edit f(codes) = codes + vectors, for codes [n, L, D] that the encoder gave for photos.

    Every picture is measured by itself; filtering and averaging (`lec`) come last, so that no batch size matters.
    """
    missed, pictures, steps = [], [], ()
    for few in codes.split(BATCH):
        before, edited = render(model, few), render(model, few + vectors)
        last = invert(model, to_input(model, edited)) - vectors
        after = render(model, last)
        missed.append((last - few).square().sum((1, 2)).double())
        pictures.append((before.clamp(-1, 1) - after.clamp(-1, 1)).square().mean((1, 2, 3)).double())
        steps = steps or (before, edited, after)
    missed, pictures = torch.cat(missed), torch.cat(pictures)
    spread = (codes - codes.mean(0)).square().sum((1, 2)).mean().double()
    return Consistency(missed.numpy(), (missed / spread).numpy(), pictures.numpy(), steps)


def lec(values: np.ndarray) -> Estimate:
    """Mean between the 1st and the 99th percentile of all pictures, with its interval."""
    return bootstrap(values, middle_mean)


@dataclass(frozen=True, eq=False)
class Editability:
    """What one unit of a direction does, per face, float64 [n] each, NaN where it could not be measured.

    Attributes:
        attribute: the one that was asked for, or the one that moves most.
        change: of that attribute per unit of strength, in standard deviations of the data.
        others: the mean absolute change of the other attributes, likewise.
        identity: distance of the embeddings of the face and of its edits, the mean of the ends that are not 0.
        monotone: 1 if the attribute never turns back, else 0. found: share of the edited pictures with a face.
    """

    attribute: str
    change: np.ndarray
    others: np.ndarray
    identity: np.ndarray
    monotone: np.ndarray
    found: np.ndarray


def editability(
    model: E4E,
    codes: Tensor,
    vectors: Tensor,
    strengths: Sequence[float],
    look: Look,
    spread: Mapping[str, float],
    attribute: str | None = None,
    unedited: list[Seen | None] | None = None,
) -> Editability:
    """Measure a direction on faces [n, L, D].

    Args:
        strengths: ascending, with 0 and another among them.
        spread: each attribute's standard deviation in the data; only these attributes are looked at.
        attribute: what the direction is meant to change; if `spread` has it not, the one that moves most.
        unedited: what `look` sees at strength 0, if that is known.
    """
    rows = [
        unedited if s == 0 and unedited is not None else look_at_codes(model, codes + s * vectors, look)
        for s in strengths
    ]
    slopes = {name: _slopes(_curve(rows, name) / spread[name], np.array(strengths)) for name in spread}  # [n] each
    means = {name: _mean(values) for name, values in slopes.items()}
    if attribute not in spread:
        attribute = max(means, key=lambda name: abs(means[name]))
    sign = 1.0 if means[attribute] >= 0 else -1.0
    values = sign * _curve(rows, attribute) / spread[attribute]
    whole = np.isfinite(values).all(0)
    others = [np.abs(values) for name, values in slopes.items() if name != attribute]
    zero = rows[list(strengths).index(0)]
    ends = [rows[end] for end in (0, -1) if strengths[end]]  # a slider may begin or end at 0
    distances = np.array([identity_distances(row, zero) for row in ends])  # [1 or 2, n]
    return Editability(
        attribute,
        change=slopes[attribute],
        others=np.mean(others, 0) if others else np.full(len(codes), np.nan),
        identity=distances.mean(0),
        monotone=np.where(whole, (np.diff(values, axis=0) > -TOLERANCE).all(0), np.nan),
        found=np.mean([[seen is not None for seen in row] for row in rows], 0),
    )


def _curve(rows: list[list[Seen | None]], name: str) -> np.ndarray:
    """float64 [strengths, n]: one attribute, NaN where there was no face."""
    return np.array([[np.nan if seen is None else seen.attributes[name] for seen in row] for row in rows])


def _slopes(values: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Least-squares slope of every column of [strengths, n]; NaN for faces found at fewer than three strengths."""
    there = np.isfinite(values)
    count = there.sum(0)
    x = np.where(there, strengths[:, None], 0.0)
    y = np.where(there, values, 0.0)
    enough = np.where(count >= 3, count, 1)
    x = np.where(there, x - x.sum(0) / enough, 0.0)
    square = np.where(count >= 3, np.square(x).sum(0), 1.0)
    return np.where(count >= 3, (x * y).sum(0) / square, np.nan)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
