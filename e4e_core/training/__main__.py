"""`python -m e4e_core.training {generator,encoder} --help`."""

import sys

import tyro

from e4e_core.training.generator import GeneratorTraining, train_generator
from errors import E4EError


def main() -> None:
    config = tyro.extras.subcommand_cli_from_dict({"generator": GeneratorTraining})
    try:
        train_generator(config)
    except E4EError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
