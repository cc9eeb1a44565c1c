"""Edits that outlast a moment: presets in the browser, settings in files."""

from dataclasses import replace
from typing import Any

import gradio as gr

from page.incoming import QUIETLY, chosen, uploaded_file
from page.layout import Layout, Stands
from page.parts import status_line
from page.presets import Edits, built_in, edits_within, keep, of_face, own, read_settings
from page.studio import Visit


class Keeping(Layout):
    """The handlers of "Presets and settings"."""

    def _wire_keeping(self, edited: list) -> None:
        """`edited`: what the edits change on the page."""
        handle = self._in_sentences
        inputs = [self.presets, self.kept, self.visit]
        self.presets.click(handle(self.apply_preset), inputs, edited, trigger_mode="multiple", **QUIETLY)
        self.blocks.load(handle(self.list_presets), [self.kept, self.visit], [self.presets, self.status], **QUIETLY)
        self.load_settings.upload(handle(self.apply_settings), [self.load_settings, self.visit], edited, **QUIETLY)

    def _wire_presets(self, stands: Stands) -> None:
        """`stands`: see `Page._lay_out_bank`."""
        inputs = [self.preset_name, self.kept, self.visit]
        outputs = [self.kept, self.presets, self.preset_name, self.status]
        stands(self.keep).then(self._in_sentences(self.keep_preset), inputs, outputs, **QUIETLY)
        stands(self.drop).then(self._in_sentences(self.drop_preset), inputs, outputs, **QUIETLY)

    def _presets(self, visit: Visit, kept: Any) -> dict[str, Edits]:
        directions = self.studio.directions(visit)
        return {**built_in(directions), **own(kept, visit.model, directions)}

    def _chips(self, visit: Visit, kept: Any) -> dict:
        return {self.presets: gr.Dataset(samples=[[name] for name in self._presets(visit, kept)])}

    def list_presets(self, kept: Any, visit: Visit) -> dict:
        return self._chips(visit, kept)

    def apply_preset(self, index: Any, kept: Any, visit: Visit) -> dict:
        """A preset is about the sliders; what is mixed in and where the edit may go stays."""
        preset = chosen([*self._presets(visit, kept).values()], index)
        edits = replace(visit.edits, strengths=preset.strengths, fidelity=preset.fidelity)
        return self._edited(self.studio.edited(visit, edits))

    def keep_preset(self, name: Any, kept: Any, visit: Visit) -> dict:
        return self._kept(keep(kept, name, visit.model, visit.edits), visit, "The preset is kept in this browser.")

    def drop_preset(self, name: Any, kept: Any, visit: Visit) -> dict:
        return self._kept(keep(kept, name, visit.model, None), visit, "The preset is deleted.")

    def _kept(self, kept: list[dict[str, Any]], visit: Visit, text: str) -> dict:
        status = status_line(text, self.studio.where(visit.model))
        return {self.kept: kept, **self._chips(visit, kept), self.preset_name: "", self.status: status}

    def apply_settings(self, file: dict[str, Any] | None, visit: Visit) -> dict:
        """The edits of a settings file, or of a picture that was downloaded here."""
        if file is None:
            return gr.skip()
        path = uploaded_file(file, self.load_settings.GRADIO_CACHE)
        try:
            settings = read_settings(path)
        finally:
            self._drop_upload(path)
        settings = of_face(settings, visit.session.face if visit.session else 0)
        directions = self.studio.directions(visit)
        visit = self.studio.edited(visit, edits_within(directions, settings))
        missing = sum(name not in directions for name in settings["strengths"])
        text = f"Settings loaded: {self.studio.words(visit)}."
        if missing:
            text += f" {missing} of their sliders {'is' if missing == 1 else 'are'} not this model's and left out."
        if visit.edits.mix and visit.second is None:
            text += " They mix in a second photo; choose it under “Mix with a second photo”."
        return self._edited(visit, text)
