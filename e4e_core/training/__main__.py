"""`python -m e4e_core.training {generator,encoder} --help`."""

import sys

import torch
import tyro

from e4e_core.training.encoder import EncoderTraining, train_encoder
from e4e_core.training.generator import GeneratorTraining, train_generator
from errors import E4EError


def main() -> None:
    config = tyro.extras.subcommand_cli_from_dict({"generator": GeneratorTraining, "encoder": EncoderTraining})
    torch.set_flush_denormal(True)  # numbers below 1e-38 slow CPUs down; for the whole process, hence only here
    try:
        written = train_encoder(config) if isinstance(config, EncoderTraining) else train_generator(config)
        print(f"Written to {written}.")
    except E4EError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
