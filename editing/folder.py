"""Many photos with one model: cut out and written by processes, inverted and rendered in batches between them.

Under `accelerate launch` or `torchrun` every process takes its share of the photos. Run again, it goes on: a result
that says it was made of the same photo, by the same model, with the same settings is not made again.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
from PIL import Image

from alignment import FEATHER, Crop, CutOut, Region, cut_out, paste_back
from alignment.photos import file_digest
from editing.export import save_png
from errors import PhotoError

if TYPE_CHECKING:
    from editing.editor import Editor, Session

BATCH = 8  # photos inverted and rendered together
FEW = 3  # up to so many photos, starting processes takes longer than the work


@dataclass(frozen=True)
class Job:
    """A photo and the file its edited version goes to."""

    photo: Path
    target: Path


@dataclass(frozen=True)
class Order:
    """What is to be done to every photo; `closer` may replace a session by a refined one."""

    strengths: Mapping[str, float]
    fidelity: float = 1.0
    face: int = 0
    paste: bool = False
    region: Region = "everything"
    feather: float = FEATHER
    closer: "Callable[[Session, Path], Session] | None" = None


def jobs_of(photos: Iterable[Path], folder: Path, ending: str = "edited.png") -> list[Job]:
    """Where each photo's result goes: `stem_edited.png` in `folder`, numbered where that is an input or another's."""
    photos, (word, suffix) = list(photos), ending.rsplit(".", 1)
    inputs, names, jobs = {_identity(photo) for photo in photos if photo.exists()}, set(), []
    for photo in photos:
        number = 1
        while True:
            target = folder / f"{photo.stem}_{word}{f'_{number}' if number > 1 else ''}.{suffix}"
            if target.name.casefold() not in names and not (target.exists() and _identity(target) in inputs):
                break
            number += 1
        names.add(target.name.casefold())
        jobs.append(Job(photo, target))
    return jobs


def own_share(jobs: list[Job]) -> list[Job]:
    """The jobs of this process among those that a launcher started, which it numbers by RANK and WORLD_SIZE."""
    return jobs[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]


def own_gpu() -> None:
    """Where a launcher started several processes on a machine with GPUs, use the one that is meant for this one."""
    if "LOCAL_RANK" in os.environ:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def is_done(job: Job, settings: Mapping[str, Any]) -> bool:
    """Whether an earlier run has written this result of this photo with these settings."""
    try:
        with Image.open(job.target) as picture:
            return json.loads(picture.text["Settings"]) == json.loads(json.dumps(_settings_of(job, settings)))
    except (OSError, AttributeError, KeyError, ValueError):
        return False


def _settings_of(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which photo they are about, as a digest of its file. Raises OSError if it cannot be read."""
    return {**settings, "photo": file_digest(job.photo)}


