"""The models that all pages share, and what each open page holds; nothing here knows of Gradio."""

import contextlib
import ctypes
import gc
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from PIL import Image
from torch import Tensor

from e4e_core.checkpoints import load_model, registry
from editing import Direction, DirectionSet, Editor, Session, text
from editing.refine import Progress, Refinement, refine_codes, tune_generator
from editing.unsupervised import ganspace, sefa
from errors import ModelError
from page.presets import Edits, edits_within

PREVIEW = 256  # pixels; what follows the hand where full pictures would lag behind it
SLOW = 120  # ms; full pictures that take longer are preceded by previews
LATE = 400  # ms; previews that would take longer have half the side
MODELS = 3  # models kept in memory; a published one needs more than a gigabyte
METHODS = {"GANSpace": ganspace, "SeFa": sefa}
COMPONENTS = 40  # of each method
KEPT = 8  # sets of components kept for all pages; the largest takes 1.5 MB
THUMB = 128  # pixels of a thumbnail
STEPS = 100  # edits that can be undone
SHOWN = 8  # of them as pictures
SMALL = 96  # pixels of such a picture
TUNED_BYTES = 2 * 2**30  # of all tuned generators together, each of which goes with its page
LENT_SECONDS = 12  # a refinement may take on a GPU that is lent by the call
LENT_PICTURES = 16  # of a film or grid in one such call


@dataclass(frozen=True)
class Look:
    """What is looked at of a model's components: by which method, on layers first … end, as far as `reach`."""

    method: str
    layers: tuple[int, int]
    reach: float


@dataclass(frozen=True)
class History:
    """The edits of one face at which the sliders came to rest, which of them is current, and how each looked.

    `thumbs` are small pictures as data URLs, one for each step; "" is one that was never drawn.
    """

    steps: tuple[Edits, ...] = (Edits(),)
    at: int = 0
    thumbs: tuple[str, ...] = ("",)

    @property
    def edits(self) -> Edits:
        return self.steps[self.at]

    @property
    def window(self) -> range:
        """The steps to show: the last ones, or those from the current one on."""
        first = min(max(0, len(self.steps) - SHOWN), self.at)
        return range(first, min(first + SHOWN, len(self.steps)))

    def rested(self, edits: Edits) -> "History":
        if edits == self.edits:
            return self
        steps = (*self.steps[: self.at + 1], edits)[-STEPS:]
        return History(steps, len(steps) - 1, (*self.thumbs[: self.at + 1], "")[-STEPS:])

    def drawn(self, thumb: str) -> "History":
        """With the picture of the current step."""
        return replace(self, thumbs=(*self.thumbs[: self.at], thumb, *self.thumbs[self.at + 1 :]))


@dataclass(frozen=True)
class Visit:
    """One open page: no model, nothing that pages share.

    Attributes:
        model: the name that `session` was opened with.
        session: the photo and the face being edited, None before the first one.
        edits: where the sliders stand.
        history: of this face.
        others: the photo's other faces that were opened, by number.
        backdrop: the photo with the other faces' edits; None if there are none.
        second: the photo that is mixed in, None if there is none.
        own: the directions this visit has kept for itself, by model.
        view: the open tab, "face", "compare" or "photo".
        before: the aligned crop as the page shows it.
        full: the result at full size; None while it is out of date.
        opened: when a photo was last chosen, by time.perf_counter().
        dropped: whether there was a photo, which made room for others or went when the page was cut off.
        face: while there is no photo, of which of its faces `edits` are.
        waiting: the edits of its other faces, by number.
        set_at: when something else than a hand last set the sliders, as text.
    """

    model: str
    session: Session | None = None
    edits: Edits = field(default_factory=Edits)
    history: History = field(default_factory=History)
    others: Mapping[int, tuple[Session, History]] = field(default_factory=dict)
    backdrop: Image.Image | None = None
    second: Session | None = None
    own: Mapping[str, DirectionSet] = field(default_factory=dict)
    view: str = "face"
    before: str = ""
    full: Image.Image | None = None
    opened: float = 0.0
    dropped: bool = False
    face: int = 0
    waiting: Mapping[int, Edits] = field(default_factory=dict)
    set_at: str = ""

    @property
    def photos(self) -> int:
        """How many photos it holds."""
        return (self.session is not None) + (self.second is not None)

    def without_photo(self) -> "Visit":
        """What is left when its photos make room for others: sliders and edits, which wait for a photo again."""
        face = self.session.face if self.session else self.face
        waiting = {**self.waiting, **{other: history.edits for other, (_, history) in self.others.items()}}
        kept = {"edits": self.edits, "face": face, "waiting": waiting, "own": self.own, "view": self.view}
        return Visit(self.model, **kept, dropped=True, set_at=self.set_at)


