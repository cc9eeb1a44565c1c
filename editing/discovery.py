"""Directions learned from labelled photos: invert, fit in W^k, calibrate on pictures the encoder never saw.

    python -m editing.discovery --model runs/encoder/model --data faces.zip --labels labels.csv

writes `directions.safetensors` and `directions.json` into the model's folder.
"""

import argparse
import csv
import math
import random
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from e4e_core import load_model
from e4e_core.images import content, to_picture
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures
from editing.attributes import embed, find_aligned_face, measure, measure_light
from editing.directions import Direction, DirectionSet, check_writable
from errors import E4EError, TrainingError

SLIDERS = {  # name: (label, group); the names are columns of the table of labels
    "smile": ("Smile", "Expression"),
    "mouth_open": ("Mouth open", "Expression"),
    "mouth_width": ("Mouth width", "Expression"),
    "eye_open": ("Eyes open", "Expression"),
    "age": ("Age", "Person"),
    "gender": ("Gender presentation", "Person"),
    "yaw": ("Turn", "Pose"),
    "pitch": ("Nod", "Pose"),
    "light_lr": ("Light from the side", "Light"),
    "light_ud": ("Light from above", "Light"),
    "bright": ("Brightness", "Light"),
    "contrast": ("Contrast", "Light"),
    "warm": ("Warmth", "Light"),
}
JUDGED = ("age", "gender")  # read off dlib's embedding by a model fitted on the labels; the others are measured
JUDGED_ON = 600  # photos whose embeddings are fitted to the labels
RIDGE = 0.1
LOGIT_RIDGE = 0.01  # weight of the log-odds' variance against the mean loss of a photo
# Strengths tried in calibration, in lengths of the codes' own spread, whatever length the fit gave the direction. Each
# is the double of the one two places before it.
TRIED = 1.5 * 2.0 ** (np.arange(-6, 1) / 2)
BATCH = 64  # pictures measured at a time
RENDERED = 4  # pictures rendered at a time
LEAST_PHOTOS = 100  # on which directions are fitted
LIMIT = 3.0  # a slider's ends, in measured standard deviations of its attribute
LEAST = 0.3  # a side on which the attribute moves by less is left out of the slider
FOUND = 0.95  # share of edited faces that dlib must still find at a slider's ends
STEADY = 0.95  # share of the tuning faces on which a slider is monotone; on others it is so on some hundredths less:
TOLERANCE = 0.1  # standard deviations by which an attribute may fall from one of five strengths to the next
KEPT_EFFECT = 0.7  # share of its effect that a direction may not lose when layers are left out