def fingerprint(editor: "Editor") -> str:
    """A digest of some weights of every layer of the model and of its directions, to tell it from others."""
    digest = hashlib.sha256()
    for tensor in [*editor.model.state_dict().values(), *(each.vectors for each in editor.directions.values())]:
        values = tensor.flatten()
        digest.update(values[:: max(1, len(values) // 16)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def edit_photos(
    editor: "Editor", jobs: list[Job], order: Order, settings: Mapping[str, Any]
) -> Iterator[tuple[Job, Exception | None]]:
    """Edit photos and write them with `settings`, and a digest of the photo's file, in their metadata.

    Yields every job once it is done, in order but for the failed ones, with the error that failed it or None.
    """
    with Workers(len(jobs)) as workers:
        model = editor.model
        shape = (order.face, model.input_size, model.template, model.aspect)
        writing: deque[tuple[Job, Task]] = deque()
        cut = _ahead(workers, jobs, [(cut_out, job.photo, *shape) for job in jobs])
        while few := list(islice(cut, BATCH)):
            yield from ((job, part) for job, part in few if isinstance(part, Exception))
            good = [(job, part) for job, part in few if not isinstance(part, Exception)]
            for job, done in _render_all(editor, good, order):
                if isinstance(done, Exception):
                    yield job, done
                    continue
                session, picture, unedited = done
                photo = session.photo if order.paste else None
                part = (order.region, order.feather)
                work = (_write, picture, photo, unedited, session.crop, *part, job, settings)
                writing.append((job, workers.submit(*work)))
            while len(writing) > 2 * BATCH:
                yield _answer(*writing.popleft())
        while writing:
            yield _answer(*writing.popleft())


def _render_all(
    editor: "Editor", parts: list[tuple[Job, CutOut]], order: Order
) -> "list[tuple[Job, tuple[Session, Image.Image, Image.Image | None] | Exception]]":
    """Each job with its session, edited picture and, if it is to be pasted, unedited one, or with what failed it."""
    try:
        return list(zip([job for job, _ in parts], _render(editor, parts, order), strict=True))
    except Exception as error:
        if len(parts) == 1:
            return [(parts[0][0], error)]
        return [answer for part in parts for answer in _render_all(editor, [part], order)]


def _render(
    editor: "Editor", parts: list[tuple[Job, CutOut]], order: Order
) -> "list[tuple[Session, Image.Image, Image.Image | None]]":
    if not parts:
        return []
    sessions = editor.encode([part for _, part in parts])
    if order.closer:
        sessions = [order.closer(session, job.photo) for session, (job, _) in zip(sessions, parts, strict=True)]
    pictures = editor.render_all(sessions, order.strengths, order.fidelity)
    unedited = editor.render_all(sessions, {}, order.fidelity) if order.paste else [None] * len(sessions)
    return list(zip(sessions, pictures, unedited, strict=True))


def _write(
    picture: Image.Image,
    photo: Image.Image | None,
    unedited: Image.Image | None,
    crop: Crop,
    region: Region,
    feather: float,
    job: Job,
    settings: Mapping[str, Any],
) -> None:
    if photo is not None:
        picture = paste_back(photo, picture, crop, unedited, region, feather)
    save_png(picture, job.target, _settings_of(job, settings))


def _ahead(
    workers: "Workers", jobs: list[Job], calls: list[tuple[Any, ...]]
) -> Iterator[tuple[Job, CutOut | Exception]]:
    """The calls' results in order, worked on up to two batches before they are asked for."""
    waiting: deque[tuple[Job, Task]] = deque()
    for job, call in zip(jobs, calls, strict=True):
        waiting.append((job, workers.submit(*call)))
        if len(waiting) > 2 * BATCH:
            yield _answer(*waiting.popleft())
    while waiting:
        yield _answer(*waiting.popleft())


def _answer(job: Job, task: "Task") -> tuple[Job, Any]:
    """The job with its task's result, or with the error: one bad photo must not end a night's work on a folder."""
    try:
        return job, task.result()
    except Exception as error:
        return job, error


def cores() -> int:
    """The processor's cores, shared among the processes that a launcher started on this machine; at least 1."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class Workers:
    """Processes for work on photos, as many as there are `cores`; for a few photos, this process.

    A photo that takes its process with it ends the others in flight, too: each of them is done again in a process of
    its own, and the one that ends this as well fails with PhotoError.
    """

    def __init__(self, photos: int):
        self._few = photos <= FEW
        self._pool = self._start(min(photos, cores()))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _start(self, count: int) -> Executor:
        if self._few:
            return ThreadPoolExecutor(1)
        return ProcessPoolExecutor(count, get_context("spawn"), cv2.setNumThreads, (1,))

    def submit(self, function: Callable, *arguments: Any) -> "Task":
        """Call the function in one of the processes. Arguments and result must be picklable."""
        try:
            future = self._pool.submit(function, *arguments)
        except BrokenProcessPool:
            self._pool = self._start(cores())
            future = self._pool.submit(function, *arguments)
        return Task(self, (function, *arguments), future)

    def alone(self, call: tuple[Any, ...]) -> Any:
        """The result of a call in a process of its own. Raises PhotoError if it ends this process."""
        with self._start(1) as pool:
            try:
                return pool.submit(*call).result()
            except BrokenProcessPool:
                raise PhotoError("This photo ended the process that worked on it; convert or remove it.") from None


@dataclass(frozen=True)
class Task:
    """A call under way in `workers`."""

    workers: Workers
    call: tuple[Any, ...]
    future: Future

    def result(self) -> Any:
        """What the call returns; raises what it raises."""
        try:
            return self.future.result()
        except BrokenProcessPool:
            return self.workers.alone(self.call)


def _identity(path: Path) -> tuple[int, int]:
    """What stays the same however a file is spelled or linked."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
