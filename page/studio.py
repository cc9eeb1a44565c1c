"""The models that all pages share, and what each open page holds; nothing here knows of Gradio."""

import gc
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from e4e_core.checkpoints import load_model, registry
from editing import Editor, Session
from errors import ModelError, PhotoError
from page.presets import Edits, edits_within

PREVIEW = 256  # pixels; what follows the hand where full pictures would lag behind it
SLOW = 120  # ms; full pictures that take longer are preceded by previews
MODELS = 3  # models kept in memory; a published one needs more than a gigabyte
STEPS = 100  # edits that can be undone


@dataclass(frozen=True)
class History:
    """The edits of one face at which the sliders came to rest, and which of them is current."""

    steps: tuple[Edits, ...] = (Edits(),)
    at: int = 0

    @property
    def edits(self) -> Edits:
        return self.steps[self.at]

    def rested(self, edits: Edits) -> "History":
        if edits == self.edits:
            return self
        steps = (*self.steps[: self.at + 1], edits)[-STEPS:]
        return History(steps, len(steps) - 1)


@dataclass(frozen=True)
class Visit:
    """One open page: no model, nothing that pages share.

    Attributes:
        model: the name that `session` was opened with.
        session: the photo and the face being edited, None before the first one.
        edits: where the sliders stand.
        history: of this face.
        others: the photo's other edited faces, by number.
        backdrop: the photo with the other faces' edits; None if there are none.
        view: the open tab, "face", "compare" or "photo".
        before: the aligned crop as the page shows it.
        full: the result at full size; None while it is out of date.
        dropped: whether there was a photo, which made room for others.
    """

    model: str
    session: Session | None = None
    edits: Edits = field(default_factory=Edits)
    history: History = field(default_factory=History)
    others: Mapping[int, tuple[Session, History]] = field(default_factory=dict)
    backdrop: Image.Image | None = None
    view: str = "face"
    before: str = ""
    full: Image.Image | None = None
    dropped: bool = False

    def without_photo(self) -> "Visit":
        """What is left when the photo makes room for others: the edits, which wait for a photo again."""
        return Visit(self.model, edits=self.edits, view=self.view, dropped=True)