class Studio:
    """The models of this process. All pages share them: an Editor holds nothing about any photo.

    Args:
        name, editor: the model that pages start with.
        on_gpu: decorates what computes; on a Space with ZeroGPU it runs in a worker process that has the GPU, so
            that arguments and results must be picklable.
        live: whether pictures follow the hand; where every picture is a call on a quota, only resting sliders render.
    """

    def __init__(self, name: str, editor: Editor, on_gpu: Callable = lambda function: function, live: bool = True):
        self._editors = OrderedDict({name: editor})  # the one used last is last
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._drawing = threading.Lock()  # one picture at a time, that which follows a hand among them
        self._full_ms: dict[str, float] = {}  # what the last full picture of each model took
        self._preview_ms: dict[str, float] = {}  # what a preview of PREVIEW pixels would take now
        self.names = tuple(dict.fromkeys([name, *registry()]))
        self.live = live

        self._found: dict[tuple, DirectionSet] = {}  # components, those found last are last
        self._clip: text.Clip | None = None  # loaded when somebody first describes a slider
        self._tuned = WeakSet()
        for each in (self._encode, self._draw, self._lay, self._find, self._thumbs, self._refine, self._describe):
            setattr(self, each.__name__, on_gpu(each))

    def __contains__(self, name: str) -> bool:
        """Whether a model is loaded."""
        return name in self.names and name in self._editors

    def editor(self, name: str, progress: Callable[[int, int], None] | None = None) -> Editor:
        """One of the models offered, loaded if need be; `progress` as in `load_model`. Raises E4EError."""
        if name not in self.names:  # never a path that somebody sends
            raise ModelError("This page does not offer that model; choose one from its list.")
        with self._lock:
            if name in self._editors and not (progress and self._editors[name].notice):
                self._editors.move_to_end(name)  # others read it meanwhile, without the lock
                return self._editors[name]
        with self._loading:  # for minutes, perhaps; the pages of other models go on
            there = self._editors.get(name)
            if there is None or (progress and there.notice):  # its sliders may be there by now
                loaded = Editor(there.model if there else load_model(name, progress=progress))
                with self._lock:
                    self._editors[name] = loaded
                    while len(self._editors) > MODELS:
                        self._editors.popitem(last=False)
            return self._editors[name]

    def open(self, visit: Visit, photo: Any, face: int = 0) -> Visit:
        """The visit with a new photo, unedited. Raises E4EError.

        Edits made before the first photo act on it, and those of a photo that was dropped, each on its face.
        """
        self.editor(visit.model)
        session = self._encode(visit.model, photo, face, None)
        waiting = {} if visit.session else {**visit.waiting, visit.face: visit.edits}
        edits = waiting.pop(face, Edits())
        history = History().rested(edits)
        kept = {"waiting": waiting, "second": visit.second, "own": visit.own, "view": visit.view}
        return Visit(visit.model, session, edits, history, **kept)

    def choose_face(self, visit: Visit, face: int) -> Visit:
        """Another face of the photo, with its own edits; those of the faces before it stay in the photo."""
        self.editor(visit.model)
        others = dict(visit.others)
        others[visit.session.face] = (visit.session, visit.history.rested(visit.edits))
        if face in others:
            session, history = others.pop(face)
        else:
            session = self._encode(visit.model, None, face, visit.session)
            history = History().rested(visit.waiting.get(face, Edits()))
        changed = {"session": session, "history": history, "edits": history.edits, "others": others}
        return self.with_backdrop(replace(visit, **changed, full=None))

    def refine(
        self, visit: Visit, tune: bool, seconds: float, progress: Progress, cancelled: Callable[[], bool]
    ) -> Refinement:
        """`refine_codes`, or `tune_generator`, for the visit's session; the visit itself stays as it is.

        Where a GPU is lent by the call, nobody is told of the progress, and cancelling waits for the end.
        Raises: ModelError if the tuned generators of all pages have used up their memory.
        """
        self.editor(visit.model)
        if tune and sum(p.nbytes for generator in self._tuned for p in generator.parameters()) > TUNED_BYTES:
            raise ModelError("Too many photos are being refined this far here; use Refine, or try again later.")
        watch = (progress, cancelled) if self.live else ()
        seconds = seconds if self.live else min(seconds, LENT_SECONDS)
        refined = self._refine(visit.model, visit.session, tune, seconds, *watch)
        if refined.session.generator is not None:
            self._tuned.add(refined.session.generator)
        return refined

    def refined(self, visit: Visit, session: Session | None = None) -> Visit:
        """The visit with a refined session, or with the encoder's answer again (None)."""
        self.editor(visit.model)
        session = session or self._encode(visit.model, None, visit.session.face, visit.session)
        return replace(visit, session=session, full=None)

    def open_second(self, visit: Visit, photo: Any) -> Visit:
        """The visit with the best face of another photo to mix in, or with none (None). Raises E4EError."""
        self.editor(visit.model)
        second = None if photo is None else self._encode(visit.model, photo, 0, None)
        return self.with_backdrop(replace(visit, second=second, full=None))

    def with_backdrop(self, visit: Visit) -> Visit:
        """The visit with its other faces' edits in its photo."""
        backdrop = None
        for other, past in visit.others.values():
            if not past.edits:
                continue
            picture = self.draw(visit, past.edits, session=other)
            other = replace(other, photo=backdrop or other.photo)
            backdrop = self._lay(visit.model, other, [picture], [past.edits])[0]
        return replace(visit, backdrop=backdrop)

    def directions(self, visit: Visit) -> DirectionSet:
        """The sliders of a visit: its model's, then its own."""
        directions = self.editor(visit.model).directions
        own = visit.own.get(visit.model)
        return DirectionSet({**directions, **own}) if own else directions

    def draw(self, visit: Visit, edits: Edits, size: int | None = None, session: Session | None = None) -> Image.Image:
        """What the visit's model makes of its face, or of another `session`, with these edits."""
        self.editor(visit.model)
        session = session or visit.session
        with self._drawing:
            return self._draw(visit.model, visit.own.get(visit.model), session, visit.second, [edits], size)[0]

    def draw_all(
        self, visit: Visit, steps: Sequence[Edits], size: int | None, whole: bool = False
    ) -> Iterator[Image.Image]:
        """`draw` for each of the steps, with `whole` in the photo; several of them in one call where a GPU is lent."""
        at_once = 1 if self.live else LENT_PICTURES
        for start in range(0, len(steps), at_once):
            self.editor(visit.model)  # a film takes its time, in which others may have needed the room
            some = steps[start : start + at_once]
            with self._drawing:
                pictures = self._draw(visit.model, visit.own.get(visit.model), visit.session, visit.second, some, size)
            yield from self._lay(visit.model, self._in_backdrop(visit), pictures, some) if whole else pictures

    def components(self, visit: Visit, look: Look) -> DirectionSet:
        """The model's components by one method, on these layers; strengths are standard deviations."""
        model = self.editor(visit.model).model
        # GANSpace's axes are of the whole model, SeFa's of the layers they are for.
        layers = look.layers if look.method == "SeFa" else (0, model.num_layers)
        key = (visit.model, look.method, layers)
        found = self._found.pop(key, None) or self._find(*key)
        self._found[key] = found
        while len(self._found) > KEPT:
            self._found.pop(next(iter(self._found)), None)
        row = torch.arange(model.num_layers)[:, None]  # [L, 1]
        there = (row >= look.layers[0]) & (row < look.layers[1])
        return DirectionSet({name: replace(each, vectors=each.vectors * there) for name, each in found.items()})

    def explore(self, visit: Visit, look: Look, numbers: Sequence[int]) -> list[Image.Image]:
        """Three pictures of each component: at −reach, 0 and reach, on the visit's face or else on the mean one."""
        found = [*self.components(visit, look).values()]
        there = [found[at] for at in numbers if at < len(found)]
        return self.ends(visit, [replace(each, low=-look.reach, high=look.reach) for each in there])

    def ends(self, visit: Visit, directions: Sequence[Direction]) -> list[Image.Image]:
        """Three pictures of each: at its lower end, at 0 and at its upper end, on the visit's face or the mean one."""
        self.editor(visit.model)
        steps = [at * each.vectors for each in directions for at in (each.low, 0, each.high)]
        own = visit.own.get(visit.model)
        return self._thumbs(visit.model, own, visit.session, visit.second, visit.edits, steps)

    def describe(
        self,
        visit: Visit,
        words: Sequence[str],
        loading: Callable[[int, int], None],
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Direction | None:
        """`editing.text.describe` for (target, neutral) with the visit's model; one call at a time.

        Args: loading: called with bytes, as in `load_model`, while CLIP's weights are fetched.
        Where a GPU is lent by the call, nobody is told of the progress, and cancelling waits for the end.
        """
        editor, words = self.editor(visit.model), text.as_descriptions(*words)
        if self._clip is None:
            self._clip = text.load_clip(editor.model.device, loading)
        return self._describe(visit.model, words, *((progress, cancelled) if self.live else ()))

    def move(self, visit: Visit, sent: Mapping[str, Any], rest: bool) -> Visit:
        """The visit with its sliders elsewhere, see `edits_within`; `rest` makes that a step which can be undone."""
        edits = edits_within(self.directions(visit), sent)
        return self._with(visit, edits, visit.history.rested(edits) if rest else visit.history)

    def edited(self, visit: Visit, edits: Edits) -> Visit:
        """The visit with other edits, as a step which can be undone, after where the hand had left the sliders."""
        return self._with(visit, edits, visit.history.rested(visit.edits).rested(edits))

    def _with(self, visit: Visit, edits: Edits, history: History) -> Visit:
        return replace(visit, edits=edits, history=history, full=visit.full if edits == visit.edits else None)

    def step(self, visit: Visit, by: int) -> Visit | None:
        """One step back (by = -1) or forth again (1); None if there is none."""
        history = visit.history.rested(visit.edits)
        at = history.at + by
        return self.go(replace(visit, history=history), at) if 0 <= at < len(history.steps) else None

    def go(self, visit: Visit, at: int) -> Visit:
        """To one of the steps of the history; where the hand had left the sliders becomes one, if it is none yet."""
        if visit.edits != visit.history.edits:
            return self.edited(visit, visit.history.steps[at])
        return replace(visit, edits=visit.history.steps[at], history=replace(visit.history, at=at), full=None)

    def render(self, visit: Visit, preview: bool = False) -> tuple[Visit, Image.Image, str]:
        """(visit, result, how long it took); a preview only if asked for, and only where full pictures are slow."""
        if visit.full is not None:
            return visit, visit.full, ""
        editor = self.editor(visit.model)
        preview = preview and self._full_ms.get(visit.model, 0) > SLOW and editor.model.resolution > PREVIEW
        halvings = int(self._preview_ms.get(visit.model, 0) > LATE)
        start = time.perf_counter()
        picture = self.draw(visit, visit.edits, PREVIEW >> halvings if preview else None)
        took = milliseconds(start)
        if preview:
            self._preview_ms[visit.model] = took * 2**halvings  # 1.7 times was measured: on the safe side
        else:
            self._full_ms[visit.model] = took
            visit = replace(visit, full=picture)
        return visit, picture, f"{took:.0f} ms"

    def paste(self, visit: Visit, picture: Image.Image) -> Image.Image:
        """The visit's photo with `picture` in it, and all its other edited faces, at full size."""
        self.editor(visit.model)
        return self._lay(visit.model, self._in_backdrop(visit), [picture], [visit.edits])[0]

    def _in_backdrop(self, visit: Visit) -> Session:
        """The visit's session with the other faces' edits in its photo."""
        return visit.session if visit.backdrop is None else replace(visit.session, photo=visit.backdrop)

    def free_memory(self) -> None:
        """Give back what only makes the next picture faster; not within an `except`, whose frames hold more."""
        for editor in list(self._editors.values()):
            editor.forget_all()
        gc.collect()
        give_back()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def settings(self, visit: Visit) -> dict[str, Any]:
        """What a file says about how it was made, as JSON values; `page.presets.read_settings` reads it again."""
        settings = {"model": Path(visit.model).name, **visit.edits.plain()}
        if visit.session is not None and len(visit.session.faces) > 1:
            settings["face"] = visit.session.face
            settings["others"] = {str(face): past.edits.plain() for face, (_, past) in visit.others.items()}
        return settings

    def words(self, visit: Visit, edits: Edits | None = None) -> str:
        """What the sliders do, in words: "Smile +1.5, Age −1"; of the current edits, or of others."""
        directions, edits = self.directions(visit), visit.edits if edits is None else edits
        moved = {directions[name].label: value for name, value in edits.strengths.items() if name in directions}
        words = [f"{label} {f'{value:+g}'.replace('-', '−')}" for label, value in moved.items()]
        words += [f"fidelity {edits.fidelity:g}"] if edits.fidelity < 1 else []
        if visit.second is not None:
            words += [f"{part} {amount:g}" for part, amount in asdict(edits.mix).items() if amount]
        kept = [directions[name].label for name in edits.keep if name in directions]
        words += [f"{' and '.join(kept)} kept"] if kept and words else []
        words += [f"{edits.region} only"] if edits.region != "everything" else []
        return ", ".join(words) or "No edits"

    def where(self, name: str) -> str:
        """Which model computes where and how precisely: "demo 128 px · CPU · float32"."""
        model = self.editor(name).model
        device = "CPU" if model.device.type == "cpu" else f"GPU ({model.device})"
        return f"{Path(name).name} {model.resolution} px · {device} · {model.precision}"

    # What computes: perhaps in a worker that forks, which finds the editors there, but must not wait for a lock that
    # another thread held.

    def _encode(self, name: str, photo: Any, face: int, session: Session | None) -> Session:
        editor = self._editors[name]
        return editor.open(photo, face) if session is None else editor.choose_face(session, face)

    def _draw(
        self,
        name: str,
        own: DirectionSet | None,
        session: Session,
        second: Session | None,
        steps: Sequence[Edits],
        size: int | None,
    ) -> list[Image.Image]:
        pictures = []
        for edits in steps:
            editor, strengths = self._ready(name, own, edits)
            pictures.append(editor.render(session, strengths, edits.fidelity, size, second, edits.mix))
        return pictures

    def _ready(self, name: str, own: DirectionSet | None, edits: Edits) -> tuple[Editor, Mapping[str, float]]:
        """The editor with the visit's sliders, and the strengths of those that are there.

        Those of the visit's own only as far as they go now.
        """
        editor = self._editors[name]
        theirs = {key: strength for key, strength in edits.strengths.items() if key in editor.directions}
        strengths = {**theirs, **edits_within(own or {}, {"strengths": edits.strengths}).strengths}
        if own or edits.keep:
            directions = DirectionSet({**editor.directions, **(own or {})})
            editor = editor.with_directions(directions.keeping([key for key in edits.keep if key in directions]))
        return editor, strengths

    def _lay(
        self, name: str, session: Session, pictures: Sequence[Image.Image], steps: Sequence[Edits]
    ) -> list[Image.Image]:
        editor = self._editors[name]
        return [
            editor.paste(session, picture, edits.fidelity, edits.region, edits.feather)
            for picture, edits in zip(pictures, steps, strict=True)
        ]

    def _find(self, name: str, method: str, layers: tuple[int, int]) -> DirectionSet:
        return METHODS[method](self._editors[name].model, COMPONENTS, layers)

    def _thumbs(
        self,
        name: str,
        own: DirectionSet | None,
        session: Session | None,
        second: Session | None,
        edits: Edits,
        steps: list[Tensor],
    ) -> list[Image.Image]:
        editor, strengths = self._ready(name, own, edits)
        codes = editor.model.latent_avg[None].cpu().float()  # [1, L, D], a mean face
        if session is not None:
            codes = editor.codes(session, strengths, edits.fidelity, second, edits.mix)
        return [editor.picture(codes + step, min(THUMB, editor.model.resolution), session) for step in steps]

    def _refine(self, name: str, session: Session, tune: bool, seconds: float, *watch: Callable) -> Refinement:
        improve = tune_generator if tune else refine_codes
        return improve(self._editors[name], session, *watch, seconds=seconds)

    def _describe(self, name: str, words: Sequence[str], *watch: Callable) -> Direction | None:
        target, neutral = words
        return text.describe(self._editors[name], self._clip, target, neutral, text.CHANNELS, *watch)


def give_back() -> None:
    """Return freed memory to the system, where glibc keeps it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


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
