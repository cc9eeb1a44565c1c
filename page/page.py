"""What the page does: every event, and what it changes. The work is `page.studio`'s and `editing`'s."""

import base64
import functools
import html
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from editing import Session
from editing.export import save_png
from errors import E4EError, PhotoError
from limits import limit
from page.api import offer
from page.layout import Layout
from page.parts import (
    FIELD,
    LONGEST,
    as_value,
    data_url,
    direction_slider,
    fidelity_slider,
    smaller,
    status_line,
    zeros,
)
from page.presets import Edits, built_in, edits_within, keep, own, read_settings
from page.studio import Visit, is_out_of_memory, label, milliseconds

VIEWS = ("face", "compare", "photo")  # the tabs, in order
FAILED = "Something went wrong here; try again, and reload the page if it happens again."
GONE = "There is no photo here, or its page was disconnected; choose one first."
FULL = "The memory of this machine does not suffice for that; try again, or take a smaller photo."
NONE_YET = "Choose a photo first; the sliders will act on it."
DROPPED = "Others needed the room, so your photo is not kept any more; choose it again and your edits will act on it."

# All handlers that compute share one queue: one frame at a time, in the order of the events.
RENDERING = {"concurrency_id": "rendering", "concurrency_limit": 1}
# Pictures travel as data URLs, which Gradio need not convert and never writes to disk.
RAW = {"preprocess": False, "postprocess": False, "api_visibility": "private"}

log = logging.getLogger("e4e")


def uploaded(file: Any, folder: str) -> Path | io.BytesIO:
    """What a field sends: a file that Gradio has stored in its `folder`, or a data URL.

    Gradio does not check the path for handlers without preprocessing: any other file of this machine is refused here.
    """
    try:
        url = file.get("url") or ""
        if url.startswith("data:"):
            return io.BytesIO(base64.b64decode(url.partition(",")[2]))
        path = Path(file["path"])
        if path.resolve().is_relative_to(Path(folder).resolve()):
            return path
    except (AttributeError, KeyError, TypeError, ValueError, OSError):  # what no browser sends
        pass
    raise PhotoError("What the browser sent is not a file it uploaded; choose the file again.")


