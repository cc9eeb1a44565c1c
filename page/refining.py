"""Closer to the photo: the page's refinements, which hold up nobody's sliders, not even those of the same page."""

import math
import threading
from typing import Any

import gradio as gr

from editing.refine import Refinement
from limits import limit
from page.incoming import HIDDEN, QUIETLY, RAW, check_open
from page.layout import Layout
from page.parts import status_line
from page.studio import Visit

HINT = """<p>The model's first answer is quick and easy to edit. <b>Refine</b> searches on from there for this photo;
<b>Refine more</b> also adapts the model to it, for this page alone. The sliders go on working.</p>"""


class Refining(Layout):
    """One refinement at a time per process, in a queue of its own; its result is taken over in the rendering queue.

    Meanwhile the sliders change the visit, so that a refinement returns a session, never a visit.
    """

    def _lay_out_refining(self) -> None:
        self.seconds = limit("E4E_REFINE_SECONDS")
        self._stops: dict[str, threading.Event] = {}  # of the pages that are refining, by Gradio's session
        self.found = gr.State(None)  # (the session it began with, Refinement), until it is taken over
        with gr.Accordion("Closer to the photo", open=False, elem_id="closer", elem_classes="card"):
            gr.HTML(HINT)
            with gr.Row(elem_classes="pair"):
                self.refine_codes = gr.Button("Refine", size="sm", elem_id="refine")
                self.tune_generator = gr.Button("Refine more", size="sm", elem_id="refine-more")
            with gr.Row(elem_classes="pair"):
                self.cancel = gr.Button("Cancel", size="sm", interactive=False, elem_id="cancel-refining")
                self.unrefine = gr.Button("Back to the inversion", size="sm", elem_id="unrefine")

    def _wire_refining(self, shown: list[gr.components.Component]) -> None:
        """`shown` is what a new picture changes."""
        handle = self._in_sentences
        buttons = [self.refine_codes, self.tune_generator, self.cancel, self.unrefine]
        at_once = {"queue": False, **HIDDEN, **RAW}
        own_queue = {"concurrency_id": "refining", "concurrency_limit": 1, "show_progress_on": [self.status], **RAW}
        for button, improve in ((self.refine_codes, self.refine), (self.tune_generator, self.refine_more)):
            begun = button.click(handle(self.begin_refining), [self.visit], [*buttons, self.status], **at_once)
            done = begun.then(handle(improve), [self.visit], [self.found, self.status], **own_queue)
            taken_over = done.then(handle(self.take_over), [self.found, self.visit], shown, **QUIETLY)
            # Whatever came of it, and where the queue is full, which `then` does not follow.
            for ended in (done.failure, taken_over.failure, taken_over.then):
                ended(handle(self.give_up), None, [self.found, *buttons], **at_once)
        self.cancel.click(handle(self.cancel_refining), None, [self.status, self.cancel], **at_once)
        self.unrefine.click(handle(self.back_to_inversion), [self.visit], shown, **QUIETLY)

    def _buttons(self, refining: bool) -> dict:
        others = (self.refine_codes, self.tune_generator, self.unrefine)
        return {button: gr.Button(interactive=not refining) for button in others} | {
            self.cancel: gr.Button(interactive=refining)
        }

    def begin_refining(self, visit: Visit, request: gr.Request) -> dict:
        check_open(visit)
        self._stops[request.session_hash] = threading.Event()
        return {**self._buttons(refining=True), self.status: status_line("Refining; it may wait for that of others.")}

    def refine(self, visit: Visit, request: gr.Request, progress=gr.Progress()) -> dict:  # noqa: B008
        return self._refine(visit, False, request, progress)

    def refine_more(self, visit: Visit, request: gr.Request, progress=gr.Progress()) -> dict:  # noqa: B008
        return self._refine(visit, True, request, progress)

    def _refine(self, visit: Visit, tune: bool, request: gr.Request, progress: gr.Progress) -> dict:
        stop = self._stops.get(request.session_hash)
        if stop is None or stop.is_set():  # nothing was begun, cancelled while it waited, or the page is closed
            return {self.found: None}

        def tell(done: int, total: int, left: float) -> None:
            progress((done, total), f"Refining, about {math.ceil(left)} s left", unit="steps")

        found = self.studio.refine(visit, tune, self.seconds, tell, stop.is_set)
        closed = request.session_hash not in self._stops
        return {self.found: None if closed or stop.is_set() else (visit.session, found)}

    def take_over(self, found: Any, visit: Visit, request: gr.Request) -> dict:
        """Show what was found, if it was not cancelled and its photo is still there."""
        stop = self._stops.pop(request.session_hash, None)
        if stop is not None and stop.is_set():
            return {self.status: status_line("Cancelled; the picture is as it was.")}
        if found is None:  # a sentence says why
            return gr.skip()
        began, refinement = found
        if visit.session is not began:
            return {self.status: status_line("Another face or photo is open by now; refine that one.")}
        visit = self.studio.refined(visit, refinement.session)
        return self._show(visit, preview=False, text=words(refinement))

    def give_up(self, request: gr.Request) -> dict:
        self.stop_refining(request)
        return {self.found: None, **self._buttons(refining=False)}

    def cancel_refining(self, request: gr.Request) -> dict:
        if request.session_hash in self._stops:
            self._stops[request.session_hash].set()
        return {self.status: status_line("Cancelling."), self.cancel: gr.Button(interactive=False)}

    def stop_refining(self, request: gr.Request) -> None:
        """For a page that is closed: its refinement ends with the next step, and nothing of it is kept."""
        stop = self._stops.pop(request.session_hash, None)
        if stop is not None:
            stop.set()

    def back_to_inversion(self, visit: Visit) -> dict:
        check_open(visit)
        return self._show(self.studio.refined(visit), preview=False, text="Back to the inversion.")


def words(refinement: Refinement) -> str:
    """What a refinement reached, for a person."""
    before, after = refinement.before, refinement.after
    text = f"Refined in {refinement.seconds:.1f} s: PSNR {before.psnr:.1f} → {after.psnr:.1f} dB"
    if before.identity is not None and after.identity is not None:
        text += f", identity distance {before.identity:.2f} → {after.identity:.2f}"
    return f"{text}."
