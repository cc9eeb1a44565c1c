"""Sliders from words: found in a queue of their own, so that nobody's pictures wait, and kept with the visit's own."""

import html
import threading
from typing import Any

import gradio as gr

from editing.text import LONGEST, why_not
from page import own
from page.incoming import HIDDEN, QUIETLY, RAW
from page.layout import Layout
from page.parts import as_value, data_url, status_line
from page.studio import Visit


class Describing(Layout):
    """The part "In words" of the accordion "Find new sliders"."""

    def _lay_out_describing(self) -> None:
        reason = why_not()
        self._searches: dict[str, threading.Event] = {}  # of the pages that are searching, by Gradio's session
        self.described = gr.State(None)  # (model, the Direction last found, None if there is none)
        gr.HTML("<p>In words: describe a face as it is, and as it should become.</p>")
        field = {"max_length": LONGEST, "lines": 1, "interactive": not reason}
        self.neutral = gr.Textbox("a face", label="From", elem_id="neutral", **field)
        self.target = gr.Textbox(label="To", placeholder="a face with a beard", elem_id="target", **field)
        gr.HTML(f"<p>{html.escape(reason)}</p>", visible=bool(reason), elem_id="no-words")
        with gr.Row(elem_classes="pair"):
            self.describe = gr.Button("Make a slider", size="sm", interactive=not reason, elem_id="describe")
            self.cancel_words = gr.Button("Cancel", size="sm", interactive=False, elem_id="cancel-words")
        self.described_ends = gr.Gallery(
            show_label=False, container=False, columns=3, allow_preview=False, buttons=[], elem_id="described"
        )

    def _wire_describing(self, changed: list) -> None:
        """`changed`: what another slider changes on the page."""
        handle, at_once = self._in_sentences, {"queue": False, **HIDDEN, **RAW}
        buttons = [self.describe, self.cancel_words]
        begun = self.describe.click(
            handle(self.begin_search), [self.visit], [self.described, *buttons, self.status], **at_once
        )
        done = begun.then(
            handle(self.search),
            [self.target, self.neutral, self.visit],
            [self.described, self.status],
            concurrency_id="describing",
            concurrency_limit=1,
            show_progress_on=[self.status],
            **RAW,
        )
        taken = [*changed, self.described_ends]
        taken_over = done.then(handle(self.take_slider), [self.described, self.visit], taken, **QUIETLY)
        # Whatever came of it, and where the queue is full, which `then` does not follow.
        for ended in (done.failure, taken_over.failure, taken_over.then):
            ended(handle(self.give_up_search), None, buttons, **at_once)
        self.cancel_words.click(handle(self.cancel_search), None, [self.status, self.cancel_words], **at_once)
        shown = [self.described_ends, self.status]
        self.opened.change(handle(self.show_described), [self.described, self.visit], shown, **QUIETLY)

    def _search_buttons(self, searching: bool) -> dict:
        return {
            self.describe: gr.Button(interactive=not searching),
            self.cancel_words: gr.Button(interactive=searching),
        }

    def begin_search(self, visit: Visit, request: gr.Request) -> dict:
        own.check_room(visit)
        self._searches[request.session_hash] = threading.Event()
        text = "Searching; it may wait for that of others."
        return {self.described: None, **self._search_buttons(True), self.status: status_line(text)}

    def search(
        self,
        target: Any,
        neutral: Any,
        visit: Visit,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it here)
    ) -> dict:
        stop = self._searches.get(request.session_hash)
        if stop is None or stop.is_set():  # nothing was begun, cancelled while it waited, or the page is closed
            return {self.described: None}
        found = self.studio.describe(
            visit,
            (str(target or ""), str(neutral or "")),
            lambda done, total: progress((done >> 20, total >> 20), "Downloading", unit="MB"),
            lambda done, total: progress((done, total), "Looking at faces", unit="faces"),
            stop.is_set,
        )
        return {self.described: None if found is None else (visit.model, found)}

    def take_slider(self, described: Any, visit: Visit, request: gr.Request) -> dict:
        """Keep what was found as a slider of this visit, if it was not cancelled and its model is still there."""
        stop = self._searches.pop(request.session_hash, None)
        none = self.show_described(None, visit)
        if stop is not None and stop.is_set():
            return {**none, self.status: status_line("Cancelled; there is no new slider.")}
        if described is None:  # a sentence says why
            return none
        model, direction = described
        if model != visit.model:
            return {**none, self.status: status_line("Another model is open by now; describe the slider again.")}
        visit = own.keep_found(self.studio, visit, direction)
        text = f"{direction.label} is a slider now, under “My own”."
        return {**self._with_own(visit, text), **self.show_described(described, visit)}

    def show_described(self, described: Any, visit: Visit) -> dict:
        """The face at both ends of the slider last found, and at 0."""
        model, direction = described or (None, None)
        pictures = self.studio.ends(visit, [direction]) if model == visit.model else []
        return {
            self.described_ends: [
                {"image": as_value(data_url(picture)), "caption": sign}
                for picture, sign in zip(pictures, "−0+", strict=False)
            ]
        }

    def give_up_search(self, request: gr.Request) -> dict:
        self.stop_search(request)
        return self._search_buttons(False)

    def cancel_search(self, request: gr.Request) -> dict:
        if request.session_hash in self._searches:
            self._searches[request.session_hash].set()
        return {self.status: status_line("Cancelling."), self.cancel_words: gr.Button(interactive=False)}

    def stop_search(self, request: gr.Request) -> None:
        """For a page that is closed: its search ends with the next pictures."""
        stop = self._searches.pop(request.session_hash, None)
        if stop is not None:
            stop.set()