class Page(Layout):
    """One gr.Blocks with its handlers. A handler returns {component: value}; components it leaves out stay as is."""

    def _lay_out_bank(self, name: str) -> None:
        """The sliders of one model, made anew when another is chosen."""
        editor = self.studio.editor(name)
        groups: dict[str, list[str]] = {}
        for key, direction in editor.directions.items():
            groups.setdefault(direction.group, []).append(key)
        sliders: dict[str, gr.Slider] = {}
        with gr.Column(elem_id="sliders"):
            for group, keys in groups.items():
                with gr.Accordion(group, open=not sliders or len(editor.directions) <= 12, elem_classes="group"):
                    sliders |= {key: direction_slider(key, editor.directions[key]) for key in keys}
            gr.HTML(f"<style>{zeros(editor.directions)}</style>", elem_id="zeros")
            if not sliders:
                gr.HTML(f"<p>{html.escape(editor.notice or 'This model comes without sliders.')}</p>")
            fidelity = fidelity_slider()

        def move(rest: bool, visit: Visit, fidelity: Any, *values: Any) -> dict:
            return self.move(name, rest, visit, fidelity, dict(zip(sliders, values, strict=True)))

        bank = [fidelity, *sliders.values()]
        # One handler for them all: one frame is under way at most, and the next takes the values of its own moment.
        gr.on(
            [event for slider in bank for event in (slider.input, slider.release)] + [self.settle.click],
            self._in_sentences(move),
            [self.rest, self.visit, *bank],
            [self.visit, *self.pictures, self.status, self.undo, self.redo],
            js="(rest, ...others) => [window.slidersRest(), ...others]",
            trigger_mode="always_last",
            show_progress="hidden",
            **RENDERING,
            **RAW,
        )
        self.levels.change(fn=None, inputs=self.levels, outputs=bank, js=f"window.levelsFor({json.dumps([*sliders])})")

    @property
    def pictures(self) -> list[gr.components.Component]:
        return [self.face, self.compare, self.whole]

    def _wire(self) -> None:
        shown = [self.visit, *self.pictures, self.status, self.undo, self.redo]
        edited = [*shown, self.levels]
        opened = [*edited, self.photo, self.faces, self.crop, self.face_part, self.crop_part]
        opened += [self.welcome, self.workspace]
        handle = self._in_sentences
        work = {"show_progress": "minimal", "show_progress_on": [self.status], **RENDERING, **RAW}
        quietly = {"show_progress": "hidden", **RENDERING, **RAW}

        self.photo.input(handle(self.open_photo), [self.photo, self.visit], opened, **work)
        self.examples.click(handle(self.open_example), [self.examples, self.visit], opened, **work)
        self.faces.select(handle(self.choose_face), [self.visit], opened, **work)
        self.tabs.select(handle(self.change_view), [self.visit], shown, trigger_mode="always_last", **quietly)
        self.divider.input(
            fn=None,
            inputs=self.divider,
            outputs=self.compare,
            js="side => ({__type__: 'update', slider_position: {Before: 100, Both: 50, After: 0}[side]})",
        )
        # A click that comes while its predecessor is under way must not get lost: two undos are two steps.
        steps = {"trigger_mode": "multiple", **quietly}
        self.undo.click(handle(self.step_back), [self.visit], edited, **steps)
        self.redo.click(handle(self.step_forth), [self.visit], edited, **steps)
        self.reset.click(handle(self.reset_all), [self.visit], edited, **steps)

        self.presets.click(handle(self.apply_preset), [self.presets, self.kept, self.visit], edited, **quietly)
        for button, change in ((self.keep, self.keep_preset), (self.drop, self.drop_preset)):
            inputs = [self.preset_name, self.kept, self.visit]
            button.click(handle(change), inputs, [self.kept, self.presets, self.preset_name, self.status], **quietly)
        self.blocks.load(handle(self.list_presets), [self.kept, self.visit], [self.presets, self.status], **quietly)
        self.load_settings.upload(handle(self.apply_settings), [self.load_settings, self.visit], edited, **quietly)

        # Loading can take minutes and has a queue of its own, so that nobody else's sliders wait for it.
        self.picker.input(
            handle(self.load_model),
            [self.picker],
            [self.status],
            concurrency_id="loading",
            concurrency_limit=1,
            show_progress_on=[self.status],
            **RAW,
        ).then(
            handle(self.change_model),
            [self.picker, self.visit, self.kept],
            [*opened, self.bank, self.picker, self.presets],
            **work,
        )
        for button, save in (
            (self.save_face, self.download_face),
            (self.save_photo, self.download_photo),
            (self.save_grid, self.download_grid),
            (self.save_settings, self.download_settings),
        ):
            button.click(handle(save), [self.visit], [self.visit, self.file, self.status], **work).success(
                fn=None, js="() => window.downloadReady()"
            )
        self.blocks.unload(self.forget)
        offer(self.studio, self.start)

    def _in_sentences(self, handler: Callable[..., dict]) -> Callable[..., dict]:
        """The handler with its errors as sentences: in the status line and, so that nobody misses it, in a notice."""

        @functools.wraps(handler)
        def wrapped(*inputs, **named):
            try:
                return handler(*inputs, **named)
            except E4EError as error:
                sentence = str(error)
            except Exception as error:
                log.exception("A handler of the page failed.")
                sentence = FULL if is_out_of_memory(error) else FAILED
            if sentence is FULL:
                self.studio.free_memory()
            gr.Warning(html.escape(sentence, quote=False), title="Not done")
            return {self.status: status_line(sentence)}

        return wrapped

    # Photos and faces

    def open_photo(self, file: dict[str, Any] | None, visit: Visit) -> dict:
        """A new photo; one without a face leaves everything as it was, the photo field included."""
        if file is None:
            return gr.skip()
        source = uploaded(file, self.photo.GRADIO_CACHE)
        try:
            return self._open(visit, source)
        except PhotoError as error:
            if visit.session is None:
                raise
            gr.Warning(html.escape(str(error), quote=False), title="Not done")
            text = f"{error} The photo before it is still here."
            return {self.photo: self._in_field(visit.session), self.status: status_line(text)}
        finally:
            if str(source) in self.blocks.upload_file_set:  # it is in memory now, nobody needs it on disk
                Path(source).unlink(missing_ok=True)

    def open_example(self, index: Any, visit: Visit) -> dict:
        return self._open(visit, _chosen(self.example_files, index))

    def _in_field(self, session: Session) -> dict[str, Any]:
        return as_value(data_url(smaller(session.photo, FIELD)))

    def _open(self, visit: Visit, source: Path | io.BytesIO | Image.Image) -> dict:
        start = time.perf_counter()
        self._make_room()
        visit = self.studio.open(visit, source)
        count = len(visit.session.faces)
        found = {0: "", 1: "Found a face."}.get(count, f"Found {count} faces; choose among them below the photo.")
        return self._opened(visit, f"{found} Opened in {milliseconds(start):.0f} ms.".strip())

    def _opened(self, visit: Visit, text: str) -> dict:
        """Everything on the page that depends on the photo."""
        session = visit.session
        faces = [smaller(session.photo.crop(tuple(map(round, face.box))), 160) for face in session.faces]
        before = data_url(session.picture)
        several = len(faces) > 1
        return {
            **self._edited(replace(visit, before=before), text),
            self.photo: self._in_field(session),
            self.crop: as_value(before),
            self.crop_part: gr.Column(visible=True),
            self.faces: [{"image": as_value(data_url(face)), "caption": None} for face in faces] if several else [],
            self.face_part: gr.Column(visible=several),
            self.welcome: gr.Column(visible=False),
            self.workspace: gr.Column(visible=True),
        }

    def choose_face(self, visit: Visit, event: gr.SelectData) -> dict:
        if visit.session is None or event.index == visit.session.face:
            return gr.skip()
        face = _number_of(visit.session.faces, event.index)
        start = time.perf_counter()
        visit = self.studio.choose_face(visit, face)
        count = len(visit.session.faces)
        return self._opened(visit, f"Face {face + 1} of {count} opened in {milliseconds(start):.0f} ms.")

    # Edits

    def move(self, bank: str, rest: bool, visit: Visit, fidelity: Any, strengths: dict[str, Any]) -> dict:
        """The sliders stand somewhere else; `rest` says that they have stopped moving."""
        if bank != visit.model:
            return gr.skip()  # sliders of the model before, still on their way out
        visit = self.studio.move(visit, strengths, fidelity, rest is True)
        if visit.session is None:
            return {self.visit: visit, self.status: status_line(DROPPED if visit.dropped else NONE_YET)}
        if rest is not True:
            if not self.studio.live:
                return {self.visit: visit}
            return self._show(visit, preview=True)
        if visit.full is not None:  # it is what stands there
            return {self.visit: visit, **self._can_step(visit)}
        return {**self._show(visit, preview=False), **self._can_step(visit)}

    def step_back(self, visit: Visit) -> dict:
        return self._step(visit, -1)

    def step_forth(self, visit: Visit) -> dict:
        return self._step(visit, 1)

    def _step(self, visit: Visit, by: int) -> dict:
        stepped = self.studio.step(visit, by)
        return gr.skip() if stepped is None else self._edited(stepped)

    def reset_all(self, visit: Visit) -> dict:
        return self._edited(self.studio.edited(visit, Edits()))

    def change_view(self, visit: Visit, event: gr.SelectData) -> dict:
        return self._show(replace(visit, view=_chosen(VIEWS, event.index)), preview=False)

    def _edited(self, visit: Visit, text: str = "") -> dict:
        """The result, and the sliders where the visit has them."""
        face = visit.session.face if visit.session else 0
        # The time makes each text a new one, so that the same edits set the sliders again.
        levels = json.dumps({**visit.edits.plain(), "face": face, "time": time.time_ns()})
        return {**self._show(visit, preview=False, text=text), **self._can_step(visit), self.levels: levels}

    def _can_step(self, visit: Visit) -> dict:
        at, steps = visit.history.at, visit.history.steps
        return {
            self.undo: gr.Button(interactive=at > 0),
            self.redo: gr.Button(interactive=at < len(steps) - 1),
        }

    def _show(self, visit: Visit, preview: bool, text: str = "") -> dict:
        """The result in the open tab."""
        if visit.session is None:
            missing = DROPPED if visit.dropped else f"{self.studio.words(visit)}. Choose a photo."
            return {self.visit: visit, self.status: status_line(text or missing)}
        visit, picture, speed = self.studio.render(visit, preview)
        if visit.view == "face":
            value = {self.face: as_value(data_url(picture))}
        elif visit.view == "compare":
            value = {self.compare: [as_value(visit.before), as_value(data_url(picture))]}
        else:
            start = time.perf_counter()
            value = {self.whole: as_value(data_url(smaller(self.studio.paste(visit, picture), LONGEST)))}
            speed += f"{' + ' if speed else ''}{milliseconds(start):.0f} ms to paste"
        detail = " · ".join(filter(None, [self.studio.where(visit.model), speed]))
        return {self.visit: visit, **value, self.status: status_line(text or self.studio.words(visit), detail)}

    # Presets and settings

    def _presets(self, model: str, kept: Any) -> dict[str, Edits]:
        directions = self.studio.editor(model).directions
        return {**built_in(directions), **own(kept, model, directions)}

    def _chips(self, model: str, kept: Any) -> dict:
        return {self.presets: gr.Dataset(samples=[[name] for name in self._presets(model, kept)])}

    def list_presets(self, kept: Any, visit: Visit) -> dict:
        return self._chips(visit.model, kept)

    def apply_preset(self, index: Any, kept: Any, visit: Visit) -> dict:
        edits = _chosen([*self._presets(visit.model, kept).values()], index)
        return self._edited(self.studio.edited(visit, edits))

    def keep_preset(self, name: Any, kept: Any, visit: Visit) -> dict:
        return self._kept(keep(kept, name, visit.model, visit.edits), visit, "The preset is kept in this browser.")

    def drop_preset(self, name: Any, kept: Any, visit: Visit) -> dict:
        return self._kept(keep(kept, name, visit.model, None), visit, "The preset is deleted.")

    def _kept(self, kept: list[dict[str, Any]], visit: Visit, text: str) -> dict:
        status = status_line(text, self.studio.where(visit.model))
        return {self.kept: kept, **self._chips(visit.model, kept), self.preset_name: "", self.status: status}

    def apply_settings(self, file: dict[str, Any] | None, visit: Visit) -> dict:
        """The edits of a settings file, or of a picture that was downloaded here."""
        if file is None:
            return gr.skip()
        path = uploaded(file, self.load_settings.GRADIO_CACHE)
        try:
            settings = read_settings(path)
        finally:
            if str(path) in self.blocks.upload_file_set:
                path.unlink(missing_ok=True)
        directions = self.studio.editor(visit.model).directions
        edits = edits_within(directions, settings["strengths"], settings.get("fidelity"))
        visit = self.studio.edited(visit, edits)
        missing = sum(name not in directions for name in settings["strengths"])
        text = f"Settings loaded: {self.studio.words(visit)}."
        if missing:
            text += f" {missing} of their sliders {'is' if missing == 1 else 'are'} not this model's and left out."
        return self._edited(visit, text)

    # Models

    def load_model(self, name: Any, progress=gr.Progress()) -> dict:  # noqa: B008
        """Have the chosen model ready; the next handler changes over to it."""
        self.studio.editor(name, lambda done, total: progress((done >> 20, total >> 20), "Downloading", unit="MB"))
        return {self.status: status_line(f"{label(name)} is ready.", self.studio.where(name))}

    def change_model(self, name: Any, visit: Visit, kept: Any) -> dict:
        """The photo, opened again with another model, whose sliders all stand at 0."""
        if name == visit.model or name not in self.studio:  # it could not be had
            return {self.picker: visit.model}
        fresh = Visit(name, view=visit.view)
        changed = {self.bank: name, **self._chips(name, kept), **self._can_step(fresh)}
        if visit.session is None:
            return {self.visit: fresh, **changed}
        try:
            return {**changed, **self._open(fresh, visit.session.photo)}
        except PhotoError as error:
            gr.Warning(html.escape(str(error), quote=False), title="Not done")
            return {
                self.visit: fresh,
                **changed,
                self.status: status_line(str(error), self.studio.where(name)),
                self.welcome: gr.Column(visible=True),
                **{part: gr.Column(visible=False) for part in (self.workspace, self.face_part, self.crop_part)},
            }

    # Downloads

    def download_face(self, visit: Visit) -> dict:
        _check_open(visit)
        visit, picture, _ = self.studio.render(visit)
        return self._picture(visit, picture, "edited-face.png")

    def download_photo(self, visit: Visit) -> dict:
        _check_open(visit)
        visit, picture, _ = self.studio.render(visit)
        return self._picture(visit, self.studio.paste(visit, picture), "edited-photo.png")

    def download_grid(self, visit: Visit) -> dict:
        _check_open(visit)
        return self._picture(visit, self.studio.grid(visit), "edited-grid.png")

    def download_settings(self, visit: Visit) -> dict:
        settings = self.studio.settings(visit)
        text = json.dumps(settings, ensure_ascii=False, indent=2)
        written = "The settings hold where the sliders stand, nothing of the photo."
        return self._download(visit, "settings.json", lambda path: path.write_text(text, encoding="utf-8"), written)

    def _picture(self, visit: Visit, picture: Image.Image, name: str) -> dict:
        settings = self.studio.settings(visit)
        text = f"{name} is {picture.width} × {picture.height} pixels."
        return self._download(visit, name, lambda path: save_png(picture, path, settings), text)

    def _download(self, visit: Visit, name: str, write: Callable[[Path], Any], text: str) -> dict:
        """A file in Gradio's temporary folder, which is emptied on schedule."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            kept = self.file.move_resource_to_block_cache(path)
        return {
            self.visit: visit,
            self.file: {"path": kept, "orig_name": name, "meta": {"_type": "gradio.FileData"}},
            self.status: status_line(text, self.studio.where(visit.model)),
        }

    def _make_room(self) -> None:
        """Before another photo is kept: where there are too many, those go that nobody has touched for longest."""
        others = list(self.blocks.state_holder.session_data.values())[:-1]  # the last used is the one that asks
        holding = [state for state in others if self.visit._id in state and state[self.visit._id].session is not None]
        for state in holding[: max(0, len(holding) + 1 - limit("E4E_MAX_PHOTOS"))]:
            state[self.visit._id] = state[self.visit._id].without_photo()

    def forget(self, request: gr.Request) -> None:
        """The page was closed: its photo goes at once, not after Gradio's hour."""
        self.blocks.state_holder.delete_state(request.session_hash)


def _check_open(visit: Visit) -> None:
    if visit.session is None:
        raise PhotoError(DROPPED if visit.dropped else GONE)


def _number_of(choices: Any, index: Any) -> int:
    """`index`, as it came over the network, if it is one of `choices`."""
    if type(index) is not int or not 0 <= index < len(choices):
        raise PhotoError("That choice is not there any more; reload the page and choose again.")
    return index


def _chosen(choices: Any, index: Any) -> Any:
    return choices[_number_of(choices, index)]
