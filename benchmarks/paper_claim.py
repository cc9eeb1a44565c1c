"""The paper's claim (Tov et al. 2021): editability is bought with distortion. One command trains and measures it.

    python -m benchmarks.paper_claim --data faces.zip --generator checkpoints/demo --images 80000

Three encoders for the same generator, pictures and budget: w (one code), W+ (pSp: no offset penalty, no progression,
no latent discriminator) and W^k (e4e); and e4e without each of its three ingredients. A stopped command continues,
finished encoders are not trained again, and the table, plot and sheet of `docs/results.md` are made anew.
"""

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from e4e_core.images import to_picture, to_sheet
from e4e_core.metrics.__main__ import Eye, load_to_measure
from e4e_core.metrics.edits import (
    Look,
    consistency,
    editability,
    identity_distances,
    invert,
    lec,
    look_at_all,
    render,
    spreads,
    to_input,
)
from e4e_core.metrics.reconstruction import distortion
from e4e_core.metrics.report import Table, table_lines, write
from e4e_core.metrics.statistics import bootstrap
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures
from e4e_core.training.encoder import train_encoder
from e4e_core.training.generator import load_generator
from e4e_core.training.settings import EncoderTraining
from editing.directions import Direction, DirectionSet
from editing.discovery import fit_directions
from errors import E4EError, TrainingError

W, W_PLUS, W_K = "W", "W+ (pSp)", "W^k (e4e)"
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {  # title: (folder, what differs from e4e)
    W: ("w", {"kind": "w"}),
    W_PLUS: ("psp", {"kind": "psp"}),
    W_K: ("e4e", {}),
    "e4e without Δ penalty": ("no_delta", {"delta": 0.0}),
    "e4e without progression": ("no_progression", {"progressive_start": 0, "progressive_every": 1}),
    "e4e without latent discriminator": ("no_discriminator", {"adversarial": 0.0}),
}
REACH = 1.5  # standard deviations of its attribute by which every direction is tried
STRENGTHS = (-REACH, -REACH / 2, 0.0, REACH / 2, REACH)
L2, IDENTITY, LEC, LEC_PICTURES = "L2 ↓", "identity distance ↓", "LEC ↓", "LEC in pictures, L2 ↓"
CHANGE, OTHERS, KEPT, MONOTONE = "change per unit ↑", "others per unit ↓", "identity moved ↓", "monotone ↑"
FOUND = "found after editing ↑"
CLAIMS = {  # figure: encoders in the order of rising figures that the paper claims
    L2: (W_PLUS, W_K, W),
    LEC: (W, W_K, W_PLUS),
    CHANGE: (W_PLUS, W_K, W),
}
BEGIN, END = "<!-- paper_claim -->", "<!-- /paper_claim -->"


@dataclass(frozen=True)
class PaperClaim:
    """Train six encoders on one generator, and compare their distortion, consistency and editability."""

    data: Path
    """Folder, zip or tar of aligned faces; the last 500 are measured on and never trained on."""
    generator: Path = Path("checkpoints/demo")
    """Model folder with `discriminator.safetensors`, or run folder of a generator's training."""
    images: int = 80_000
    """Budget: real pictures each encoder is shown."""
    out: Path = Path("runs/paper_claim")
    """Folder of the six runs; those with other settings lie beside each other in it."""
    docs: Path = Path("docs/results.md")
    """Page whose part between the two markers is written anew, the plot and a sheet beside it."""
    count: int = 200
    """Held-out pictures on which distortion and LEC are measured."""
    faces: int = 32
    """So many of them are edited."""
    samples: int = 1500
    """Invented faces from which the directions are fitted, so that they favour no encoder."""
    device: str = "cpu"
    compile: bool = False
    seed: int = 0
    trunk: str = ""
    """Model folder whose encoder's trunk all six start from; their heads are new."""