def read_labels(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a csv table as float64 [n], for the pictures `names` in that order; only columns in SLIDERS.

    Numbers are taken as they are, brackets such as 30-39 and 70+ as their middle (70+ as 75), and of two words the
    one that comes second in the alphabet is 1, the other 0. The columns that are left out are named on stderr.
    Raises TrainingError for a table that cannot be read, missing rows or columns, and cells that are none of these.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as table:
            reader = csv.DictReader(table)
            known = reader.fieldnames or []
            rows = {row.get("file"): row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"The table {file} cannot be read ({error}); name a csv file.") from error
    if "file" not in known:
        raise TrainingError(f"{file} has no column `file`; add one with names of pictures such as {names[0]}.")
    missing = [name for name in names if name not in rows]
    if missing:
        raise TrainingError(f"{file} has no row for {missing[0]} and {len(missing) - 1} others; add them.")
    columns = [column for column in SLIDERS if column in known]
    if not columns:
        raise TrainingError(f"{file} has none of the columns {', '.join(SLIDERS)}; name them so.")
    if others := [column for column in known if column not in SLIDERS and column != "file"]:
        print(f"Left out of {file}: {', '.join(others)}; sliders are made of {', '.join(SLIDERS)}.", file=sys.stderr)
    return {column: _numbers(file, column, names, [rows[name][column] for name in names]) for column in columns}


def _numbers(file: Path, column: str, names: Sequence[str], texts: list[str | None]) -> np.ndarray:
    """float64 [n] of a column's cells; those of a row that is too short are None."""
    texts = [(text or "").strip() for text in texts]
    numbers = [_number(text) for text in texts]
    unclear = [text for text, number in zip(texts, numbers, strict=True) if number is None]
    if not unclear:
        return np.array(numbers)
    if len(unclear) == len(texts) and len(set(texts)) <= 2 and "" not in texts:
        second = max(texts)
        return np.array([float(text == second) for text in texts])
    wrong = "" if "" in unclear else unclear[0]
    cell, name = repr(wrong) if wrong else "nothing", names[texts.index(wrong)]
    raise TrainingError(
        f"{file} has {cell} instead of a number in the column {column} for {name}; correct it, or remove the column."
    )


def _number(text: str) -> float | None:
    """A finite number or the middle of a bracket; None for anything else."""
    bracket = re.fullmatch(r"(\d+\.?\d*)-(\d+\.?\d*)", text)
    try:
        if bracket:
            return (float(bracket[1]) + float(bracket[2])) / 2
        number = float(text[:-1]) + 5 if text.endswith("+") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@torch.no_grad()
def invert_all(model: E4E, pictures: Pictures, indices: Sequence[int], batch: int = 32) -> Tensor:
    """Codes float32 [n, L, D] of the pictures at `indices`."""
    codes = []
    for start in tqdm(range(0, len(indices), batch), desc="inverting"):
        images = torch.stack([pictures[i] for i in indices[start : start + batch]])
        codes.append(model.invert(images).cpu())
    return torch.cat(codes)


def fit_directions(codes: Tensor, attributes: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """What one standard deviation of each attribute changes in the codes, the other attributes held.

    Least squares of the codes on all standardised attributes together: codes ≈ b₀ + Σ aₖ·bₖ. The slopes bₖ are the
    directions. (Regressing the attribute on the codes gives a filter, which is sensitive to the attribute but does
    not look like it; Haufe et al. 2014.) Conditioning on the other attributes is what keeps age out of glasses.
    An attribute with two values takes its direction from `fit_logistic`, and only its length from least squares.

    Args: codes float32 [n, L, D]; attributes float64 [n] each.
    Returns: float32 [L, D] each; attributes that never vary are left out.
    """
    attributes = _varying(attributes)
    values = np.stack(list(attributes.values()), 1)  # [n, k]
    values = (values - values.mean(0)) / values.std(0)
    design = torch.from_numpy(np.concatenate([np.ones((len(values), 1)), values], 1))  # [n, 1 + k]
    flat = codes.flatten(1).double()  # [n, L*D]
    slopes = torch.linalg.lstsq(design, flat).solution[1:]  # [k, L*D]
    for number, column in enumerate(attributes.values()):
        if len(np.unique(column)) == 2:
            others = torch.cat([design[:, : number + 1], design[:, number + 2 :]], 1)
            direction = fit_logistic(flat, torch.from_numpy(column == column.max()), others)
            slopes[number] = direction * slopes[number].norm() / direction.norm()
    return {name: b.reshape(codes.shape[1:]).float() for name, b in zip(attributes, slopes, strict=True)}


def fit_logistic(codes: Tensor, label: Tensor, others: Tensor) -> Tensor:
    """How the codes differ between two classes, the other attributes held, by ridge-regularised logistic regression.

    The label is regressed on the other attributes and on what these leave unexplained of the codes. The codes'
    covariance with their part of the log-odds, the pattern of Haufe et al. 2014, is the direction: for Gaussian classes
    of one covariance the difference of their means, however unequal their sizes. The penalty is on the variance of
    the log-odds, so it favours no axis of the codes. Where there are more coordinates than photos, the result is that
    of least squares.

    Args: codes float64 [n, p]; label bool [n], both values among them; others float64 [n, k], the first column 1.
    Returns: float64 [p], of any length.
    """
    rest = codes - others @ torch.linalg.lstsq(others, codes).solution  # [n, p]
    u, s, _ = torch.linalg.svd(rest, full_matrices=False)
    white = u[:, s > 1e-6 * s[0]] * len(u) ** 0.5  # [n, rank], the codes' principal components of variance 1
    design = torch.cat([others, white], 1)
    weights = torch.zeros(design.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(design @ weights, label.double())
        value = value + LOGIT_RIDGE / 2 * weights[1:].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return rest.T @ (white @ weights.detach()[others.shape[1] :])


@dataclass(frozen=True)
class Judge:
    """Measures a picture: the landmarks' attributes, and labels read off dlib's embedding.

    Attributes:
        labels: names of the attributes that are read off the embedding.
        weights: float64 [129, k], a linear function of the embedding and 1 for each of them.
    """

    labels: tuple[str, ...]
    weights: np.ndarray

    def __call__(self, picture: Image.Image) -> dict[str, float] | None:
        """None where dlib finds no face."""
        found = find_aligned_face(picture)
        if found is None:
            return None
        return self.of(measure(picture, found[1]), embed(*found) if self.labels else None)

    def of(self, measured: dict[str, float], embedding: np.ndarray | None) -> dict[str, float]:
        """All attributes of a face that was measured and, if there are labels, embedded."""
        answers = [] if embedding is None else np.append(embedding, 1.0) @ self.weights
        return measured | dict(zip(self.labels, map(float, answers), strict=False))


def fit_judge(seen: Sequence[tuple[dict[str, float], np.ndarray] | None], labels: dict[str, np.ndarray]) -> Judge:
    """A judge whose age and gender presentation are ridge regressions of labels on dlib's embeddings.

    Args: seen: what `examine` answered for n pictures; those without a face are left out. labels: [n] each.
    Raises: TrainingError for fewer than two faces.
    """
    judged = tuple(name for name in JUDGED if name in labels)
    kept = [place for place, answer in enumerate(seen) if answer is not None]
    if len(kept) < 2:
        raise TrainingError(f"dlib finds a face in only {len(kept)} of {len(seen)} pictures; use aligned faces.")
    x = np.stack([np.append(seen[place][1], 1.0) for place in kept])  # [m, 129]
    y = np.array([labels[name][kept] for name in judged]).reshape(len(judged), len(kept)).T  # [m, k], k may be 0
    return Judge(judged, np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y))


def examine(picture: Image.Image) -> tuple[dict[str, float], np.ndarray] | None:
    """What `measure` says of an aligned picture, and dlib's embedding [128]; None where it finds no face."""
    found = find_aligned_face(picture)
    return None if found is None else (measure(picture, found[1]), embed(*found))


def look_at(
    pictures: Pictures, indices: Sequence[int], look: Callable[[Image.Image], Any], pool: Executor, what: str
) -> list[Any]:
    """What `look` answers for the pictures at `indices`."""
    answers = []
    for start in tqdm(range(0, len(indices), BATCH), what):
        some = (to_picture(pictures[i]) for i in indices[start : start + BATCH])
        answers += pool.map(look, some, chunksize=8)
    return answers


def steady(values: np.ndarray) -> float:
    """Share of faces whose attribute never falls by more than TOLERANCE from one strength to the next.

    Args: values: float64 [strengths, n] in standard deviations; faces with a NaN are left out.
    """
    steps = np.diff(values[:, np.isfinite(values).all(0)], axis=0)
    return float((steps > -TOLERANCE).all(0).mean()) if steps.size else 0.0


def range_of(strengths: np.ndarray, values: np.ndarray) -> tuple[float, float, float] | None:
    """How far a direction can be moved, from what its attribute does at `strengths`.

    The range is the widest one, up to LIMIT either way, over which the mean attribute keeps rising, dlib keeps
    finding the faces, and the attribute falls on few of them; one side of it may be empty. Faces that are not found
    at 0 are left out.

    Args: strengths float64 [2k + 1], -s … 0 … s. values float64 [2k + 1, n] in standard deviations, NaN: no face.
    Returns: low and high, in standard deviations, and how many of these a strength of 1 is; that is negative where the
        attribute falls. None where the attribute hardly moves either way.
    """
    middle, last = len(strengths) // 2, len(strengths) - 1
    values = values[:, np.isfinite(values[middle])]
    if not values.size:
        return None
    safe = np.isfinite(values).mean(1) >= FOUND
    mean = np.full(len(strengths), np.nan)
    mean[safe] = np.nanmean(values[safe] - values[middle], 1)
    sign = -1.0 if np.nansum(mean * strengths) < 0 else 1.0
    if sign < 0:  # from here on it rises
        values, mean = values[::-1], mean[::-1]
    farthest = []
    for side in (-1, 1):
        here, there = middle, middle + side
        while 0 <= there <= last and side * (mean[there] - mean[here]) > 0 and abs(mean[here]) < LIMIT:
            here, there = there, there + side
        farthest.append(here)

    def reach(pair: tuple[int, int]) -> np.ndarray:
        """How far the two sides go, in standard deviations; 0 for one that is not worth it."""
        far = np.abs(mean[[*pair]])
        return np.where(far >= LEAST, far, 0.0)

    def is_steady(pair: tuple[int, int]) -> bool:
        low, high = pair
        halves = min(low + 2, middle), max(middle, high - 2)
        return steady(values[[low, halves[0], middle, halves[1], high]]) >= STEADY

    pairs = filter(is_steady, product(range(farthest[0], middle + 1), range(middle, farthest[1] + 1)))
    # Two sides are worth more than a wide one.
    widest = max(pairs, key=lambda pair: np.sqrt(reach(pair)).sum(), default=(middle, middle))
    if not reach(widest).any():
        return None
    ends = [end if far else middle for end, far in zip(widest, reach(widest), strict=True)]
    slope = reach(widest).sum() / (strengths[ends[1]] - strengths[ends[0]])  # standard deviations per length
    low, high = (math.floor(10 * min(float(abs(strengths[end] * slope)), LIMIT)) / 10 for end in ends)
    return 0.0 - low, high, float(sign * slope)


def layer_ranges(count: int) -> list[range]:
    """What directions may be kept to: all layers, or those of coarse, middle and fine styles (Karras et al. 2019)."""
    coarse, middle = 4, min(8, count)  # 4² to 8², 16² to 32², the rest
    spans = [(0, count), (0, middle), (0, coarse), (coarse, count), (coarse, middle), (middle, count)]
    return [range(*span) for span in spans if span[0] < span[1]]


@dataclass(frozen=True)
class Trial:
    """Tries directions on faces.

    Attributes:
        model: renders them.
        judge: measures the pictures.
        spread: each attribute's standard deviation in the data.
        pool: processes for the judge.
    """

    model: E4E
    judge: Judge
    spread: dict[str, float]
    pool: Executor

    @torch.no_grad()
    def curves(
        self, codes: Tensor, vectors: Tensor, strengths: Sequence[float], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Attributes `names` of faces [n, L, D] at every strength, in standard deviations: float64 [strengths, n] each.

        NaN where dlib finds no face.
        """
        answers = []
        for strength in strengths:
            rendered = (self.model.synthesize(few + strength * vectors) for few in codes.split(RENDERED))
            images = (image for few in rendered for image in content(few, self.model.aspect))
            answers += self.pool.map(self.judge, map(to_picture, images), chunksize=2)
        shape = (len(strengths), len(codes))
        return {
            name: np.reshape([np.nan if a is None else a[name] / self.spread[name] for a in answers], shape)
            for name in names
        }

    def to_length(self, direction: Direction, codes: Tensor) -> Direction:
        """The direction with the length of the codes' own spread, whatever length the fit gave it."""
        length = codes.flatten(1).std(0).norm() / direction.vectors.norm()
        return replace(direction, vectors=direction.vectors * length)

    def choose_layers(self, direction: Direction, name: str, codes: Tensor) -> Direction:
        """The direction on the layers where it changes least besides its attribute, for what it changes of that.

        Layers are left out only if the rest keeps KEPT_EFFECT of the effect that all of them have.
        Args: codes float32 [n, L, D].
        """
        others = [other for other in self.spread if other != name and other not in self.judge.labels]
        candidates = []
        for layers in layer_ranges(codes.shape[1]):
            vectors = torch.zeros_like(direction.vectors)
            vectors[layers.start : layers.stop] = direction.vectors[layers.start : layers.stop]
            moved = self.curves(codes, vectors, (-1.0, 1.0), [name, *others])
            effect, *aside = (abs(np.nanmean(values[1] - values[0])) for values in moved.values())
            candidates.append((effect, np.mean(aside) / max(effect, 1e-6), vectors))
        enough = [candidate for candidate in candidates if candidate[0] >= KEPT_EFFECT * candidates[0][0]]
        enough = enough or candidates[:1]  # none where no face is found
        return replace(direction, vectors=min(enough, key=lambda candidate: candidate[1])[2])

    def calibrate(self, direction: Direction, name: str, codes: Tensor) -> Direction | None:
        """The direction scaled so that strength 1 moves its attribute by one standard deviation, with a range.

        A direction that turns out to lower its attribute is reversed; None for one that hardly moves it either way.
        Args: codes float32 [n, L, D] of held-out faces.
        """
        strengths = np.concatenate([-TRIED[::-1], [0.0], TRIED])
        values = self.curves(codes, direction.vectors, strengths.tolist(), [name])[name]  # [strengths, n]
        if (found := range_of(strengths, values)) is None:
            return None
        low, high, slope = found
        return replace(direction, vectors=direction.vectors / slope, low=low, high=high)

    def figures(self, direction: Direction, name: str, codes: Tensor) -> dict[str, float | dict[str, float]]:
        """Measured on faces [n, L, D] at five strengths from one end of the slider to the other.

        Returns: `low`, `high`: mean change of the attribute at the ends, in standard deviations of the data;
            `monotone`: share of faces whose attribute never falls by more than TOLERANCE;
            `found`: share of edited faces dlib finds; `side_effects`: mean absolute change of the other attributes
            at the ends, in standard deviations.
        """
        strengths = sorted({direction.low, direction.low / 2, 0.0, direction.high / 2, direction.high})
        ends = [at for at in (0, -1) if strengths[at]]  # a side may be empty
        curves = self.curves(codes, direction.vectors, strengths, [*self.spread])
        middle = strengths.index(0.0)
        changes = {attribute: np.nanmean(values - values[middle], 1) for attribute, values in curves.items()}
        values, change = curves[name], changes.pop(name)
        return {
            "low": round(float(change[0]), 2),
            "high": round(float(change[-1]), 2),
            "mean_rises": bool((np.diff(change) > 0).all()),
            "monotone": round(steady(values), 3),
            "found": round(float(np.isfinite(values).mean()), 3),
            "side_effects": {other: round(float(np.mean(np.abs(moved[ends]))), 2) for other, moved in changes.items()},
        }


def learn(
    model: E4E,
    data: Path,
    labels: Path | None = None,
    holdout: int = 500,
    photos: int = 6000,
    faces: int = 32,
    seed: int = 0,
    against: Sequence[str] = (),
) -> DirectionSet:
    """Directions for every column of `labels` that is in SLIDERS, and for the light of the pictures.

    Those that cannot be made into sliders are named on stderr.

    Args:
        data: aligned faces.
        labels: a csv table with a column `file`; without one, what `measure` says of the faces.
        holdout: how many pictures at the end the encoder was not trained on; calibration uses only these.
        photos: how many others to fit on. faces: how many held-out faces to calibrate on, and as many to measure on.
        against: directions along which the others must not move a face, see `DirectionSet.keeping`.
    Raises: TrainingError for a model that knows no faces, for unusable data and settings, and if no slider comes out.
    """
    if model.template is None:
        raise TrainingError("Only faces can be measured; use python -m editing.unsupervised for this model.")
    if photos < LEAST_PHOTOS or faces < 2 or holdout < 4:
        raise TrainingError(
            f"--photos {photos}, --faces {faces} or --holdout {holdout} is too small; give at least {LEAST_PHOTOS}, 2 "
            "and 4."
        )
    pictures, shown_whole = (Pictures(data, side, aspect=model.aspect) for side in (model.input_size, model.resolution))
    count = len(pictures)
    if holdout + LEAST_PHOTOS > count:
        raise TrainingError(
            f"{data} has {count} pictures; at least {LEAST_PHOTOS} beside the {holdout} held out are needed."
        )
    order = random.Random(seed)
    shown = order.sample(range(count - holdout), min(photos, count - holdout))
    kept = order.sample(range(count - holdout, count), min(2 * faces, holdout))
    labelled = {} if labels is None else read_labels(labels, [pictures.names[i] for i in shown])
    measured = [
        name for name, (_, group) in SLIDERS.items() if name not in JUDGED and (labels is None or group == "Light")
    ]
    if unknown := [name for name in against if name not in (*measured, *_varying(labelled))]:
        raise TrainingError(f"There is no slider {unknown[0]} to keep the others from; add such a column to --labels.")
    with ProcessPoolExecutor(None, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        if labels is None:
            look, told = Judge((), np.zeros((129, 0))), "photos, measured"
        else:
            look, told = measure_light, "labelled photos"
        answers = look_at(shown_whole, shown, look, pool, "measuring")
        found = {i: answer for i, answer in zip(shown, answers, strict=True) if answer is not None}
        if len(found) < LEAST_PHOTOS:
            raise TrainingError(
                f"dlib finds a face in only {len(found)} of {len(shown)} pictures; use aligned faces, or give a table "
                "with --labels."
            )
        shown = [*found]
        attributes = {name: np.array([row[name] for row in found.values()]) for name in found[shown[0]]} | labelled
        if constant := [name for name in attributes if name not in _varying(attributes)]:
            print(f"Left out, as all pictures have the same value: {', '.join(constant)}.", file=sys.stderr)
            attributes = _varying(attributes)
        few = shown[:JUDGED_ON]
        seen = look_at(shown_whole, few, examine, pool, "measuring photos")
        judge = fit_judge(seen, {name: column[: len(few)] for name, column in attributes.items()})
        real = [judge.of(*answer) for answer in seen if answer is not None]
        spread = {name: float(np.std([answer[name] for answer in real])) for name in attributes}
        vectors = fit_directions(invert_all(model, pictures, shown), attributes)
        codes = invert_all(model, pictures, kept)
        tuning, testing = codes[: len(codes) // 2], codes[len(codes) // 2 :]
        trial = Trial(model, judge, spread, pool)
        source = f"learned from {len(shown)} {told}" + (f", against {', '.join(against)}" if against else "")
        fitted = {
            name: Direction(*SLIDERS[name], -1.0, 1.0, vectors[name], source=source)
            for name in SLIDERS
            if name in vectors
        }
        directions = {}
        for name, direction in tqdm(DirectionSet(fitted).keeping(against).items(), "calibrating"):
            direction = trial.choose_layers(trial.to_length(direction, tuning), name, tuning)
            direction = trial.calibrate(direction, name, tuning)
            if direction is not None:
                directions[name] = replace(direction, measured=trial.figures(direction, name, testing))
    if not directions:
        raise TrainingError("No direction moves what it is named after on faces that dlib finds; train for longer.")
    if lost := [name for name in fitted if name not in directions]:
        print(f"Left out, as they hardly move what they are named after: {', '.join(lost)}.", file=sys.stderr)
    return DirectionSet(directions)


def _varying(attributes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those that do not have the same value everywhere."""
    return {name: column for name, column in attributes.items() if np.ptp(column) > 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when the directions were written."""
    parser = argparse.ArgumentParser(prog="python -m editing.discovery", description=learn.__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model of this project")
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of aligned pictures")
    parser.add_argument("--labels", type=Path, help="csv table with a column `file` (default: the faces are measured)")
    parser.add_argument("--holdout", type=int, default=500, help="pictures at the end the encoder never saw")
    parser.add_argument("--photos", type=int, default=6000, help="photos to fit on")
    parser.add_argument("--faces", type=int, default=32, help="held-out faces to calibrate on, and to measure on")
    parser.add_argument(
        "--against",
        nargs="+",
        choices=[*SLIDERS],
        default=[],
        metavar="NAME",
        help="directions along which the others must not move a face, such as yaw (conditional manipulation)",
    )
    options = parser.parse_args(arguments)
    try:
        model = load_model(options.model)
        if model.folder is None:
            raise TrainingError(f"{options.model} is not a folder of this project; convert it with load_model first.")
        check_writable(model.folder)
        counts = (options.holdout, options.photos, options.faces)
        directions = learn(model, options.data, options.labels, *counts, against=options.against)
        directions.save(model.folder)
    except (E4EError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, direction in directions.items():
        m = direction.measured
        print(
            f"{name:12s} {direction.low:+.1f} … {direction.high:+.1f}   measured {m['low']:+.2f} … {m['high']:+.2f} sd"
            f"   monotone {m['monotone']:.0%}   found {m['found']:.0%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
