"""The page: a photo goes in, sliders move, the edited photo comes out. Layout and wiring; the work is `editing`'s."""

import argparse
import base64
import functools
import html
import io
import logging
import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from e4e_core.checkpoints import default_model_name, load_or_demo, registry
from editing import Direction, Editor, Session
from editing.export import save_png
from errors import E4EError, ModelError, PhotoError
from page.studio import Studio, Visit, label, milliseconds

HERE = Path(__file__).resolve().parent
VIEWS = ("face", "compare", "photo")  # the tabs, in order
FIELD = 800  # pixels; the longer side of the photo in its own small field
LONGEST = 1600  # pixels; the photo is shown no larger than this, its download is full size
FAILED = "Something went wrong here; try again, and reload the page if it happens again."

HEADER = "<header><h1>Edit a face</h1><p>Choose a photo, move a slider, download the result.</p></header>"
WELCOME = """<div><svg viewBox="0 0 96 96" aria-hidden="true"><path d="M12 30V20a8 8 0 0 1 8-8h10M66 12h10a8 8 0 0 1 8
8v10M84 66v10a8 8 0 0 1-8 8H66M30 84H20a8 8 0 0 1-8-8V66M36 38v5M60 38v5M34 58c8 9 20 9 28 0"/></svg>
<h2>Start with a photo of a face</h2>
<ol><li>Upload one, use the camera, paste it, or take an example.</li>
<li>Move the sliders; the picture follows.</li>
<li>Download the face, or the whole photo with the face put back.</li></ol></div>"""
FOOTER = """<footer>Edit only photos of yourself or of people who agreed, and say that a picture is edited when you
share it. The sliders show what a model has learned from other people's photos, not facts about anyone. Your photo is
kept in memory only, and only while this page is open.</footer>"""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
BROWSE = "() => document.querySelector('#photo input[type=file]')?.click()"

# All handlers that compute share one queue: one frame at a time, in the order of the events.
RENDERING = {"concurrency_id": "rendering", "concurrency_limit": 1}
# Pictures travel as data URLs, which Gradio need not convert and never writes to disk.
RAW = {"preprocess": False, "postprocess": False, "api_visibility": "private"}

log = logging.getLogger("e4e")