def trainings(settings: PaperClaim, base: EncoderTraining, layers: int) -> dict[str, EncoderTraining]:
    """The six runs by title. Only the paper's terms: no pictures of the generator's own with known codes.

    The schedule is the paper's shape at this budget: w alone for a quarter, the last offset at three quarters.
    """
    base = replace(
        base,
        images=settings.images,
        synthetic=0,
        progressive_start=settings.images // 4,
        progressive_every=max(1, settings.images // 2 // (layers - 1)),
        device=settings.device,
        compile=settings.compile,
        trunk=settings.trunk,
        seed=settings.seed,
    )
    folder = folder_of(settings, base)
    return {title: replace(base, out=folder / name, **changes) for title, (name, changes) in ENCODERS.items()}


def folder_of(settings: PaperClaim, base: EncoderTraining) -> Path:
    """Where the six runs with these settings lie: beside those with any other."""
    every = [base, *(getattr(settings, name) for name in ("data", "generator", "images", "trunk", "seed"))]
    return settings.out / f"{settings.images}-{hashlib.sha256(repr(every).encode()).hexdigest()[:8]}"


def train_all(settings: PaperClaim, base: EncoderTraining) -> dict[str, E4E]:
    """The trained encoders with their generator, by title; those finished before are only loaded.

    Raises TrainingError or ModelError for unusable pictures, generators or states.
    """
    layers = load_generator(settings.generator)[0].config.num_layers
    runs = trainings(settings, base, layers)
    for title, config in runs.items():
        done = config.out / "done"
        if not done.exists():
            print(f"Training {title} in {config.out}.")
            train_encoder(config)
            done.touch()
    return {title: load_to_measure(config.out / "model", settings.device) for title, config in runs.items()}


def neutral_directions(model: E4E, seer: Look, samples: int, seed: int = 0) -> DirectionSet:
    """A direction in W per attribute that `seer` measures, fitted on the generator's own faces: no encoder took part.

    Raises TrainingError if too few faces are seen.
    """
    z = torch.randn(samples, model.latent_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        codes = model.map(z).cpu()[:, None].expand(-1, model.num_layers, -1)  # [n, L, D]
    seen = [face for few in tqdm(codes.split(16), "fitting") for face in look_at_all(model, render(model, few), seer)]
    there = [i for i, face in enumerate(seen) if face]
    if len(there) < 100:
        raise TrainingError(
            f"Only {len(there)} of {samples} invented pictures show a face; train the generator longer."
        )
    names = list(seen[there[0]].attributes)
    attributes = {name: np.array([seen[i].attributes[name] for i in there]) for name in names}
    vectors = fit_directions(codes[there], attributes)
    label = f"fitted on {len(there)} invented faces"
    return DirectionSet({n: Direction(n, "Neutral", -REACH, REACH, v, source=label) for n, v in vectors.items()})


def measure_encoder(
    model: E4E, inputs: Tensor, targets: Tensor, faces: int, directions: DirectionSet, seer: Look, spread: dict
) -> dict[str, Any]:
    """One row of the table; figures of several directions are averaged for every face before the bootstrap."""
    codes = invert(model, inputs)
    images = render(model, codes)
    originals = [seer(to_picture(target)) for target in targets]
    steps = [consistency(model, codes, d.high * d.vectors) for d in directions.values()]
    few = codes[:faces]
    unedited = look_at_all(model, images[:faces], seer)
    edits = [
        editability(model, few, d.vectors, STRENGTHS, seer, spread, name, unedited) for name, d in directions.items()
    ]
    return {
        L2: bootstrap(distortion(images, targets)["L2"]),
        IDENTITY: bootstrap(identity_distances(originals, look_at_all(model, images, seer))),
        LEC: lec(np.mean([step.codes for step in steps], 0)),
        LEC_PICTURES: lec(np.mean([step.pictures for step in steps], 0)),
        CHANGE: bootstrap(per_face([edit.change for edit in edits])),
        OTHERS: bootstrap(per_face([edit.others for edit in edits])),
        KEPT: bootstrap(per_face([edit.identity for edit in edits])),
        MONOTONE: bootstrap(per_face([edit.monotone for edit in edits])),
        FOUND: bootstrap(per_face([edit.found for edit in edits])),
    }


def per_face(values: list[np.ndarray]) -> np.ndarray:
    """Mean over directions of float64 [n] each, without those in which a face was lost; NaN where it always was."""
    there = np.isfinite(values)
    return np.where(there.any(0), np.where(there, values, 0.0).sum(0) / there.sum(0).clip(1), np.nan)


def verdict(rows: Table) -> list[str]:
    """A sentence per claim: whether the figures come in the paper's order, and whether their intervals overlap."""
    figures = {row["encoder"]: row for row in rows}
    lines = []
    for figure, order in CLAIMS.items():
        found = sorted(order, key=lambda title: figures[title][figure].value)
        estimates = [figures[title][figure] for title in found]
        wanted, here = " < ".join(order), " < ".join(found)
        apart = all(a.high < b.low for a, b in pairwise(estimates))
        doubt = "" if apart else ", but the intervals of neighbours overlap"
        other = f"the paper says {wanted}; here it comes out {here}"
        said = f"{wanted}, as the paper says" if here == wanted else other
        lines.append(f"- **{figure[:-2]}**: {said}{doubt}.")
    return lines


def plot(rows: Table, file: Path) -> None:
    """Distortion against LEC and against editability, a point with its intervals per encoder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), (LEC, CHANGE), strict=True):
        for row in rows:
            x, y = row[L2], row[name]
            spans = [[[e.value - e.low], [e.high - e.value]] for e in (x, y)]
            axes.errorbar([x.value], [y.value], xerr=spans[0], yerr=spans[1], fmt="o", label=row["encoder"])
        axes.set_xlabel("distortion, L2 (lower is better)")
        axes.set_ylabel(f"{name[:-2]} ({'lower' if name == LEC else 'higher'} is better)")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=110)


def sheet(models: Mapping[str, E4E], images: Tensor, directions: DirectionSet) -> Image.Image:
    """A row per encoder: of each picture [n, 3, R, R] itself, its inversion and two edits of it at their high ends."""
    rows = []
    for model in models.values():
        codes = invert(model, to_input(model, images))
        edited = [render(model, codes + d.high * d.vectors) for d in list(directions.values())[:2]]
        rows.append(torch.stack([images, render(model, codes), *edited], 1).flatten(0, 1))
    return to_sheet(F.interpolate(torch.cat(rows), scale_factor=max(1, 96 // images.shape[-1])), len(rows[0]))


def write_page(page: Path, rows: Table, about: Mapping[str, Any]) -> None:
    """Put the table and the verdict between the markers of `page`. Raises TrainingError if it has no markers."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise TrainingError(f"{page} has no place for the table; add the lines {BEGIN} and {END}.")
    head = ", ".join(f"{key} {value}" for key, value in about.items())
    parts = ["\n".join(verdict(rows)), table_lines(rows), f"Values with 95% bootstrap intervals over pictures: {head}."]
    parts += [f"![Distortion against LEC and editability]({page.stem}-plot.png)"]
    parts += [f"![Invented faces, their inversions and edits, a row per encoder]({page.stem}-faces.png)"]
    block = "\n\n".join([BEGIN, *parts, END])
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    page.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8")


def run(settings: PaperClaim, base: EncoderTraining, seer: Look) -> Table:
    """Train what is not trained, measure, and write everything; returns the table's rows.

    Raises TrainingError or ModelError, see `train_all` and `neutral_directions`.
    """
    models = train_all(settings, base)
    first = models[W_K]
    directions = neutral_directions(first, seer, settings.samples, settings.seed)
    held = {"holdout": base.holdout, "held": True} if base.holdout else {}
    inputs, wanted = (Pictures(settings.data, side, **held) for side in (first.input_size, first.resolution))
    indices = range(max(0, len(inputs) - settings.count), len(inputs))
    shown, targets = (torch.stack([pictures[i] for i in indices]) for pictures in (inputs, wanted))
    spread = spreads([seer(to_picture(target)) for target in targets])
    directions = DirectionSet({name: d for name, d in directions.items() if name in spread})
    rows = []
    for title, model in tqdm(models.items(), desc="measuring"):
        figures = measure_encoder(model, shown, targets, settings.faces, directions, seer, spread)
        rows.append({"encoder": title, **figures})
    about = {"pictures per encoder": settings.images, "held-out pictures": len(indices), "faces edited": settings.faces}
    about |= {"directions": " ".join(directions), "generator": f"{settings.generator} of {first.resolution} px"}
    about |= {"trunk": settings.trunk or "from nothing", "faces the directions are fitted on": settings.samples}
    about |= {"seed": settings.seed}
    folder = folder_of(settings, base)
    write({"Encoders": rows}, folder, "results", about)
    sheet(models, targets[:4], directions).save(folder / "photos.png")
    settings.docs.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        w = first.map(torch.randn(4, first.latent_dim, generator=torch.Generator().manual_seed(5))).cpu()
    w = torch.lerp(first.latent_avg[0].cpu(), w, 0.7)  # truncated: faces to look at
    invented = render(first, w[:, None].expand(-1, first.num_layers, -1)).clamp(-1, 1)
    sheet(models, invented, directions).save(settings.docs.with_name(f"{settings.docs.stem}-faces.png"))
    plot(rows, settings.docs.with_name(f"{settings.docs.stem}-plot.png"))
    write_page(settings.docs, rows, about)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 when the page was written."""
    settings = tyro.cli(PaperClaim, args=arguments, prog="python -m benchmarks.paper_claim")
    torch.set_flush_denormal(True)
    try:
        rows = run(settings, EncoderTraining(settings.data, settings.generator, settings.out), Eye())
    except E4EError as error:
        print(error, file=sys.stderr)
        return 1
    print(table_lines(rows), *verdict(rows), f"{settings.docs} is written.", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
