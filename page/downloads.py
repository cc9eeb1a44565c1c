"""Files for the person at the page: pictures, films, settings."""

import json
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from editing.animation import FRAMES, RATE, save_film
from editing.export import save_png
from page.incoming import RAW, check_open
from page.layout import Layout, Stands
from page.parts import status_line
from page.sheets import MORPH, film, grid
from page.studio import Visit, milliseconds


class Downloads(Layout):
    """The accordion "Film of a slider", and the handlers of all download buttons."""

    def _wire_downloads(self, stands: Stands) -> None:
        """`stands`: see `Page._lay_out_bank`. What is saved is what the page shows, even at once after a movement."""
        for button, save in (
            (self.save_face, self.download_face),
            (self.save_photo, self.download_photo),
            (self.save_grid, self.download_grid),
            (self.save_settings, self.download_settings),
        ):
            self._deliver(stands(button).then, save, [self.visit])
        inputs = [self.visit, self.path, self.film_kind, self.film_whole]
        self._deliver(stands(self.animate).then, self.download_film, inputs, queue="films", show_progress="full")

    def _deliver(
        self,
        event: Callable,
        save: Callable[..., dict],
        inputs: list,
        queue: str = "files",
        show_progress: Literal["full", "minimal"] = "minimal",
    ) -> None:
        """`event`, such as `button.click`, makes a file, which the browser then stores.

        Files and films have queues of their own, so that sliders go on. The visit may move on meanwhile: it is no
        output.
        """
        save = self._in_sentences(save, failed={self.file: None})
        options = {"concurrency_id": queue, "concurrency_limit": 1, **RAW}
        options |= {"show_progress": show_progress, "show_progress_on": [self.status]}
        made = event(save, inputs, [self.file, self.status], **options)
        made.success(fn=None, js="() => window.downloadReady()")

    def _lay_out_films(self) -> None:
        self._films: dict[str, threading.Event] = {}  # what stops the last film of each page, by Gradio's session
        with gr.Accordion("Film of a slider", open=False, elem_id="film", elem_classes="card"):
            paths = self._paths(Visit(self.start))
            self.path = gr.Dropdown(
                paths, value=paths[0][1], label="What moves", filterable=False, interactive=True, elem_id="path"
            )
            with gr.Row(elem_classes="pair"):
                self.film_kind = gr.Radio(
                    ["MP4", "GIF"], value="MP4", label="As", interactive=True, elem_id="film-kind"
                )
                self.film_whole = gr.Checkbox(label="In the photo", interactive=True, elem_id="film-whole")
            self.animate = gr.Button("Make the film", size="sm", elem_id="animate")

    def _paths(self, visit: Visit) -> list[tuple[str, str]]:
        """What can move in a film, as (what people read, name)."""
        sliders = [(direction.label, name) for name, direction in self.studio.directions(visit).items()]
        return [*sliders, ("Morph to the second photo", MORPH)]

    def download_film(
        self,
        visit: Visit,
        path: Any,
        kind: Any,
        whole: Any,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it here)
    ) -> dict:
        check_open(visit)
        stop = self._films[request.session_hash] = threading.Event()
        kind = "gif" if kind == "GIF" else "mp4"
        pictures = film(self.studio, visit, path, whole is True, 512 if kind == "gif" else 1024)
        name, start = f"edited-film.{kind}", time.perf_counter()
        pictures = takewhile(lambda _: not stop.is_set(), pictures)
        shown = progress.tqdm(pictures, desc="Making the film", total=FRAMES, unit="pictures")
        made = self._download(visit, name, lambda target: save_film(shown, target), "")
        seconds = milliseconds(start) / 1000
        text = f"{name} lasts {FRAMES / RATE:.1f} s; made in {seconds:.0f} s."
        return {**made, self.status: status_line(text, self.studio.where(visit.model))}

    def stop_film(self, request: gr.Request) -> None:
        """For a page that is closed: its film ends with the next picture."""
        if stop := self._films.pop(request.session_hash, None):
            stop.set()

    def download_face(self, visit: Visit) -> dict:
        check_open(visit)
        _, picture, _ = self.studio.render(visit)
        return self._picture(visit, picture, "edited-face.png")

    def download_photo(self, visit: Visit) -> dict:
        check_open(visit)
        _, picture, _ = self.studio.render(visit)
        return self._picture(visit, self.studio.paste(visit, picture), "edited-photo.png")

    def download_grid(self, visit: Visit) -> dict:
        check_open(visit)
        return self._picture(visit, grid(self.studio, visit), "edited-grid.png")

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
            self.file: {"path": kept, "orig_name": name, "meta": {"_type": "gradio.FileData"}},
            self.status: status_line(text, self.studio.where(visit.model)),
        }
