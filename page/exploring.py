"""Finding new sliders: components of the model as rows of thumbnails, kept ones as sliders of this visit."""

from typing import Any

import gradio as gr

from editing.packing import LONGEST_LABEL
from errors import PhotoError
from page import own
from page.incoming import QUIETLY, number_of, uploaded_file
from page.layout import Layout
from page.parts import as_value, data_url, status_line
from page.presets import number_within
from page.studio import COMPONENTS, METHODS, Look, Visit

ROWS = 4  # components shown at a time
PAGES = -(-COMPONENTS // ROWS)
WIDEST = 6.0  # standard deviations; a slider's range, at most


class Exploring(Layout):
    """The accordion "Find new sliders"."""

    def _lay_out_exploring(self) -> None:
        last = self.studio.editor(self.start).model.num_layers - 1
        with gr.Accordion("Find new sliders", open=False, elem_id="exploring", elem_classes="card") as self.explorer:
            self.explored = gr.State(False)  # whether it is open
            self.sheet = gr.State(0)  # which page of rows
            self.component = gr.State(None)  # which component is chosen
            gr.HTML("<p>Ways in which this model's faces differ most. Choose one and give it a name.</p>")
            self.method = gr.Radio(
                [*METHODS], value=next(iter(METHODS)), label="Found by", elem_id="method", elem_classes="pills"
            )
            self.first = gr.Slider(0, last, value=0, step=1, label="From layer", buttons=[], elem_id="first")
            self.last = gr.Slider(0, last, value=last, step=1, label="To layer", buttons=[], elem_id="last")
            self.reach = gr.Slider(
                0.5, WIDEST, value=3, step=0.5, label="Range", buttons=[], elem_id="reach", interactive=True
            )
            self.rows = gr.Gallery(
                show_label=False, container=False, columns=3, allow_preview=False, buttons=[], elem_id="rows"
            )
            with gr.Row(elem_classes="pair"):
                self.back = gr.Button("Previous", size="sm", elem_id="rows-back")
                self.forth = gr.Button("Next", size="sm", elem_id="rows-forth")
            self.own_name = gr.Textbox(
                label="Name of the slider", max_length=LONGEST_LABEL, lines=1, interactive=True, elem_id="own-name"
            )
            with gr.Row(elem_classes="pair"):
                self.keep_own = gr.Button("Keep as slider", size="sm", elem_id="keep-own")
                self.drop_own = gr.Button("Delete slider", size="sm", elem_id="drop-own")
            self._lay_out_describing()
            with gr.Row(elem_classes="pair"):
                self.save_own = gr.Button("Save my sliders", size="sm", elem_id="save-own")
                self.load_own = gr.UploadButton(
                    "Load sliders", size="sm", file_types=[".safetensors"], elem_id="load-own"
                )

    def _wire_exploring(self, edited: list) -> None:
        """`edited`: what the edits change on the page."""
        handle, look = self._in_sentences, [self.method, self.first, self.last, self.reach]
        shown = [self.rows, self.sheet, self.component, self.own_name, self.status]
        quietly = {"trigger_mode": "always_last", **QUIETLY}
        self.explorer.expand(handle(self.explore), [self.visit, self.sheet, *look], [*shown, self.explored], **quietly)
        self.explorer.collapse(lambda: False, None, self.explored, **QUIETLY)
        for turn, by in ((self.back, -1), (self.forth, 1)):
            inputs = [self.visit, self.sheet, *look]
            turn.click(handle(self._turning(by)), inputs, shown, **{**QUIETLY, "trigger_mode": "multiple"})
        self.method.input(handle(self.choose_method), [self.visit, self.sheet, *look], shown, **quietly)
        moves = [event for each in look[1:] for event in (each.input, each.release)]
        gr.on(moves, handle(self.look_again), [self.visit, self.sheet, *look], [self.rows, self.status], **quietly)
        # Another photo, face or model, or other sliders.
        inputs = [self.explored, self.visit, self.sheet, *look]
        gr.on([self.opened.change, self.bank.change], handle(self.refresh), inputs, [self.rows, self.status], **quietly)
        self.rows.select(handle(self.choose_component), [self.visit, self.sheet, *look], shown, **QUIETLY)

        changed = [*edited, self.bank, self.path, self.own_name]
        kept = [self.component, self.own_name, self.visit, *look]
        self.keep_own.click(handle(self.keep_component), kept, changed, **QUIETLY)
        self.drop_own.click(handle(self.drop_component), [self.own_name, self.visit], changed, **QUIETLY)
        self._wire_describing(changed)
        self.load_own.upload(handle(self.load_sliders), [self.load_own, self.visit], changed, **QUIETLY)
        self._deliver(self.save_own.click, self.save_sliders, [self.visit])

    def _look(self, visit: Visit, method: Any, first: Any, last: Any, reach: Any) -> Look:
        """What the fields say, whatever was sent."""
        end = self.studio.editor(visit.model).model.num_layers - 1
        first, last = (round(number_within(each, 0, end, rest)) for each, rest in ((first, 0), (last, end)))
        method = method if isinstance(method, str) and method in METHODS else next(iter(METHODS))
        layers = (min(first, last), max(first, last) + 1)
        return Look(method, layers, number_within(reach, 0.5, WIDEST, 3.0))

    def _pictures(self, visit: Visit, sheet: Any, *fields: Any) -> list[dict[str, Any]]:
        """The thumbnails of a page, three for each component: −, 0, +."""
        sheet = sheet if type(sheet) is int and 0 <= sheet < PAGES else 0
        numbers = range(sheet * ROWS, min((sheet + 1) * ROWS, COMPONENTS))
        pictures = self.studio.explore(visit, self._look(visit, *fields), numbers)
        captions = [f"{number} {sign}".strip() for number in numbers for sign in ("−", "", "+")]
        return [
            {"image": as_value(data_url(picture)), "caption": caption}
            for picture, caption in zip(pictures, captions, strict=False)
        ]

    def explore(self, visit: Visit, sheet: Any, *fields: Any) -> dict:
        """The accordion was opened."""
        return {self.rows: self._pictures(visit, sheet, *fields), self.explored: True}

    def look_again(self, visit: Visit, sheet: Any, *fields: Any) -> dict:
        return {self.rows: self._pictures(visit, sheet, *fields)}

    def choose_method(self, visit: Visit, sheet: Any, *fields: Any) -> dict:
        """The other method's components are others: the chosen one is not among them."""
        return {**self.look_again(visit, sheet, *fields), self.component: None, self.own_name: ""}

    def refresh(self, explored: Any, visit: Visit, sheet: Any, *fields: Any) -> dict:
        return self.look_again(visit, sheet, *fields) if explored is True else gr.skip()

    def _turning(self, by: int):
        def turn(visit: Visit, sheet: Any, *fields: Any) -> dict:
            sheet = (sheet + by) % PAGES if type(sheet) is int else 0
            return {self.rows: self._pictures(visit, sheet, *fields), self.sheet: sheet, self.component: None}

        return turn

    def choose_component(self, event: gr.SelectData, visit: Visit, sheet: Any, *fields: Any) -> dict:
        sheet = sheet if type(sheet) is int and 0 <= sheet < PAGES else 0
        number = sheet * ROWS + number_of(range(3 * ROWS), event.index) // 3
        name = f"{self._look(visit, *fields).method} {number}"
        status = status_line(f"{name} is chosen; give it a name and keep it.", self.studio.where(visit.model))
        return {self.component: number, self.own_name: name, self.status: status}

    def keep_component(self, number: Any, name: Any, visit: Visit, *fields: Any) -> dict:
        if type(number) is not int or not 0 <= number < COMPONENTS:
            raise PhotoError("No component is chosen; click on one of the small pictures first.")
        visit = own.keep(self.studio, visit, self._look(visit, *fields), number, name)
        return self._with_own(visit, "The slider is kept, under “My own”.")

    def drop_component(self, name: Any, visit: Visit) -> dict:
        return self._with_own(own.drop(self.studio, visit, name), "The slider is deleted.")

    def load_sliders(self, file: Any, visit: Visit) -> dict:
        if file is None:
            return gr.skip()
        path = uploaded_file(file, self.load_own.GRADIO_CACHE)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PhotoError("The file is not there any more; choose it again.") from error
        finally:
            self._drop_upload(path)
        before = len(visit.own.get(visit.model, {}))
        visit = own.load(self.studio, visit, data)
        count = len(visit.own[visit.model]) - before
        return self._with_own(visit, f"{count} new slider{'' if count == 1 else 's'}, under “My own”.")

    def save_sliders(self, visit: Visit) -> dict:
        sliders = visit.own.get(visit.model)
        if not sliders:
            raise PhotoError("There are no sliders of your own yet; keep one first.")
        text = "The file holds your sliders for this model, nothing of the photo."
        return self._download(visit, "my-sliders.safetensors", lambda path: path.write_bytes(sliders.packed()), text)

    def _with_own(self, visit: Visit, text: str) -> dict:
        return {**self._edited(visit, text), **self._banked(visit), self.own_name: ""}
