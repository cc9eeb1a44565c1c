"""Aligning a folder of photos in parallel; a module of its own, as worker processes cannot import a __main__."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import tyro
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from errors import ModelError, NoFaceError, PhotoError

from .crop import FFHQ, align
from .landmarks import find_faces
from .photos import SUFFIXES, file_digest, open_photo

REPORT = "skipped.csv"
NOTE = "Aligned"  # the PNG text that says of which photo, and how
BATCH = 64  # photos per process between two starts of the processes


@dataclass(frozen=True)
class Alignment:
    """Cut the face out of every photo of a folder and its subfolders, the way FFHQ was cut.

    Photos without a face and files that cannot be read are skipped, listed at the end and in skipped.csv in the
    output folder. Run it again to go on: what was made of the same photo in the same way is left as it is.
    """

    folder: tyro.conf.Positional[Path]  # folder of photos
    out: Path  # folder for the aligned pictures, PNG, in the same subfolders
    size: int = 256  # side of the pictures in pixels
    template: tuple[float, float] = FFHQ  # centre and scale of the square in FFHQ's terms; demo model: 0.42 0.62
    workers: int = os.cpu_count() or 1  # processes, by default one per processor


def photos_below(options: Alignment) -> list[Path]:
    """The photos of the folder and its subfolders, by name; what was written to the output folder is not among them.

    Raises PhotoError for a folder that is missing or has no photos, and for settings that make no sense.
    """
    if not options.folder.is_dir():
        raise PhotoError(f"There is no folder {options.folder}; name the folder that holds the photos.")
    if not 16 <= options.size <= 4096 or options.workers < 1 or options.template[1] <= 0:
        raise PhotoError("Choose a size from 16 to 4096, at least one worker, and a template scale above 0.")
    out, found = options.out.resolve(), []
    if out == options.folder.resolve():
        raise PhotoError("The photos and the aligned pictures need two folders; name another one with --out.")
    for folder, folders, names in os.walk(options.folder):
        folders[:] = [n for n in folders if not n.startswith(".") and (Path(folder) / n).resolve() != out]
        found += [Path(folder) / n for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    if not found:
        raise PhotoError(f"There are no photos in {options.folder}; name another folder.")
    return sorted(found)


def align_all(options: Alignment, photos: list[Path]) -> tuple[int, list[tuple[Path, str]]]:
    """Align photos in parallel, with a progress bar.

    Returns how many there are now, and the skipped ones with the reason; these are in REPORT, too.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    targets = targets_of(options, photos)
    skipped = []
    for photo, reason in tqdm(in_processes(options, targets), total=len(photos), unit="photo", disable=None):
        if reason:
            skipped.append((photo, reason))
    skipped.sort()
    with (options.out / REPORT).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("photo", "reason"), *skipped])
    return len(photos) - len(skipped), skipped


def targets_of(options: Alignment, photos: list[Path]) -> dict[Path, Path]:
    """photo -> the picture it becomes. `a.jpg` beside `a.png` keep their endings, or one would replace the other."""
    count = Counter(photo.with_suffix("") for photo in photos)
    return {
        photo: (options.out / photo.relative_to(options.folder)).with_name(
            f"{photo.stem if count[photo.with_suffix('')] == 1 else photo.name}.png"
        )
        for photo in photos
    }


def in_processes(options: Alignment, targets: dict[Path, Path]) -> Iterator[tuple[Path, str]]:
    """Yields each photo and why it was skipped ("" if it was not), as they are finished.

    A photo that takes its process with it (memory, a fault in a decoder) ends the others in flight, too: what is left
    of its batch is then done by one process at a time, and the photo that ends this one is skipped.
    """
    photos, batch = list(targets), BATCH * options.workers
    for start in range(0, len(photos), batch):
        left, workers = photos[start : start + batch], min(options.workers, len(photos) - start)
        while left:
            for photo, reason in one_pool(options, {photo: targets[photo] for photo in left}, workers):
                left.remove(photo)
                yield photo, reason
            if left and workers == 1:
                yield left.pop(0), "This photo ended the process that read it; convert or remove it."
            workers = 1


def one_pool(options: Alignment, targets: dict[Path, Path], workers: int) -> Iterator[tuple[Path, str]]:
    """As `in_processes`, until a process ends; the photos missing then were being worked on or had not begun."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,))
    try:
        work = {pool.submit(align_file, photo, target, options): photo for photo, target in targets.items()}
        for future in as_completed(work):
            try:
                yield work[future], future.result()
            except BrokenProcessPool:
                continue
    finally:
        pool.shutdown(cancel_futures=True)


def align_file(photo: Path, target: Path, options: Alignment) -> str:
    """Align the clearest face of a photo into a PNG, unless it is there already. Returns why it was skipped, or "".

    Raises OSError when the picture cannot be written.
    """
    try:
        note = note_of(photo, options)
        if is_there(target, note):
            return ""
        picture = open_photo(photo)
        faces = find_faces(picture)
        if not faces:
            raise NoFaceError("No face was found in it.")
        aligned, _ = align(picture, faces[0], options.size, options.template)
    except ModelError:  # the landmark file is missing: no photo can be aligned
        raise
    except Exception as error:  # one bad photo must not end a night's work on a folder
        reason = str(error) if isinstance(error, PhotoError) else f"{type(error).__name__}: {error}"
        return " ".join(reason.split())
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        text = PngImagePlugin.PngInfo()
        text.add_text(NOTE, note)
        aligned.save(unfinished, "PNG", pnginfo=text)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return ""


def note_of(photo: Path, options: Alignment) -> str:
    """How a photo is aligned, and a digest of its file. Raises OSError if it cannot be read."""
    centre, scale = options.template
    return f"{options.size} px, {centre:g} {scale:g}, {file_digest(photo)}"


def is_there(target: Path, note: str) -> bool:
    """Whether an earlier run has written this picture with this note."""
    try:
        with Image.open(target) as picture:
            return picture.info.get(NOTE) == note
    except OSError:
        return False
