"""Measure a model: reconstruction, consistency of edits, what each direction does, and its generator.

    python -m e4e_core.metrics --model demo --images faces.zip --out results/metrics

This command, unlike the package, stands above `editing`: it hands the measures the faces they may not know.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from e4e_core import load_model
from e4e_core.images import content, to_picture, to_sheet
from e4e_core.metrics import edits, generator, reconstruction
from e4e_core.metrics.edits import Look, Seen, look_at_codes, render
from e4e_core.metrics.reconstruction import BATCH
from e4e_core.metrics.report import Table, to_markdown, write
from e4e_core.metrics.statistics import bootstrap
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures
from editing.attributes import detects, embed, find_aligned_face, measure
from editing.directions import DirectionSet, directions_for
from editing.discovery import Judge, examine, fit_judge, read_labels
from errors import E4EError, TrainingError

SHOWN, INVERSIONS = 8, 20  # faces on each sheet


@dataclass(frozen=True)
class Measuring:
    """Measure a model on pictures; writes metrics.md, metrics.json and sheets to look at."""

    model: str
    """Name of a known model, a published .pt file, or a model folder."""
    images: Path
    """Folder or zip of pictures aligned as for this model's training; `python -m alignment` makes them of photos."""
    out: Path = Path("results/metrics")
    labels: Path | None = None
    """csv table with a column `file`: age and gender are then measured too, fitted on the pictures not counted."""
    count: int = 200
    """The last so many pictures are measured; the trainer never shows an encoder the last 500."""
    faces: int = 32
    """So many of them are edited."""
    samples: int = 2000
    """Invented pictures, and as many real ones, for the generator's figures; 0 leaves them out."""
    device: str | None = None
    """cpu or cuda; by default the GPU if there is one."""
    seed: int = 0


@dataclass(frozen=True)
class Eye:
    """Sees the face in an aligned picture: its attributes, those of `judge` among them, and dlib's embedding."""

    judge: Judge | None = None

    def __call__(self, picture: Image.Image) -> Seen | None:
        found = find_aligned_face(picture)
        if found is None:
            return None
        embedding, attributes = embed(*found), measure(picture, found[1])
        if self.judge:
            judged = np.append(embedding, 1.0) @ self.judge.weights
            attributes |= dict(zip(self.judge.labels, judged.tolist(), strict=True))
        return Seen(attributes, embedding)


