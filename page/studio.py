"""The models that all pages share, and what each open page holds; nothing here knows of Gradio."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from e4e_core.checkpoints import load_model, registry
from editing import Editor, Session

PREVIEW = 256  # pixels; what follows the hand where full pictures would lag behind it
SLOW = 120  # ms; full pictures that take longer are preceded by previews
MODELS = 3  # models kept in memory; a published one needs more than a gigabyte


@dataclass(frozen=True)
class Visit:
    """One open page: no model, nothing that pages share.

    Attributes:
        model: the name that `session` was opened with.
        session: the photo, None before the first one.
        strengths, fidelity: where the sliders stand.
        view: the open tab, "face", "compare" or "photo".
        before: the aligned crop as the page shows it.
        full: the result at full size; None while it is out of date.
    """

    model: str
    session: Session | None = None
    strengths: Mapping[str, float] = field(default_factory=dict)
    fidelity: float = 1.0
    view: str = "face"
    before: str = ""
    full: Image.Image | None = None


class Studio:
    """The models of this process. All pages share them: an Editor holds nothing about any photo."""

    def __init__(self, name: str, editor: Editor):
        self._editors = {name: editor}  # the one used last is last
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._full_ms: dict[str, float] = {}  # what the last full picture of each model took

    def __contains__(self, name: str) -> bool:
        """Whether a model is loaded."""
        return name in self._editors

    def editor(self, name: str, progress: Callable[[int, int], None] | None = None) -> Editor:
        """The model of this name or path, loaded if need be; `progress` as in `load_model`. Raises E4EError."""
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

    def move(self, visit: Visit, strengths: Mapping[str, float | None], fidelity: float | None) -> Visit:
        """The visit with its sliders elsewhere, within their ranges; None is a number box that is empty."""
        directions = self.editor(visit.model).directions
        within = {
            name: min(max(strength or 0, directions[name].low), directions[name].high)
            for name, strength in strengths.items()
        }
        fidelity = 1.0 if fidelity is None else min(max(fidelity, 0.0), 1.0)
        return replace(visit, strengths=within, fidelity=fidelity, full=None)

    def render(self, visit: Visit, preview: bool = False) -> tuple[Visit, Image.Image, str]:
        """(visit, result, how long it took); a preview only if asked for, and only where full pictures are slow."""
        if visit.full is not None:
            return visit, visit.full, ""
        editor = self.editor(visit.model)
        preview = preview and self._full_ms.get(visit.model, 0) > SLOW and editor.model.resolution > PREVIEW
        start = time.perf_counter()
        picture = editor.render(visit.session, visit.strengths, visit.fidelity, PREVIEW if preview else None)
        took = milliseconds(start)
        if not preview:
            self._full_ms[visit.model] = took
            visit = replace(visit, full=picture)
        return visit, picture, f"{took:.0f} ms"

    def paste(self, visit: Visit, picture: Image.Image) -> Image.Image:
        """The visit's photo with `picture` in it, at full size."""
        return self.editor(visit.model).paste(visit.session, picture)

    def edits(self, visit: Visit) -> str:
        """What the sliders do, in words: "Smile +1.5, Age −1"."""
        directions = self.editor(visit.model).directions
        words = [
            f"{directions[name].label} {value:+g}".replace("-", "−") for name, value in visit.strengths.items() if value
        ]
        words += [f"fidelity {visit.fidelity:g}"] if visit.fidelity < 1 else []
        return ", ".join(words) or "No edits"

    def where(self, name: str) -> str:
        """Which model computes where and how precisely: "demo 128 px · CPU · float32"."""
        model = self.editor(name).model
        device = "CPU" if model.device.type == "cpu" else f"GPU ({model.device})"
        return f"{Path(name).name} {model.resolution} px · {device} · {model.precision}"


def label(name: str) -> str:
    """What people call a model: its label in the registry, or the name of its file."""
    return registry().get(name, {}).get("label") or Path(name).name


def milliseconds(start: float) -> float:
    """Since `start`, a value of time.perf_counter()."""
    return (time.perf_counter() - start) * 1000
