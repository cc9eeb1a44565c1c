"""The editor from a shell: `python -m editing PHOTO… --edit smile=1.5 --edit age=-1 [--paste] --out DIR`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from errors import E4EError, PhotoError

if TYPE_CHECKING:
    from PIL.Image import Image

    from editing import Editor, Session
    from editing.folder import Job

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
    command.add_argument("--only", metavar="REGION", help="with --paste: mouth, eyes, skin, head or everything")
    command.add_argument("--feather", type=float, help="with --paste: how soft the edge is, in heights of the face")
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
    if not options.paste and (options.only or options.feather is not None):
        command.error("--only and --feather are about the whole photo; add --paste")
    strengths = dict(options.edit)

    from alignment import FEATHER
    from alignment.masks import check_region
    from e4e_core.checkpoints import default_model_name, load_model  # after --help and typing errors: torch is slow
    from editing import Editor
    from editing.folder import own_gpu

    options.only = options.only or "everything"
    options.feather = FEATHER if options.feather is None else options.feather
    try:
        check_region(options.only, options.feather)
        own_gpu()
        editor = Editor(load_model(options.model or default_model_name()))
        if editor.notice:
            print(editor.notice, file=sys.stderr)
        if options.list:
            print_directions(editor)
            return DONE
        animated = {options.animate: 0.0} if options.animate else {}
        editor.directions.check({**strengths, **animated}, options.fidelity)
        check_apart(options.photos, options.out)
        options.out.mkdir(parents=True, exist_ok=True)
    except (E4EError, OSError) as error:
        print(error, file=sys.stderr)
        return CANNOT_START
    try:
        return edit_all(editor, options, strengths)
    except KeyboardInterrupt:
        return INTERRUPTED


def edit_all(editor: "Editor", options: argparse.Namespace, strengths: Mapping[str, float]) -> int:
    """Edit every photo; one line on stdout per file written, one on stderr per photo that failed."""
    from editing.folder import Order, edit_photos, fingerprint, is_done, jobs_of, own_share

    photos, failed = [], 0
    for named in options.photos:
        try:
            photos += photos_in(named) if named.is_dir() else [named]
        except (E4EError, OSError) as error:
            failed += report(named, error)
    closer = partial(refined, editor, tune=options.refine == "generator") if options.refine else None
    if options.animate:
        jobs = own_share(jobs_of(photos, options.out, f"{options.animate}.{options.format}"))
        done = (film(editor, job, options, strengths, closer) for job in jobs)
    else:
        # The page reads these keys, see `page.presets.edits_within`.
        settings = {"model": editor.model.name, "strengths": dict(strengths), "fidelity": options.fidelity}
        settings |= {"weights": fingerprint(editor)}
        settings |= {"face": options.face, "pasted": options.paste}
        settings |= {"region": options.only, "feather": options.feather} if options.paste else {}
        settings |= {"refined": options.refine} if options.refine else {}
        every = own_share(jobs_of(photos, options.out))
        jobs = [job for job in every if not is_done(job, settings)]
        if len(jobs) < len(every):
            said = f"{len(every) - len(jobs)} photos have been edited like this before; what is there stays."
            print(said, file=sys.stderr)
        order = Order(strengths, options.fidelity, options.face, options.paste, options.only, options.feather, closer)
        done = edit_photos(editor, jobs, order, settings)
    for job, error in tqdm(done, total=len(jobs), unit="photo", disable=None):
        if error is None:
            tqdm.write(str(job.target))
        else:
            failed += report(job.photo, error)
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


def film(
    editor: "Editor",
    job: "Job",
    options: argparse.Namespace,
    strengths: Mapping[str, float],
    closer: "Callable[[Session, Path], Session] | None",
) -> "tuple[Job, Exception | None]":
    """Write the path of the animated direction, added to the other edits; returns what failed it, or None."""
    from editing.animation import save_film, there_and_back

    def pictures() -> "Iterator[Image]":
        for strength in tqdm(path, unit="picture", leave=False, disable=None):
            picture = editor.render(session, {**strengths, options.animate: strength}, options.fidelity)
            whole = (options.fidelity, options.only, options.feather)
            yield editor.paste(session, picture, *whole) if options.paste else picture

    direction = editor.directions[options.animate]
    path = there_and_back(direction.low, direction.high)
    try:
        session = editor.open(job.photo, options.face)
        session = closer(session, job.photo) if closer else session
        save_film(pictures(), job.target)
    except Exception as error:  # one bad photo must not end a night's work on a folder
        return job, error
    return job, None


def report(path: Path, error: Exception) -> int:
    """Print one line about what failed; returns 1, to be counted."""
    reason = str(error) if isinstance(error, (E4EError, OSError)) else f"{type(error).__name__}: {error}"
    tqdm.write(f"{path}: {' '.join(reason.split())}", file=sys.stderr)
    return 1


def check_apart(photos: Sequence[Path], out: Path) -> None:
    """Raises PhotoError if the results would go among a folder's photos: run again, they would be edited once more."""
    if any(named.is_dir() and out.is_dir() and named.samefile(out) for named in photos):
        raise PhotoError("The photos and the edited pictures need two folders; name another one with --out.")


def photos_in(folder: Path) -> list[Path]:
    """The photos directly in a folder, by name. Raises PhotoError if there is none."""
    from alignment.photos import SUFFIXES

    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    photos = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not photos:
        raise PhotoError("This folder has no photos in it; name another one.")
    return photos


def print_directions(editor: "Editor") -> None:
    """One line per direction: name, range, group, label."""
    for name, direction in editor.directions.items():
        span = f"{direction.low:g} … {direction.high:g}"
        print(f"{name:<20} {span:<12} {direction.group}: {direction.label}")


if __name__ == "__main__":
    sys.exit(main())
