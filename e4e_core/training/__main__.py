"""`python -m e4e_core.training --help`: trainings with their presets, and exports to other programs' layouts."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from e4e_core.checkpoints import export_published, load_model
from e4e_core.training.encoder import train_encoder
from e4e_core.training.generator import GeneratorTraining, export_generator, train_generator
from e4e_core.training.settings import PRESETS, EncoderTraining
from errors import E4EError


@dataclass(frozen=True)
class Export:
    """Write a model as one .pt file in the published e4e layout; of the published sizes, others can read it, too."""

    model: tyro.conf.Positional[str]
    """A name from the registry, a model folder such as RUN/model, or a .pt file."""
    file: tyro.conf.Positional[Path]
    """The .pt file to write."""


@dataclass(frozen=True)
class ExportGenerator:
    """Write a trained generator as one .pt file in the widely used PyTorch layout (`g_ema`, `d`, `latent_avg`)."""

    run: tyro.conf.Positional[Path]
    """Folder of a generator's training, or of a model with its discriminator."""
    file: tyro.conf.Positional[Path]
    """The .pt file to write."""


def main() -> None:
    trainings = {"generator": GeneratorTraining, **PRESETS}
    exports = {"export": Export, "export-generator": ExportGenerator}
    task = tyro.extras.subcommand_cli_from_dict(trainings | exports)
    torch.set_flush_denormal(True)  # numbers below 1e-38 slow CPUs down; for the whole process, hence only here
    try:
        if isinstance(task, EncoderTraining):
            written = train_encoder(task)
        elif isinstance(task, GeneratorTraining):
            written = train_generator(task)
        elif isinstance(task, Export):
            export_published(load_model(task.model, device="cpu", precision="float32"), task.file)
            written = task.file
        else:
            export_generator(task.run, task.file)
            written = task.file
        print(f"Written to {written}.")
    except E4EError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
