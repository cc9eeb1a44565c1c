"""The editor from a shell: `python -m editing PHOTO… --edit smile=1.5 --edit age=-1 [--paste] --out DIR`."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from errors import E4EError, PhotoError

if TYPE_CHECKING:
    from PIL.Image import Image

    from editing import Editor, Session

SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}  # taken from folders

DONE, SOME_FAILED, CANNOT_START, INTERRUPTED = 0, 1, 2, 130


def edit(text: str) -> tuple[str, float]:
    """ "smile=1.5" -> ("smile", 1.5)"""
    name, equals, strength = text.partition("=")
    try:
        return name.strip(), float(strength)
    except ValueError:
        missing = "has no strength" if not equals or not strength.strip() else f"has no number but {strength!r}"
        raise argparse.ArgumentTypeError(
            f"{text!r} {missing}; write for example {name.strip() or 'smile'}=1.5"
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m editing",
        description="Edit the face in one photo or in all photos of a folder, without a page.",
        epilog="Exit code: 0 all went well, 1 some photos failed, 2 the command or the model cannot be used.",
    )
    command.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="photo, or folder of photos")
    command.add_argument(
        "--edit", action="append", default=[], type=edit, metavar="NAME=STRENGTH", help="may be given several times"
    )
    command.add_argument("--paste", action="store_true", help="put the face back into the whole photo")
    command.add_argument(
        "--only", default="everything", metavar="REGION", help="with --paste: mouth, eyes, skin, head or everything"
    )
    command.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    command.add_argument(
        "--model", help="name from checkpoints/registry.toml, a .pt file or a folder; default: E4E_MODEL or demo"
    )
    command.add_argument("--face", type=int, default=0, metavar="N", help="which face, 0 is the clearest (default)")
    command.add_argument("--fidelity", type=float, default=1.0, help="0 most editable … 1 most faithful (default)")
    command.add_argument(
        "--refine",
        choices=("codes", "generator"),
        help="come closer to the photo: optimise its codes; or these, then a copy of the generator (slower, closest)",
    )
    command.add_argument(
        "--animate", metavar="NAME", help="a film instead of a picture: this direction from end to end and back"
    )
    command.add_argument("--format", choices=("mp4", "gif"), default="mp4", help="of the film (default: mp4)")
    command.add_argument("--list", action="store_true", help="print the model's directions and their ranges, and stop")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    command = parser()
    options = command.parse_args(arguments)
    if not options.photos and not options.list:
        command.error("no photo given; name a photo or a folder of photos, or use --list")
    strengths = dict(options.edit)

    from alignment.masks import check_region
    from e4e_core.checkpoints import default_model_name, load_model  # after --help and typing errors: torch is slow
    from editing import Editor

    try:
        check_region(options.only)
        editor = Editor(load_model(options.model or default_model_name()))
        if editor.notice:
            print(editor.notice, file=sys.stderr)
        if options.list:
            print_directions(editor)
            return DONE
        animated = {options.animate: 0.0} if options.animate else {}
        editor.directions.check({**strengths, **animated}, options.fidelity)
        options.out.mkdir(parents=True, exist_ok=True)
    except (E4EError, OSError) as error:
        print(error, file=sys.stderr)
        return CANNOT_START
    try:
        return edit_all(editor, options, strengths)
    except KeyboardInterrupt:
        return INTERRUPTED


def edit_all(editor: "Editor", options: argparse.Namespace, strengths: Mapping[str, float]) -> int:
    """Edit every photo; one line on stdout per picture written, one on stderr per photo that failed."""
    from editing.animation import save_film
    from editing.export import save_png

    photos, failed = [], 0
    for named in options.photos:
        try:
            photos += photos_in(named) if named.is_dir() else [named]
        except (E4EError, OSError) as error:
            failed += report(named, error)
    taken = {identity(photo) for photo in photos if photo.exists()}
    settings = {"model": editor.model.name, "edits": dict(strengths), "fidelity": options.fidelity}
    settings |= {"face": options.face, "pasted": options.paste}
    settings |= {"refined": options.refine} if options.refine else {}
    for photo in tqdm(photos, unit="photo", disable=None):
        try:
            session = editor.open(photo, options.face)
            if options.refine:
                session = refined(editor, session, photo, tune=options.refine == "generator")
            if options.animate:
                target = free_name(options.out, photo.stem, taken, options.animate, f".{options.format}")
                save_film(film(editor, session, options, strengths), target)
            else:
                target = free_name(options.out, photo.stem, taken)
                save_png(edited(editor, session, options, strengths), target, settings)
            taken.add(identity(target))
            tqdm.write(str(target))
        except Exception as error:  # one bad photo must not end a night's work on a folder
            failed += report(photo, error)
    return SOME_FAILED if failed else DONE


def refined(editor: "Editor", session: "Session", photo: Path, tune: bool) -> "Session":
    """The session closer to its photo; one line on stderr per stage says how close it came."""
    from editing import refine

    stages = {"codes": refine.refine_codes, "generator": refine.tune_generator}
    for name in ("codes", "generator") if tune else ("codes",):
        with tqdm(desc=f"refining {name}", unit="step", leave=False, disable=None) as bar:

            def tell(_: int, total: int, __: float, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update()

            done = stages[name](editor, session, tell)
        tqdm.write(f"{photo}: refined {name}: {done}", file=sys.stderr)
        session = done.session
    return session


def edited(
    editor: "Editor", session: "Session", options: argparse.Namespace, strengths: Mapping[str, float]
) -> "Image":
    """The edited face, or the photo with it."""
    picture = editor.render(session, strengths, options.fidelity)
    return editor.paste(session, picture, options.fidelity, options.only) if options.paste else picture


def film(
    editor: "Editor", session: "Session", options: argparse.Namespace, strengths: Mapping[str, float]
) -> Iterator["Image"]:
    """The pictures of the animated direction's path, added to the other edits."""
    from editing.animation import there_and_back

    direction = editor.directions[options.animate]
    path = there_and_back(direction.low, direction.high)
    for strength in tqdm(path, unit="picture", leave=False, disable=None):
        yield edited(editor, session, options, {**strengths, options.animate: strength})


def report(path: Path, error: Exception) -> int:
    """Print one line about what failed; returns 1, to be counted."""
    reason = str(error) if isinstance(error, (E4EError, OSError)) else f"{type(error).__name__}: {error}"
    tqdm.write(f"{path}: {' '.join(reason.split())}", file=sys.stderr)
    return 1


def photos_in(folder: Path) -> list[Path]:
    """The photos directly in a folder, by name. Raises PhotoError if there is none."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    photos = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not photos:
        raise PhotoError("This folder has no photos in it; name another one.")
    return photos


def identity(path: Path) -> tuple[int, int]:
    """What stays the same however a file is spelled or linked."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def free_name(folder: Path, stem: str, taken: set[tuple[int, int]], word: str = "edited", suffix: str = ".png") -> Path:
    """`stem_edited.png` in `folder`, numbered where that is an input or a result of this run; older ones give way."""
    number = 1
    while True:
        target = folder / (f"{stem}_{word}{suffix}" if number == 1 else f"{stem}_{word}_{number}{suffix}")
        if not target.exists() or identity(target) not in taken:
            return target
        number += 1


def print_directions(editor: "Editor") -> None:
    """One line per direction: name, range, group, label."""
    for name, direction in editor.directions.items():
        span = f"{direction.low:g} … {direction.high:g}"
        print(f"{name:<20} {span:<12} {direction.group}: {direction.label}")


if __name__ == "__main__":
    sys.exit(main())