def load_to_measure(name: str | Path, device: str | None = None) -> E4E:
    """The model in float32, and no product in TF32 from here on: figures do not depend on the machine's defaults."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return load_model(name, device, "float32")


def measure_reconstruction(
    model: E4E, codes: Tensor, targets: Sequence[Tensor], seer: Look | None, real: list[Seen | None]
) -> tuple[Table, Tensor]:
    """A row per figure for W^k and for w alone; and of some pictures target, w alone and W^k, [n, 3, 3, h, w].

    Args: targets: n pictures [3, h, w]. real: what `seer` sees in them.
    """
    both = {"W^k": codes, "w alone": codes[:, :1].expand_as(codes)}
    networks, notes = reconstruction.published_networks(model)
    measured: dict[str, dict[str, list[np.ndarray]]] = {name: defaultdict(list) for name in both}
    shown = []
    for start in tqdm(range(0, len(codes), BATCH), desc="reconstruction"):
        some = slice(start, start + BATCH)
        wanted = torch.stack([targets[i] for i in range(len(codes))[some]])
        images = {name: content(render(model, all_[some]), model.aspect) for name, all_ in both.items()}
        for name, made in images.items():
            figures = reconstruction.distortion(made, wanted, networks)
            if seer:
                inverted = [seer(to_picture(image)) for image in made]
                figures["identity distance (dlib)"] = edits.identity_distances(real[some], inverted)
            for figure, values in figures.items():
                measured[name][figure].append(values)
        if len(shown) * BATCH < INVERSIONS:
            shown.append(small(torch.stack([wanted, images["w alone"], images["W^k"]], 1)))
    rows = [
        {
            "figure": figure,
            **{name: bootstrap(np.concatenate(measured[name][figure])) for name in both},
            "pictures": len(codes),
        }
        for figure in measured["W^k"]
    ]
    for figure, note in notes.items():
        rows.append({"figure": figure, "W^k": note, "w alone": note, "pictures": 0})
    return rows, torch.cat(shown)[:INVERSIONS]


def small(images: Tensor) -> Tensor:
    """[..., 3, h, w] -> for a sheet, at most about 256 px wide."""
    return F.avg_pool2d(images.flatten(0, -4), max(1, images.shape[-1] // 256)).unflatten(0, images.shape[:-3])


def measure_consistency(model: E4E, codes: Tensor, directions: DirectionSet) -> tuple[Table, Tensor]:
    """LEC at the farther end of every direction, and of no edit at all; the steps of the first direction."""
    rows, steps = [], None
    changes = {"(none)": torch.zeros(codes.shape[1:])} | {n: d.farther * d.vectors for n, d in directions.items()}
    for name, vectors in tqdm(changes.items(), desc="consistency"):
        measured = edits.consistency(model, codes, vectors)
        steps = measured.steps if len(rows) < 2 else steps
        rows.append(
            {
                "direction": name,
                "strength": directions[name].farther if name in directions else 0.0,
                "LEC": edits.lec(measured.codes),
                "LEC, share of the codes' variance": edits.lec(measured.relative),
                "pictures, L2": edits.lec(measured.pictures),
            }
        )
    return rows, small(torch.stack([image[:SHOWN] for image in steps], 1))


def measure_directions(
    model: E4E, codes: Tensor, directions: DirectionSet, seer: Look, spread: dict[str, float]
) -> tuple[Table, Tensor]:
    """What one unit of every direction does; each direction at its ends and at 0, for a few faces."""
    rows, sheet = [], []
    unedited = look_at_codes(model, codes, seer)
    for name, d in tqdm(directions.items(), desc="directions"):
        strengths = sorted({d.low, d.low / 2, 0.0, d.high / 2, d.high})
        m = edits.editability(model, codes, d.vectors, strengths, seer, spread, name, unedited)
        rows.append(
            {
                "direction": name,
                "attribute": m.attribute,
                "change per unit, sd": bootstrap(m.change),
                "others per unit, sd": bootstrap(m.others),
                "identity distance at the ends": bootstrap(m.identity),
                "monotone": bootstrap(m.monotone),
                "found": bootstrap(m.found),
            }
        )
        ends = [codes[: SHOWN // 2] + s * d.vectors for s in (d.low, 0.0, d.high)]
        sheet.append(small(render(model, torch.stack(ends, 1).flatten(0, 1))))
    return rows, torch.cat(sheet) if sheet else torch.zeros(0)


def measure_model(settings: Measuring, model: E4E) -> tuple[dict[str, Table], dict[str, Any]]:
    """All tables, and what they were measured on; the sheets are written on the way.

    Raises TrainingError for unusable pictures or labels.
    """
    inputs, targets = (
        Pictures(settings.images, side, aspect=model.aspect) for side in (model.input_size, model.resolution)
    )
    total = len(inputs)
    indices = range(max(0, total - settings.count), total)
    codes = torch.cat([edits.invert(model, few) for few in DataLoader(Subset(inputs, indices), BATCH)])
    wanted = Subset(targets, indices)
    seer = Eye() if model.template else None
    if seer and settings.labels:
        rest = list(range(max(0, indices.start - 600), indices.start))
        if len(rest) < 200:
            raise TrainingError(
                f"{settings.images} needs 200 pictures beside the {len(indices)} counted; lower --count."
            )
        labels = read_labels(settings.labels, [inputs.names[i] for i in rest])
        with ThreadPoolExecutor() as pool:
            seen = list(pool.map(lambda i: examine(to_picture(targets[i])), rest))
        seer = Eye(fit_judge(seen, labels))
    real = [seer(to_picture(targets[i])) for i in tqdm(indices, desc="looking at photos")] if seer else []
    settings.out.mkdir(parents=True, exist_ok=True)
    tables = {}
    tables["Reconstruction"], trio = measure_reconstruction(model, codes, wanted, seer, real)
    to_sheet(trio.flatten(0, 1), 15).save(settings.out / "inversions.png")
    directions = directions_for(model)
    tables["Consistency of edits"], steps = measure_consistency(model, codes, directions)
    to_sheet(steps.flatten(0, 1), 6).save(settings.out / "consistency.png")
    spread = edits.spreads(real)
    if directions and spread:
        tables["Directions"], ends = measure_directions(model, codes[: settings.faces], directions, seer, spread)
        to_sheet(ends, 3 * SHOWN // 2).save(settings.out / "sliders.png")
    if settings.samples:
        tables["Generator"], samples = generator.measure(
            model, targets, settings.samples, seer, detects if seer else None, settings.seed
        )
        to_sheet(small(samples), 8).save(settings.out / "samples.png")
    about = {
        "model": settings.model,
        "pictures": f"the last {len(indices)} of {settings.images.name}",
        "precision": "float32, without TF32",
        "seed": settings.seed,
        "intervals": "95%, bootstrap over pictures",
    }
    return tables, about


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 when the figures were written."""
    settings = tyro.cli(Measuring, args=arguments, prog="python -m e4e_core.metrics")
    torch.set_flush_denormal(True)
    try:
        model = load_to_measure(settings.model, settings.device)
        tables, about = measure_model(settings, model)
        write(tables, settings.out, "metrics", about)
    except (E4EError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(to_markdown(tables))
    print(f"metrics.md, metrics.json and the sheets are in {settings.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
