"""A folder of photos, aligned for training: `python -m alignment FOLDER --out DIR [--size 256]`."""

import sys

import tyro

from alignment.folder import REPORT, Alignment, align_all, photos_below
from errors import E4EError

DONE, NONE_ALIGNED, CANNOT_START, INTERRUPTED = 0, 1, 2, 130


def main() -> int:
    """Run the command line; returns the exit code."""
    options = tyro.cli(Alignment, prog="python -m alignment")
    try:
        photos = photos_below(options)
        done, skipped = align_all(options, photos)
    except KeyboardInterrupt:
        print("Stopped; run the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except (E4EError, OSError) as error:
        print(error, file=sys.stderr)
        return CANNOT_START
    for photo, reason in skipped:
        print(f"{photo}: {reason}", file=sys.stderr)
    print(f"{done} of {len(photos)} photos are aligned in {options.out}.", end=" ")
    print(f"{len(skipped)} were skipped, see {options.out / REPORT}." if skipped else "None was skipped.")
    return DONE if done else NONE_ALIGNED


if __name__ == "__main__":
    sys.exit(main())
