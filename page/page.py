"""What the page does: every event, and what it changes. The work is `page.studio`'s and `editing`'s."""

import contextlib
import html
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency
from PIL import Image

from editing import Session
from errors import E4EError, PhotoError
from limits import limit
from page.api import offer
from page.describing import Describing
from page.downloads import Downloads
from page.exploring import Exploring
from page.frames import Frames
from page.incoming import DROPPED, HIDDEN, QUIETLY, RAW, WORK, chosen, in_sentences, number_of, uploaded
from page.keeping import Keeping
from page.mixing import Mixing
from page.own import OWN
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
from page.presets import Edits
from page.refining import Refining
from page.studio import SMALL, Visit, give_back, label, milliseconds

FETCHING = 60  # seconds that an upload stays on disk after it was read
LATE = 60  # seconds after which what was under way for a closed page has come to its end
VIEWS = ("face", "compare", "photo")  # the tabs, in order


class Page(Describing, Downloads, Exploring, Frames, Keeping, Mixing, Refining):
    """One gr.Blocks with its handlers. A handler returns {component: value}; components it leaves out stay as is."""

    def _lay_out_bank(self, bank: dict[str, Any], visit: Visit) -> None:
        """The sliders of a visit, where it has them; made anew when they are others."""
        directions, edits = self.studio.directions(visit), visit.edits
        groups: dict[str, list[str]] = {}
        for key, direction in directions.items():
            groups.setdefault(direction.group, []).append(key)
        sliders: dict[str, gr.Slider] = {}
        with gr.Column(elem_id="sliders"):
            for group, keys in groups.items():
                with gr.Accordion(
                    group, open=not sliders or len(directions) <= 16 or group == OWN, elem_classes="group"
                ):
                    sliders |= {
                        key: direction_slider(key, directions[key], edits.strengths.get(key, 0)) for key in keys
                    }
            gr.HTML(f"<style>{zeros(directions)}</style>", elem_id="zeros")
            if not sliders:
                notice = self.studio.editor(visit.model).notice or "This model comes without sliders."
                gr.HTML(f"<p>{html.escape(notice)}</p>")
            fidelity = fidelity_slider(edits.fidelity)
            keep = gr.Dropdown(
                [(direction.label, key) for key, direction in directions.items()],
                value=[key for key in edits.keep if key in directions],
                multiselect=True,
                label="Keep unchanged",
                info="The other sliders then leave these alone",
                visible=len(directions) > 1,
                interactive=True,
                elem_id="keep",
            )

        # Where each value belongs in `Edits.plain`.
        places: dict[tuple[str, ...], gr.components.Component] = {("fidelity",): fidelity}
        places |= {("strengths", key): slider for key, slider in sliders.items()}
        places |= {("mix", part): slider for part, slider in self.amounts.items()}
        places |= {("keep",): keep, ("region",): self.region, ("feather",): self.feather}
        moving = [place for place in places.values() if isinstance(place, gr.Slider)]

        def rest(levels: Any, visit: Visit, *values: Any) -> dict:
            sent: dict[str, Any] = {"strengths": {}, "mix": {}}
            for path, value in zip(places, values, strict=True):
                (sent if len(path) == 1 else sent[path[0]])[path[-1]] = value
            return self.rest(bank, levels, visit, sent)

        paths = json.dumps([*places])
        gr.on(
            [event for slider in moving for event in (slider.input, slider.release)] + [keep.input, self.region.input],
            fn=None,
            inputs=[self.levels, *places.values()],
            outputs=self.frame_parts,
            js=f"(levels, ...values) => window.follow({json.dumps(bank)}, {paths}, levels, values)",
            **HIDDEN,
        )
        at_rest = self._in_sentences(rest), [self.levels, self.visit, *places.values()]
        shown = [self.visit, *self.pictures, self.status, self.undo, self.redo, self.strip, self.levels]
        shown += [self.bank, self.path, self.picker]

        def stands(button: gr.Button, **options: Any) -> Dependency:
            """A click on `button`, once the visit has the sliders as the page shows them."""
            return button.click(*at_rest, shown, **options, **QUIETLY)

        stands(self.settle, trigger_mode="always_last")
        self._wire_downloads(stands)
        self._wire_presets(stands)
        js = f"window.levelsFor({paths})"
        self.levels.change(fn=None, inputs=self.levels, outputs=[*places.values()], js=js)

    def _bank(self, visit: Visit) -> dict[str, Any]:
        """Which sliders a visit has, as JSON values: the model's, and its own by name."""
        own = visit.own.get(visit.model, {})
        return {"model": visit.model, "own": {name: [each.label, each.low, each.high] for name, each in own.items()}}

    def _banked(self, visit: Visit) -> dict:
        """The sliders of a visit, made anew, and what offers them."""
        paths = self._paths(visit)
        return {self.bank: self._bank(visit), self.path: gr.Dropdown(choices=paths, value=paths[0][1])}

    @property
    def pictures(self) -> list[gr.components.Component]:
        return [self.face, self.compare, self.whole]

    def _wire(self) -> None:
        shown = [self.visit, *self.pictures, self.status, self.undo, self.redo, self.strip]
        edited = [*shown, self.levels]
        opened = [*edited, self.opened, self.photo, self.faces, self.crop, self.face_part, self.crop_part]
        opened += [self.welcome, self.workspace, self.second]
        handle = self._in_sentences
        # A choice that comes while its predecessor is under way must not get lost: the second photo is the one wanted,
        # and two undos are two steps.
        steps = {"trigger_mode": "multiple", **QUIETLY}
        work = {"trigger_mode": "multiple", "show_progress_on": [self.status], **WORK}

        self.photo.input(handle(self.open_photo), [self.photo, self.visit], opened, **work)
        self.examples.click(handle(self.open_example), [self.examples, self.visit], opened, **work)
        self.faces.select(handle(self.choose_face), [self.visit], opened, **work)
        self.divider.input(
            fn=None,
            inputs=self.divider,
            outputs=self.compare,
            js="side => ({__type__: 'update', slider_position: {Before: 100, Both: 50, After: 0}[side]})",
        )
        self.tabs.select(handle(self.change_view), [self.visit], shown, **steps)
        self.undo.click(handle(self.step_back), [self.visit], edited, **steps)
        self.redo.click(handle(self.step_forth), [self.visit], edited, **steps)
        self.strip.select(handle(self.choose_step), [self.visit], edited, **steps)
        self.reset.click(handle(self.reset_all), [self.visit], edited, **steps)

        self._wire_frames()
        self._wire_mixing(shown)
        self._wire_exploring(edited)
        self._wire_keeping(edited)
        # Loading can take minutes and has a queue of its own, so that nobody else's sliders wait for it.
        self.picker.input(
            handle(self.load_model),
            [self.picker],
            [self.ready, self.status],
            trigger_mode="multiple",
            concurrency_id="loading",
            concurrency_limit=1,
            show_progress_on=[self.status],
            **RAW,
        ).then(
            handle(self.change_model),
            [self.ready, self.visit, self.kept],
            [*opened, self.bank, self.path, self.first, self.last, self.picker, self.presets],
            show_progress_on=[self.status],
            **WORK,
        )
        self._wire_refining(shown)
        self.blocks.unload(self.forget)
        offer(self.studio, self.start)

    def _in_sentences(self, handler: Callable[..., dict], failed: dict | None = None) -> Callable[..., dict]:
        """The handler with its errors as sentences in the status line and, so that nobody misses them, in a notice.

        failed: what an error changes besides, {component: value}.
        """

        def answer(sentence: str) -> dict:
            gr.Warning(html.escape(sentence, quote=False), title="Not done")
            return {self.status: status_line(sentence), **(failed or {})}

        return in_sentences(handler, answer, self.studio.free_memory)

    def _drop_upload(self, source: Any) -> None:
        """Delete what was uploaded: it is in memory now, and the browser soon has had the time to fetch it."""
        if str(source) in self.blocks.upload_file_set:
            deletion = threading.Timer(FETCHING, delete_unless_newer, [Path(source), time.time()])
            deletion.daemon = True  # the whole folder goes with the process
            deletion.start()

    # Photos and faces

    def open_photo(self, file: dict[str, Any] | None, visit: Visit) -> dict:
        """A new photo; one that cannot be opened leaves everything as it was, the photo field included."""
        if file is None:
            return gr.skip()
        source = uploaded(file, self.photo.GRADIO_CACHE)
        try:
            return self._open(visit, source)
        except PhotoError as error:
            return {self.photo: self._in_field(visit.session), **self._still_here(error, visit.session)}
        finally:
            self._drop_upload(source)

    def open_example(self, index: Any, visit: Visit) -> dict:
        return self._open(visit, chosen(self.example_files, index))

    def _in_field(self, session: Session | None) -> dict[str, Any] | None:
        return None if session is None else as_value(data_url(smaller(session.photo, FIELD)))

    def _still_here(self, error: PhotoError, session: Session | None) -> dict:
        """Why a photo was not opened; the one before it, if there was one, is still there."""
        gr.Warning(html.escape(str(error), quote=False), title="Not done")
        return {self.status: status_line(f"{error} The photo before it is still here." if session else str(error))}

    def _open(self, visit: Visit, source: Path | io.BytesIO | Image.Image) -> dict:
        start = time.perf_counter()
        self._make_room()
        second = {self.second: None} if visit.dropped and not visit.second else {}  # it went with the photo
        visit = replace(self.studio.open(visit, source), opened=start)
        count = len(visit.session.faces)
        found = {0: "", 1: "Found a face."}.get(count, f"Found {count} faces; choose among them below the photo.")
        return {**second, **self._opened(visit, f"{found} Opened in {milliseconds(start):.0f} ms.".strip())}

    def _opened(self, visit: Visit, text: str) -> dict:
        """Everything on the page that depends on the photo."""
        session = visit.session
        faces = [smaller(session.photo.crop(tuple(map(round, face.box))), 160) for face in session.faces]
        before = data_url(session.picture)
        several = len(faces) > 1
        return {
            **self._edited(replace(visit, before=before), text),
            self.opened: str(time.time_ns()),
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
        face = number_of(visit.session.faces, event.index)
        start = time.perf_counter()
        visit = self.studio.choose_face(visit, face)
        count = len(visit.session.faces)
        return self._opened(visit, f"Face {face + 1} of {count} opened in {milliseconds(start):.0f} ms.")

    # Edits

    def _stands(self, visit: Visit, bank: Any, levels: Any) -> bool:
        """Whether the sliders that moved are the visit's and were last set for its photo, face and edits.

        Others are on their way out, or were moved while something else set them.
        """
        try:
            set_at = json.loads(levels)["set_at"] if levels else ""
        except (KeyError, RecursionError, TypeError, ValueError):
            return False
        return bank == self._bank(visit) and set_at == visit.set_at

    def rest(self, bank: dict[str, Any], levels: Any, visit: Visit, sent: dict[str, Any]) -> dict:
        """The sliders of `bank`, last set by `levels`, have come to rest where `sent` says."""
        if not self._stands(visit, bank, levels):
            answer = {self.levels: self._levels(visit)}
            if bank != self._bank(visit):  # a page that was away for hours has sliders that are gone
                answer |= {**self._banked(visit), self.picker: visit.model}
            return answer
        visit = self.studio.move(visit, sent, rest=True)
        if visit.session is None:
            return self._without_photo(visit)
        if visit.full is not None:  # it is what stands there
            return {self.visit: visit, **self._can_step(visit)}
        return self._rested(visit)

    def step_back(self, visit: Visit) -> dict:
        return self._step(visit, -1)

    def step_forth(self, visit: Visit) -> dict:
        return self._step(visit, 1)

    def _step(self, visit: Visit, by: int) -> dict:
        return self._edited(self.studio.step(visit, by) or visit)

    def choose_step(self, event: gr.SelectData, visit: Visit) -> dict:
        """One of the small pictures of what was before."""
        return self._edited(self.studio.go(visit, chosen(visit.history.window, event.index)))

    def reset_all(self, visit: Visit) -> dict:
        return self._edited(self.studio.edited(visit, Edits()))

    def change_view(self, visit: Visit, event: gr.SelectData) -> dict:
        return self._show(replace(visit, view=chosen(VIEWS, event.index)), preview=False)

    def _edited(self, visit: Visit, text: str = "") -> dict:
        """The result, and the sliders where the visit has them."""
        visit = replace(self.studio.edited(visit, visit.edits), set_at=str(time.time_ns()))
        return {**self._rested(visit, text), self.levels: self._levels(visit)}

    def _levels(self, visit: Visit) -> str:
        """Where the sliders stand, for the browser; its time makes each text a new one, which sets them again."""
        face = visit.session.face if visit.session else 0
        return json.dumps({**visit.edits.plain(), "face": face, "set_at": visit.set_at})

    def _rested(self, visit: Visit, text: str = "") -> dict:
        """The full result, and what was before it."""
        shown = self._show(visit, preview=False, text=text)
        return {**shown, **self._can_step(shown[self.visit])}

    def _can_step(self, visit: Visit) -> dict:
        """What was before and after, and the picture of where the sliders rest now."""
        if visit.full is not None and visit.edits == visit.history.edits:
            visit = replace(visit, history=visit.history.drawn(data_url(smaller(visit.full, SMALL))))
        at, steps = visit.history.at, visit.history.steps
        return {
            self.visit: visit,
            self.undo: gr.Button(interactive=at > 0),
            self.redo: gr.Button(interactive=at < len(steps) - 1),
            self.strip: self._strip(visit) if len(steps) > 1 else [],
        }

    def _strip(self, visit: Visit) -> list[dict[str, Any]]:
        history = visit.history
        return [
            {
                "image": as_value(history.thumbs[each] or visit.before),
                "caption": ("Now: " if each == history.at else "") + self.studio.words(visit, history.steps[each]),
            }
            for each in history.window
        ]

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

    # Models

    def warm_up(self) -> None:
        """Open an example for nobody: the first visitor need not wait for what is loaded with the first photo."""
        if self.studio.live and self.example_files:
            with contextlib.suppress(E4EError):
                self.studio.render(self.studio.open(Visit(self.start), self.example_files[0]))

    def load_model(self, name: Any, progress=gr.Progress()) -> dict:  # noqa: B008
        """Have the chosen model ready; the next handler changes over to it."""
        self.studio.editor(name, lambda done, total: progress((done >> 20, total >> 20), "Downloading", unit="MB"))
        return {self.ready: name, self.status: status_line(f"{label(name)} is ready.", self.studio.where(name))}

    def change_model(self, name: Any, visit: Visit, kept: Any) -> dict:
        """The photo, opened again with another model, whose sliders all stand at 0."""
        if name == visit.model or name not in self.studio:  # it could not be had
            return {self.picker: visit.model}
        fresh = Visit(name, own=visit.own, view=visit.view, set_at=str(time.time_ns()))
        if visit.second is not None:
            with contextlib.suppress(PhotoError):  # another model may see no face in it: its field is empty then
                fresh = self.studio.open_second(fresh, visit.second.photo)
        last = self.studio.editor(name).model.num_layers - 1
        layers = {self.first: gr.Slider(maximum=last, value=0), self.last: gr.Slider(maximum=last, value=last)}
        changed = {**self._banked(fresh), **layers, **self._chips(fresh, kept), **self._can_step(fresh)}
        changed |= {self.second: self._second_in_field(fresh), self.levels: self._levels(fresh)}
        if visit.session is None:
            return {**changed, self.visit: fresh}
        try:
            return {**changed, **self._open(fresh, visit.session.photo)}
        except PhotoError as error:
            gr.Warning(html.escape(str(error), quote=False), title="Not done")
            return {
                **changed,
                self.visit: fresh,
                self.status: status_line(str(error), self.studio.where(name)),
                self.welcome: gr.Column(visible=True),
                **{part: gr.Column(visible=False) for part in (self.workspace, self.face_part, self.crop_part)},
            }

    def _make_room(self) -> None:
        """Before another photo is kept: where there are too many, those go that nobody has touched for longest."""
        others = list(self.blocks.state_holder.session_data.values())[:-1]  # the last used is the one that asks
        holding = [state for state in others if self.visit._id in state and state[self.visit._id].photos]
        for state in holding[: max(0, len(holding) + 1 - limit("E4E_MAX_PHOTOS"))]:
            state[self.visit._id] = state[self.visit._id].without_photo()

    def forget(self, request: gr.Request) -> None:
        """The page was closed or cut off: its photo goes at once, not after Gradio's hour, and nothing is computed any
        more. What is left is there for a page that comes back.
        """
        self.stop_refining(request)
        self.stop_search(request)
        self.stop_film(request)
        now = time.perf_counter()
        self._drop_photo(request.session_hash, now)
        once_more = threading.Timer(LATE, self._drop_photo, [request.session_hash, now])
        once_more.daemon = True
        once_more.start()

    def _drop_photo(self, session: str, before: float) -> None:
        """Drop a page's photos if none was chosen after `before`, and what Gradio would keep of it."""
        queue = self.blocks._queue
        # Pictures that nobody has fetched, for the last 2000 pages; a page that is there again has them at once.
        unread = queue.pending_messages_per_session.get(session)
        while unread is not None and not unread.empty():
            unread.get_nowait()
        # How long the events of each page's own sliders took, and by that the sliders: for ever.
        for each in [each for each in [*queue.process_time_per_fn] if each.rendered_in]:
            queue.process_time_per_fn.pop(each, None)
        states = self.blocks.state_holder.session_data
        if session in states and self.visit._id in states[session]:
            state = states[session]
            if state[self.visit._id].photos and state[self.visit._id].opened < before:
                state[self.visit._id] = state[self.visit._id].without_photo()
            state[self.found._id] = None
            give_back()


def delete_unless_newer(path: Path, since: float) -> None:
    """Delete a file that was not uploaded again, under the same name, after `since`, a time.time()."""
    with contextlib.suppress(OSError):
        if path.stat().st_ctime <= since:
            path.unlink()
