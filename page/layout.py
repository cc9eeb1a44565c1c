"""What stands where on the page, without what it does."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from alignment import FEATHER
from page.parts import BROWSE, FOOTER, HEADER, REGION_NAMES, WELCOME, picture_field, status_line
from page.presets import LEAST_FEATHER, LONGEST_NAME, built_in
from page.studio import Studio, Visit, label

# From a button to the event that its click is, see `Page._lay_out_bank`.
Stands = Callable[[gr.Button], Dependency]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class Layout:
    """The components, as attributes; `Page` wires them."""

    def __init__(self, studio: Studio, model: str, notice: str = ""):
        self.studio = studio
        self.start = model
        self.example_files = sorted(path for path in EXAMPLES.glob("*") if path.suffix in (".png", ".jpg", ".webp"))
        with gr.Blocks(
            title="Edit a face", analytics_enabled=False, fill_width=True, delete_cache=(60, 900)
        ) as self.blocks:
            self.visit = gr.State(Visit(model))
            self.bank = gr.State(self._bank(Visit(model)))  # which sliders are on the page
            # When a photo or face was last opened, as text. (A picture field's own `change` comes again and again.)
            self.opened = gr.State("")
            self.ready = gr.State(model)  # the model that was chosen last and could be had
            # Own presets, in the browser's storage; the name and key must stay, or they are lost.
            self.kept = gr.BrowserState([], storage_key="edit-a-face-presets", secret="edit-a-face")
            gr.HTML(HEADER, elem_id="header")
            if notice:
                gr.HTML(f"<p role='alert'>{html.escape(notice)}</p>", elem_id="notice")
            with gr.Row(elem_id="columns", equal_height=False):
                with gr.Column(elem_id="left", min_width=260):
                    self._lay_out_photo()
                with gr.Column(elem_id="centre", min_width=320):
                    self._lay_out_result()
                with gr.Column(elem_id="right", min_width=280):
                    self._lay_out_controls()
            gr.HTML(FOOTER, elem_id="footer")
            self._wire()

    def _wire(self) -> None:
        raise NotImplementedError

    def _bank(self, visit: Visit) -> dict[str, Any]:
        raise NotImplementedError

    def _lay_out_bank(self, bank: dict[str, Any], visit: Visit) -> None:
        raise NotImplementedError

    def _lay_out_mixing(self) -> None:
        raise NotImplementedError

    def _lay_out_exploring(self) -> None:
        raise NotImplementedError

    def _lay_out_describing(self) -> None:
        raise NotImplementedError

    def _lay_out_films(self) -> None:
        raise NotImplementedError

    def _lay_out_refining(self) -> None:
        raise NotImplementedError

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
        with gr.Column(visible=False, elem_classes="part", elem_id="face-part") as self.face_part:
            gr.HTML("<h2>Which face? Each keeps its own edits.</h2>")
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
                    with gr.Row(elem_id="edge", equal_height=True):
                        self.region = gr.Radio(
                            REGION_NAMES, value="everything", label="Apply only to", interactive=True, elem_id="region"
                        )
                        self.feather = gr.Slider(
                            LEAST_FEATHER,
                            0.6,
                            value=FEATHER,
                            step=0.01,
                            label="Soft edge",
                            buttons=["reset"],
                            elem_id="feather",
                            interactive=True,
                        )
            with gr.Row(elem_id="downloads"):
                self.save_face = gr.Button("Download face", variant="primary", elem_id="save-face")
                self.save_photo = gr.Button("Download photo", elem_id="save-photo")
                another = gr.Button("New photo", elem_id="another")
            another.click(fn=None, js=BROWSE)
        self.strip = gr.Gallery(
            show_label=False, container=False, columns=8, allow_preview=False, buttons=[], elem_id="strip"
        )
        self.file = gr.DownloadButton(visible="hidden", elem_id="file")
        self.status = gr.HTML(status_line("Ready for a photo.", self.studio.where(self.start)), elem_id="status")

    def _lay_out_controls(self) -> None:
        self.picker = gr.Dropdown(
            [(label(name), name) for name in self.studio.names],
            value=self.start,
            label="Model",
            filterable=False,
            elem_id="model",
        )
        # page.js clicks it when the sliders come to rest: so the picture that stays is a full one whichever way a
        # slider was moved.
        self.settle = gr.Button(visible="hidden", elem_id="settle")
        # Where the server wants the sliders, as JSON: undo, presets and another face move them.
        self.levels = gr.Textbox(visible="hidden", elem_id="levels")
        gr.render([self.bank, self.visit], triggers=[self.blocks.load, self.bank.change])(self._lay_out_bank)
        self._lay_out_mixing()
        self._lay_out_exploring()
        self._lay_out_films()
        with gr.Accordion("Presets and settings", open=False, elem_id="more", elem_classes="card"):
            names = [[name] for name in built_in(self.studio.editor(self.start).directions)]
            self.presets = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=names,
                show_label=False,
                type="index",
                samples_per_page=60,
                elem_id="presets",
            )
            self.preset_name = gr.Textbox(
                label="Name for these edits",
                max_length=LONGEST_NAME,
                lines=1,
                interactive=True,
                elem_id="preset-name",
            )
            with gr.Row(elem_classes="pair"):
                self.keep = gr.Button("Keep as preset", size="sm", elem_id="keep-preset")
                self.drop = gr.Button("Delete preset", size="sm", elem_id="delete-preset")
            with gr.Row(elem_classes="pair"):
                self.save_settings = gr.Button("Save settings", size="sm", elem_id="save-settings")
                self.load_settings = gr.UploadButton(
                    "Load settings", size="sm", file_types=[".json", ".png"], elem_id="load-settings"
                )
            self.save_grid = gr.Button("Download a −/0/+ grid", size="sm", elem_id="save-grid")
        self._lay_out_refining()
        with gr.Row(elem_id="steps"):
            self.undo = gr.Button("Undo", interactive=False, elem_id="undo")
            self.redo = gr.Button("Redo", interactive=False, elem_id="redo")
            self.reset = gr.Button("Reset all", elem_id="reset-all")