def data_url(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def as_value(url: str) -> dict[str, Any]:
    """A data URL in the form in which Gradio's front end takes pictures."""
    return {"url": url, "path": None, "meta": {"_type": "gradio.FileData"}}


def uploaded(file: dict[str, Any]) -> Path | io.BytesIO:
    """What the photo field sends: a file that Gradio has stored and checked, or a data URL."""
    url = file.get("url") or ""
    return io.BytesIO(base64.b64decode(url.partition(",")[2])) if url.startswith("data:") else Path(file["path"])


def smaller(photo: Image.Image, longest: int) -> Image.Image:
    """The photo with a longer side of at most `longest` pixels."""
    scale = longest / max(photo.size)
    return photo if scale >= 1 else photo.resize([max(1, round(side * scale)) for side in photo.size], reducing_gap=2.0)


def status_line(text: str, detail: str = "") -> str:
    return f"<p role='status'><span>{html.escape(text)}</span><span>{html.escape(detail)}</span></p>"


def step(direction: Direction) -> float:
    """About a hundredth of a slider's range: 1, 2 or 5 times a power of ten, such that 0 is one of the steps."""
    rough = (direction.high - direction.low) / 100
    power = 10.0 ** math.floor(math.log10(rough))
    fine = [factor * power for factor in (5, 2, 1) if factor * power <= rough * 1.001]
    hits_zero = (size for size in fine if math.isclose(direction.low / size, round(direction.low / size), abs_tol=1e-6))
    return round(next(hits_zero, power), 12)


def zeros(directions: Mapping[str, Direction]) -> str:
    """Where each slider's 0 lies, for page.css, which colours the track from there."""
    return "".join(
        f"#direction-{name} {{ --zero: {direction.low / (direction.low - direction.high):.1%} }}"
        for name, direction in directions.items()
    )


def direction_slider(name: str, direction: Direction) -> gr.Slider:
    return gr.Slider(
        direction.low,
        direction.high,
        value=0,
        step=step(direction),
        label=direction.label,
        interactive=True,
        buttons=["reset"],
        elem_id=f"direction-{name}",
    )


def picture_field(name: str, description: str, buttons: list[str]) -> gr.Image:
    return gr.Image(
        show_label=False,
        container=False,
        interactive=False,
        buttons=buttons,
        alt_text=description,
        elem_id=name,
    )


class Page:
    """One gr.Blocks with its handlers. A handler returns {component: value}; components it leaves out stay as is."""

    def __init__(self, studio: Studio, model: str, notice: str = ""):
        self.studio = studio
        self.start = model
        examples = HERE / "examples"
        self.example_files = sorted(path for path in examples.glob("*") if path.suffix in (".png", ".jpg", ".webp"))
        with gr.Blocks(
            title="Edit a face", analytics_enabled=False, fill_width=True, delete_cache=(600, 1800)
        ) as self.blocks:
            self.visit = gr.State(Visit(model))
            self.bank = gr.State(model)  # the model whose sliders are on the page
            gr.HTML(HEADER, elem_id="header")
            if notice:
                gr.HTML(f"<p role='alert'>{html.escape(notice)}</p>", elem_id="notice")
            with gr.Row(elem_id="columns", equal_height=False):
                with gr.Column(elem_id="left", min_width=260):
                    self._lay_out_photo()
                with gr.Column(elem_id="centre", min_width=320):
                    self._lay_out_result()
                with gr.Column(elem_id="right", min_width=280):
                    self._lay_out_sliders()
            gr.HTML(FOOTER, elem_id="footer")
            self._wire()

    def _lay_out_photo(self) -> None:
        self.photo = gr.Image(
            label="Photo",
            sources=["upload", "webcam", "clipboard"],
            placeholder="Drop a photo here\nor click to choose one",
            buttons=[],
            height=260,
            elem_id="photo",
        )
        with gr.Column(visible=bool(self.example_files), elem_classes="part"):
            gr.HTML("<h2>Examples</h2>")
            self.examples = gr.Dataset(
                components=[gr.Image(visible=False)],
                samples=[[str(path)] for path in self.example_files],
                show_label=False,
                type="index",
                samples_per_page=12,
                elem_id="examples",
            )
        with gr.Column(visible=False, elem_classes="part") as self.face_part:
            gr.HTML("<h2>Which face?</h2>")
            self.faces = gr.Gallery(
                show_label=False, container=False, columns=4, allow_preview=False, buttons=[], elem_id="faces"
            )
        with gr.Column(visible=False, elem_classes="part") as self.crop_part:
            gr.HTML("<h2>What the model sees</h2>")
            self.crop = picture_field("crop", "The part of the photo that the model sees", [])

    def _lay_out_result(self) -> None:
        with gr.Column(elem_id="welcome") as self.welcome:
            gr.HTML(WELCOME)
            choose = gr.Button("Choose a photo", variant="primary", elem_id="choose")
            choose.click(fn=None, js=BROWSE)
        with gr.Column(visible=False, elem_id="workspace") as self.workspace:
            with gr.Tabs(elem_id="views") as self.tabs:
                with gr.Tab("Face", id="face"):
                    self.face = picture_field("result", "The edited face", ["fullscreen"])
                with gr.Tab("Before / after", id="compare"):
                    self.compare = gr.ImageSlider(
                        show_label=False, container=False, buttons=["fullscreen"], max_height=2000, elem_id="compare"
                    )
                    self.divider = gr.Radio(
                        ["Before", "Both", "After"], value="Both", label="Show", show_label=False, elem_id="divider"
                    )
                with gr.Tab("In the photo", id="photo"):
                    self.whole = picture_field("whole", "The photo with the edited face", ["fullscreen"])
            with gr.Row(elem_id="downloads"):
                self.save_face = gr.Button("Download face", variant="primary", elem_id="save-face")
                self.save_photo = gr.Button("Download photo", elem_id="save-photo")
                another = gr.Button("New photo", elem_id="another")
            another.click(fn=None, js=BROWSE)
            self.file = gr.DownloadButton(visible="hidden", elem_id="file")
        self.status = gr.HTML(status_line("Ready for a photo.", self.studio.where(self.start)), elem_id="status")

    def _lay_out_sliders(self) -> None:
        names = dict.fromkeys([self.start, *registry()])
        self.picker = gr.Dropdown(
            [(label(name), name) for name in names], value=self.start, label="Model", filterable=False, elem_id="model"
        )
        # page.js fills in whether the sliders rest, and clicks the button when they come to rest: so the picture
        # that stays is a full one whichever way a slider was moved.
        self.rest = gr.Checkbox(visible=False)
        self.settle = gr.Button(visible="hidden", elem_id="settle")
        gr.render(inputs=[self.bank])(self._lay_out_bank)

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
            fidelity = gr.Slider(
                0,
                1,
                value=1,
                step=0.01,
                label="Fidelity",
                info="Lower is easier to edit, higher is closer to the photo",
                interactive=True,
                buttons=["reset"],
                elem_id="fidelity",
            )
        reset = gr.Button("Reset all", elem_id="reset-all")

        def move(rest: bool, visit: Visit, fidelity: float | None, *values: float | None) -> dict:
            return self.move(name, rest, visit, fidelity, dict(zip(sliders, values, strict=True)))

        bank = [fidelity, *sliders.values()]
        # One handler for them all: one frame is under way at most, and the next takes the values of its own moment.
        gr.on(
            [event for slider in bank for event in (slider.input, slider.release)] + [self.settle.click],
            self._in_sentences(move),
            [self.rest, self.visit, *bank],
            [self.visit, *self.pictures, self.status],
            js="(rest, ...others) => [window.slidersRest(), ...others]",
            trigger_mode="always_last",
            show_progress="hidden",
            **RENDERING,
            **RAW,
        )
        at_rest = [1] + [0] * len(sliders)
        reset.click(fn=None, js=f"() => {at_rest}", outputs=bank).then(
            fn=None, js="() => document.querySelector('#settle').click()"
        )

    @property
    def pictures(self) -> list[gr.components.Component]:
        return [self.face, self.compare, self.whole]

    def _wire(self) -> None:
        outputs = [self.visit, *self.pictures, self.status]
        opened = [*outputs, self.photo, self.faces, self.crop, self.face_part, self.crop_part]
        opened += [self.welcome, self.workspace]
        handle = self._in_sentences
        work = {"show_progress": "minimal", "show_progress_on": [self.status], **RENDERING, **RAW}
        self.photo.input(handle(self.open_photo), [self.photo, self.visit], opened, **work)
        self.examples.click(handle(self.open_example), [self.examples, self.visit], opened, **work)
        self.faces.select(handle(self.choose_face), [self.visit], opened, **work)
        quietly = {"show_progress": "hidden", **RENDERING, **RAW}
        self.tabs.select(handle(self.change_view), [self.visit], outputs, trigger_mode="always_last", **quietly)
        self.divider.input(
            fn=None,
            inputs=self.divider,
            outputs=self.compare,
            js="side => ({__type__: 'update', slider_position: {Before: 100, Both: 50, After: 0}[side]})",
        )
        # Loading can take minutes and has a queue of its own, so that nobody else's sliders wait for it.
        self.picker.input(
            handle(self.load_model),
            [self.picker],
            [self.status],
            concurrency_id="loading",
            concurrency_limit=1,
            show_progress_on=[self.status],
            **RAW,
        ).then(handle(self.change_model), [self.picker, self.visit], [*opened, self.bank, self.picker], **work)
        for button, save in ((self.save_face, self.download_face), (self.save_photo, self.download_photo)):
            button.click(handle(save), [self.visit], [self.visit, self.file, self.status], **work).then(
                fn=None, js="() => window.downloadReady()"
            )
        self.blocks.unload(self.forget)

    def _in_sentences(self, handler: Callable[..., dict]) -> Callable[..., dict]:
        """The handler with its errors as sentences: in the status line and, so that nobody misses it, in a notice."""

        @functools.wraps(handler)
        def wrapped(*inputs, **named):
            try:
                return handler(*inputs, **named)
            except E4EError as error:
                sentence = str(error)
            except Exception:
                log.exception("A handler of the page failed.")
                sentence = FAILED
            gr.Warning(html.escape(sentence, quote=False))
            return {self.status: status_line(sentence)}

        return wrapped

    def open_photo(self, file: dict[str, Any] | None, visit: Visit) -> dict:
        """A new photo; one without a face leaves everything as it was, the photo field included."""
        if file is None:
            return gr.skip()
        source = uploaded(file)
        try:
            return self._open(visit, source)
        except PhotoError as error:
            if visit.session is None:
                raise
            gr.Warning(html.escape(str(error), quote=False))
            text = f"{error} The photo before it is still here."
            return {self.photo: self._in_field(visit.session), self.status: status_line(text)}
        finally:
            if str(source) in self.blocks.upload_file_set:  # it is in memory now, nobody needs it on disk
                Path(source).unlink(missing_ok=True)

    def open_example(self, index: int, visit: Visit) -> dict:
        return self._open(visit, self.example_files[index])

    def _in_field(self, session: Session) -> dict[str, Any]:
        return as_value(data_url(smaller(session.photo, FIELD)))

    def _open(self, visit: Visit, source: Path | io.BytesIO | Image.Image) -> dict:
        editor = self.studio.editor(visit.model)
        start = time.perf_counter()
        session = editor.open(source)
        found = {0: "", 1: "Found a face."}.get(len(session.faces), f"Found {len(session.faces)} faces.")
        return self._opened(visit, session, f"{found} Opened in {milliseconds(start):.0f} ms.")

    def _opened(self, visit: Visit, session: Session, text: str) -> dict:
        """Everything on the page that depends on the photo."""
        faces = [smaller(session.photo.crop(tuple(map(round, face.box))), 160) for face in session.faces]
        before = data_url(session.picture)
        several = len(faces) > 1
        visit = replace(visit, session=session, before=before, full=None)
        return {
            **self._show(visit, preview=False, text=text),
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
        start = time.perf_counter()
        session = self.studio.editor(visit.model).choose_face(visit.session, event.index)
        text = f"Face {event.index + 1} of {len(session.faces)} opened in {milliseconds(start):.0f} ms."
        return self._opened(visit, session, text)

    def move(
        self, bank: str, rest: bool, visit: Visit, fidelity: float | None, strengths: dict[str, float | None]
    ) -> dict:
        """The sliders stand somewhere else; `rest` says that they have stopped moving."""
        if bank != visit.model:
            return gr.skip()  # sliders of the model before, still on their way out
        visit = self.studio.move(visit, strengths, fidelity)
        if visit.session is None:
            return {self.visit: visit, self.status: status_line("Choose a photo first; the sliders will act on it.")}
        return self._show(visit, preview=not rest)

    def change_view(self, visit: Visit, event: gr.SelectData) -> dict:
        return self._show(replace(visit, view=VIEWS[event.index]), preview=False)

    def _show(self, visit: Visit, preview: bool, text: str = "") -> dict:
        """The result in the open tab."""
        if visit.session is None:
            return {self.visit: visit}
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
        return {self.visit: visit, **value, self.status: status_line(text or self.studio.edits(visit), detail)}

    def load_model(self, name: str, progress=gr.Progress()) -> dict:  # noqa: B008
        """Have the chosen model ready; the next handler changes over to it."""
        self.studio.editor(name, lambda done, total: progress((done >> 20, total >> 20), "Downloading", unit="MB"))
        return {self.status: status_line(f"{label(name)} is ready.", self.studio.where(name))}

    def change_model(self, name: str, visit: Visit) -> dict:
        """The photo, opened again with another model, whose sliders all stand at 0."""
        if name == visit.model or name not in self.studio:  # it could not be had
            return {self.picker: visit.model}
        fresh = Visit(name, view=visit.view)
        if visit.session is None:
            return {self.visit: fresh, self.bank: name}
        try:
            return {**self._open(fresh, visit.session.photo), self.bank: name}
        except PhotoError as error:
            gr.Warning(html.escape(str(error), quote=False))
            return {
                self.visit: fresh,
                self.bank: name,
                self.status: status_line(str(error), self.studio.where(name)),
                self.welcome: gr.Column(visible=True),
                **{part: gr.Column(visible=False) for part in (self.workspace, self.face_part, self.crop_part)},
            }

    def download_face(self, visit: Visit) -> dict:
        return self._download(visit, "face")

    def download_photo(self, visit: Visit) -> dict:
        return self._download(visit, "photo")

    def _download(self, visit: Visit, what: str) -> dict:
        """A PNG at full size in Gradio's temporary folder, which is emptied on schedule."""
        if visit.session is None:
            raise PhotoError("The photo is no longer here, because this page was disconnected; choose it again.")
        visit, picture, _ = self.studio.render(visit)
        picture = picture if what == "face" else self.studio.paste(visit, picture)
        settings = {"model": Path(visit.model).name, "strengths": visit.strengths, "fidelity": visit.fidelity}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"edited-{what}.png"
            save_png(picture, path, settings)
            kept = self.file.move_resource_to_block_cache(path)
        text = f"{path.name} is {picture.width} × {picture.height} pixels."
        return {
            self.visit: visit,
            self.file: {"path": kept, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}},
            self.status: status_line(text, self.studio.where(visit.model)),
        }

    def forget(self, request: gr.Request) -> None:
        """The page was closed: its photo goes at once, not after Gradio's hour."""
        self.blocks.state_holder.delete_state(request.session_hash)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description="Serve the page on which photos are edited.")
    parser.add_argument("--model", help="a name from checkpoints/registry.toml, a published .pt file or a model folder")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for the whole network (default: this machine)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    return parser.parse_args(arguments)


