"""What a run of the encoder's training saves and shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from e4e_core.checkpoints import save_model
from e4e_core.images import to_sheet
from e4e_core.models.dlib_face import dlib_weights
from e4e_core.training.data import Pictures
from e4e_core.training.generator import DISCRIMINATOR, for_sheet, sample
from e4e_core.training.perception import DlibIdentity
from e4e_core.training.run import Log, Run, replacing
from e4e_core.training.settings import EncoderTraining
from e4e_core.training.transport import in_mapped_coordinates
from e4e_core.training.validation import BATCH, PICTURES, Validation, measuring
from errors import TrainingError

if TYPE_CHECKING:
    from e4e_core.training.encoder import Training

SEEN = 2_000  # pictures whose w say where photos are


class Report:
    """What the main process saves and shows: state, last and best model, figures, sheets."""

    def __init__(self, config: EncoderTraining, training: "Training", run: Run, pictures: Pictures):
        self.config, self.training, self.run, self.pictures = config, training, run, pictures
        self.log = Log(config.out, training.progress.images // config.batch)
        shape = (training.model.num_layers, training.model.latent_dim)
        directions = read_directions(config.directions, shape) if config.directions else {}
        self.edits = list(directions.values())
        size = training.model.resolution
        held, faces = [], None
        if config.holdout:
            held = Pictures(config.data, size, holdout=config.holdout, held=True, aspect=config.aspect)
            for index in range(min(len(held), PICTURES)):
                held.pixels(index)  # one that cannot be read is named now, and not after hours
            if config.template is not None:
                faces = DlibIdentity(dlib_weights(), config.template).to(training.model.device).embed
        invert, render, distances = training.invert, training.render, training.distances
        learning = ["perc"] if training.decoder else []  # the discriminator learns beside the generator
        self.validation = Validation(held, invert, render, distances, faces, directions, learning)
        dim = training.model.latent_dim
        self.sample_z = torch.randn(32, dim, generator=torch.Generator().manual_seed(1))

    def save(self, reals: Tensor) -> None:
        """Measure, save, show. Args: reals: the last pictures [n, 3, h, w], for a sheet where none are held out."""
        training, folder, images = self.training, self.config.out, self.training.progress.images
        step = images // self.config.batch
        with self._finished():
            if self.config.holdout:
                figures = self.validation.measure(training.model)
                self.log.scalars("validation", figures, step)
                text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
                tqdm.write(f"{images} pictures: {text}")
                reals = next(self.validation.batches(training.model))
                if figures["score"] < training.progress.best:
                    training.progress.best = figures["score"]
                    self._write(folder / "best")
            self._write(folder / "model")  # before the state: a run that dies between them makes it again
            self.run.save()
            sheet = to_sheet(
                self.validation.sheet(training.model, reals, self.edits), columns=2 * (2 + len(self.edits))
            )
            self.run.save_sheet("inversions", sheet, images)
            self.log.picture("inversions", sheet, step)
            if training.decoder:
                drawn = sample(training.model.decoder, self.sample_z.to(training.model.device), truncation=1.0)
                sheet = to_sheet(for_sheet(drawn), columns=8)
                self.run.save_sheet("samples", sheet, images)
                self.log.picture("samples", sheet, step)

    def _write(self, folder: Path) -> None:
        """The model, and beside it the discriminator, from which a later training can start."""
        save_model(self.training.model, folder)
        if self.training.critic is not None:
            weights = {key: value.contiguous() for key, value in self.training.critic.state_dict().items()}
            with replacing(folder / DISCRIMINATOR) as part:
                save_file(weights, part)

    def _w_of_photos(self) -> Tensor:
        """What the encoder as it is sees in the training's pictures, or in SEEN of them: w float [n, D].

        In training it normalises by the batch, where it later does not.
        """
        model, pictures = self.training.model, self.pictures
        some, codes = range(0, len(pictures), -(-len(pictures) // SEEN)), []
        with measuring(model.encoder):
            for start in range(0, len(some), BATCH):
                few = torch.stack([pictures[i] for i in some[start : start + BATCH]])
                codes.append(self.training.invert(few.to(model.device)))
        return torch.cat(codes)[:, 0]

    @contextmanager
    def _finished(self) -> Iterator[None]:
        """The model as it is measured and kept: of a learning generator the average, which maps to the photos' w."""
        training, model = self.training, self.training.model
        learning = (model.encoder, model.decoder, model.latent_avg)
        if training.decoder:
            move = training.decoder.mover.to(self._w_of_photos())
            kept = in_mapped_coordinates(training.encoder, training.decoder.average, model.latent_avg[0], move)
            model.encoder, model.decoder, model.latent_avg = kept.encoder, kept.decoder, kept.latent_avg
        try:
            yield
        finally:
            model.encoder, model.decoder, model.latent_avg = learning


def read_directions(file: Path, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Name -> direction float [L, D]. Raises TrainingError when one cannot be read or has another shape than (L, D)."""
    try:
        directions = load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{file} cannot be read as directions ({error}); check --directions.") from error
    for name, direction in directions.items():
        if tuple(direction.shape) != shape:
            raise TrainingError(
                f"{name} in {file} has the shape {list(direction.shape)}, not this generator's {list(shape)}; give "
                "--directions found with this generator, or none."
            )
    return directions