class Studio:
    """The models of this process. All pages share them: an Editor holds nothing about any photo.

    Args:
        name, editor: the model that pages start with.
        on_gpu: decorates what computes; on a Space with ZeroGPU it runs in a worker process that has the GPU, so
            that arguments and results must be picklable.
        live: whether pictures follow the hand; where every picture is a call on a quota, only resting sliders render.
    """

    def __init__(self, name: str, editor: Editor, on_gpu: Callable = lambda function: function, live: bool = True):
        self._editors = {name: editor}  # the one used last is last
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._full_ms: dict[str, float] = {}  # what the last full picture of each model took
        self.names = tuple(dict.fromkeys([name, *registry()]))
        self.live = live

        # A worker forks: it finds the editors there, but must not wait for a lock that another thread held.
        def encode(name: str, photo: Any, face: int, session: Session | None) -> Session:
            editor = self._editors[name]
            return editor.open(photo, face) if session is None else editor.choose_face(session, face)

        def draw(name: str, session: Session, edits: Edits, size: int | None) -> Image.Image:
            return self._editors[name].render(session, edits.strengths, edits.fidelity, size)

        def lay(name: str, session: Session, picture: Image.Image, fidelity: float) -> Image.Image:
            return self._editors[name].paste(session, picture, fidelity)

        self._encode, self._draw, self._lay = on_gpu(encode), on_gpu(draw), on_gpu(lay)

    def __contains__(self, name: str) -> bool:
        """Whether a model is loaded."""
        return name in self.names and name in self._editors

    def editor(self, name: str, progress: Callable[[int, int], None] | None = None) -> Editor:
        """One of the models offered, loaded if need be; `progress` as in `load_model`. Raises E4EError."""
        if name not in self.names:  # never a path that somebody sends
            raise ModelError("This page does not offer that model; choose one from its list.")
        with self._lock:
            if name in self._editors:
                self._editors[name] = self._editors.pop(name)
                return self._editors[name]
        with self._loading:  # for minutes, perhaps; the pages of other models go on
            if name not in self._editors:
                loaded = Editor(load_model(name, progress=progress))
                with self._lock:
                    self._editors[name] = loaded
                    while len(self._editors) > MODELS:
                        self._editors.pop(next(iter(self._editors)))
            return self._editors[name]

    def open(self, visit: Visit, photo: Any, face: int = 0) -> Visit:
        """The visit with a new photo, unedited; edits made before the first photo act on it. Raises E4EError."""
        self.editor(visit.model)
        session = self._encode(visit.model, photo, face, None)
        edits = visit.edits if visit.session is None else Edits()
        return Visit(visit.model, session, edits, History().rested(edits), view=visit.view)

    def choose_face(self, visit: Visit, face: int) -> Visit:
        """Another face of the photo, with its own edits; those of the faces before it stay in the photo."""
        self.editor(visit.model)
        others = dict(visit.others)
        others[visit.session.face] = (visit.session, visit.history.rested(visit.edits))
        if face in others:
            session, history = others.pop(face)
        else:
            session, history = self._encode(visit.model, None, face, visit.session), History()
        others = {number: other for number, other in others.items() if other[1].edits}
        backdrop = None
        for other, past in others.values():
            picture = self._draw(visit.model, other, past.edits, None)
            photo = backdrop or other.photo
            backdrop = self._lay(visit.model, replace(other, photo=photo), picture, past.edits.fidelity)
        changed = {"session": session, "history": history, "edits": history.edits, "others": others}
        return replace(visit, **changed, backdrop=backdrop, full=None)

    def move(self, visit: Visit, strengths: Mapping[str, Any], fidelity: Any, rest: bool) -> Visit:
        """The visit with its sliders elsewhere; `rest` makes that a step which can be undone."""
        edits = edits_within(self.editor(visit.model).directions, strengths, fidelity)
        return self.edited(visit, edits) if rest else replace(visit, edits=edits, full=None)

    def edited(self, visit: Visit, edits: Edits) -> Visit:
        """The visit with other edits, as a step which can be undone."""
        history = visit.history.rested(edits)
        return replace(visit, edits=edits, history=history, full=visit.full if edits == visit.edits else None)

    def step(self, visit: Visit, by: int) -> Visit | None:
        """One step back (by = -1) or forth again (1); None if there is none."""
        history = visit.history.rested(visit.edits)
        at = history.at + by
        if not 0 <= at < len(history.steps):
            return None
        return replace(visit, edits=history.steps[at], history=History(history.steps, at), full=None)

    def render(self, visit: Visit, preview: bool = False) -> tuple[Visit, Image.Image, str]:
        """(visit, result, how long it took); a preview only if asked for, and only where full pictures are slow."""
        if visit.full is not None:
            return visit, visit.full, ""
        editor = self.editor(visit.model)
        preview = preview and self._full_ms.get(visit.model, 0) > SLOW and editor.model.resolution > PREVIEW
        start = time.perf_counter()
        picture = self._draw(visit.model, visit.session, visit.edits, PREVIEW if preview else None)
        took = milliseconds(start)
        if not preview:
            self._full_ms[visit.model] = took
            visit = replace(visit, full=picture)
        return visit, picture, f"{took:.0f} ms"

    def paste(self, visit: Visit, picture: Image.Image) -> Image.Image:
        """The visit's photo with `picture` in it, and all its other edited faces, at full size."""
        self.editor(visit.model)
        session = visit.session if visit.backdrop is None else replace(visit.session, photo=visit.backdrop)
        return self._lay(visit.model, session, picture, visit.edits.fidelity)

    def grid(self, visit: Visit) -> Image.Image:
        """Every slider at its lower end, at 0 and at its upper end, added to the edits as they stand."""
        editor = self.editor(visit.model)
        if not editor.directions:
            raise PhotoError("This model comes without sliders, so there is no grid; choose another model.")
        side = min(PREVIEW, editor.model.resolution)
        font = ImageFont.load_default(18)
        wide = max(round(font.getlength(direction.label)) for direction in editor.directions.values()) + 32
        rows = []
        for name, direction in editor.directions.items():
            ends = [{**visit.edits.strengths, name: value} for value in (direction.low, 0, direction.high)]
            edits = [Edits(strengths, visit.edits.fidelity) for strengths in ends]
            pictures = [self._draw(visit.model, visit.session, each, side) for each in edits]
            size = [PREVIEW * n // max(pictures[0].size) for n in pictures[0].size]
            rows.append((direction, [picture.resize(size) for picture in pictures]))
        height = max(picture.height for _, pictures in rows for picture in pictures)
        sheet = Image.new("RGB", (wide + 3 * PREVIEW, 40 + height * len(rows)), "white")
        draw = ImageDraw.Draw(sheet)
        for column, sign in enumerate("−0+"):
            draw.text((wide + PREVIEW * (column + 0.5), 20), sign, "black", font, anchor="mm")
        for row, (direction, pictures) in enumerate(rows):
            draw.text((16, 40 + height * (row + 0.5)), direction.label, "black", font, anchor="lm")
            for column, picture in enumerate(pictures):
                sheet.paste(picture, (wide + PREVIEW * column, 40 + height * row))
        return sheet

    def free_memory(self) -> None:
        """Give back what only makes the next picture faster; not within an `except`, whose frames hold more."""
        for editor in list(self._editors.values()):
            editor.renderer.forget_all()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def settings(self, visit: Visit) -> dict[str, Any]:
        """What a file says about how it was made, as JSON values; `page.presets.read_settings` reads it again."""
        settings = {"model": Path(visit.model).name, **visit.edits.plain()}
        if visit.session is not None and len(visit.session.faces) > 1:
            settings["face"] = visit.session.face
            settings["others"] = {str(face): past.edits.plain() for face, (_, past) in visit.others.items()}
        return settings

    def words(self, visit: Visit) -> str:
        """What the sliders do, in words: "Smile +1.5, Age −1"."""
        directions = self.editor(visit.model).directions
        words = [
            f"{directions[name].label} {value:+g}".replace("-", "−") for name, value in visit.edits.strengths.items()
        ]
        words += [f"fidelity {visit.edits.fidelity:g}"] if visit.edits.fidelity < 1 else []
        return ", ".join(words) or "No edits"

    def where(self, name: str) -> str:
        """Which model computes where and how precisely: "demo 128 px · CPU · float32"."""
        model = self.editor(name).model
        device = "CPU" if model.device.type == "cpu" else f"GPU ({model.device})"
        return f"{Path(name).name} {model.resolution} px · {device} · {model.precision}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is one of the ways in which Python, PyTorch and OpenCV say that there is no memory left."""
    words = ("out of memory", "can't allocate memory", "insufficient memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)


def label(name: str) -> str:
    """What people call a model: its label in the registry, or the name of its file."""
    return registry().get(name, {}).get("label") or Path(name).name


def milliseconds(start: float) -> float:
    """Since `start`, a value of time.perf_counter()."""
    return (time.perf_counter() - start) * 1000
