"""The second photo, whose styles are mixed into the first."""

import time
from dataclasses import replace
from typing import Any

import gradio as gr

from errors import PhotoError
from page.incoming import WORK, uploaded
from page.layout import Layout
from page.parts import FIELD, amount_slider, as_value, data_url, smaller
from page.studio import Visit

AMOUNTS = {  # the parts of editing.mixing.Mix, and what they are called
    "morph": ("Morph", "All the way to the second face at 1"),
    "coarse": ("Coarse styles", "Pose, shape of the face, hair"),
    "middle": ("Middle styles", "Features, expression"),
    "fine": ("Fine styles", "Colours, light, skin"),
}


class Mixing(Layout):
    """The accordion "Mix with a second photo"."""

    def _lay_out_mixing(self) -> None:
        with gr.Accordion("Mix with a second photo", open=False, elem_id="mixing", elem_classes="card"):
            self.second = gr.Image(
                label="Second photo", sources=["upload", "clipboard"], buttons=[], height=150, elem_id="second"
            )
            self.amounts = {part: amount_slider(part, *words) for part, words in AMOUNTS.items()}

    def _wire_mixing(self, shown: list) -> None:
        """`shown`: what a new picture changes on the page."""
        inputs, outputs = [self.second, self.visit], [*shown, self.second]
        for event in (self.second.input, self.second.clear):
            event(self._in_sentences(self.open_second), inputs, outputs, show_progress_on=[self.status], **WORK)

    def open_second(self, file: dict[str, Any] | None, visit: Visit) -> dict:
        """Another second photo, or none any more; one that cannot be opened leaves what was there."""
        if file is None:
            return {
                **self._rested(self.studio.open_second(visit, None), "The second photo is gone."),
                self.second: None,
            }
        source = uploaded(file, self.second.GRADIO_CACHE)
        self._make_room()
        try:
            visit = replace(self.studio.open_second(visit, source), opened=time.perf_counter())
        except PhotoError as error:
            return {self.second: self._second_in_field(visit), **self._still_here(error, visit.second)}
        finally:
            self._drop_upload(source)
        text = "" if visit.edits.mix else "The second photo is there; move Morph, or take some of its styles."
        return {**self._rested(visit, text), self.second: self._second_in_field(visit)}

    def _second_in_field(self, visit: Visit) -> dict[str, Any] | None:
        """Which face of the second photo is mixed in."""
        return None if visit.second is None else as_value(data_url(smaller(visit.second.picture, FIELD)))