def first_editor(name: str) -> tuple[Studio, str, str]:
    """(studio, the name of the model it starts with, why that is not the wanted one or an empty sentence)."""
    if name not in registry() and not Path(name).exists():
        raise ModelError(f"There is no model {name!r}; use one of {', '.join(registry())}, or the path of a model.")
    model, notice = load_or_demo(name)
    name = "demo" if notice else name
    return Studio(name, Editor(model)), name, notice or ""


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until interrupted. Returns the exit code."""
    chosen = options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        if chosen.port:  # a port in use is told at once, not after the model has been loaded
            socket.create_server((chosen.host or "127.0.0.1", chosen.port)).close()
        page = Page(*first_editor(chosen.model or default_model_name()))
        page.blocks.queue(max_size=200).launch(
            server_name=chosen.host,
            server_port=chosen.port,
            theme=gr.themes.Base(neutral_hue="stone", font=FONTS, font_mono=["ui-monospace", "Consolas", "monospace"]),
            css=(HERE / "page" / "page.css").read_text(encoding="utf-8"),
            head=f"<script>{(HERE / 'page' / 'page.js').read_text(encoding='utf-8')}</script>",
            footer_links=[],
            run_history=False,
            max_file_size="100mb",
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except E4EError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"app.py: the page cannot listen there ({error}); choose another --host or --port.", file=sys.stderr)
        return 2
    print(f"The page is at {page.blocks.local_url} (Ctrl+C ends it).", flush=True)
    page.blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
