"""The page's endpoints for programs: /directions and /edit, described in docs/editing.md. Their names are stable.

They hold nothing between calls, so that any number of programs and pages share one process.
"""

import html
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from alignment import FEATHER
from alignment.masks import check_region
from editing.export import save_png
from errors import DirectionError, PhotoError
from page.incoming import in_sentences
from page.presets import Edits
from page.studio import Studio, Visit, milliseconds

STRENGTHS = {"type": "object", "additionalProperties": {"type": "number"}, "description": "slider -> strength"}
FAILED = "Something went wrong here; check what you send and try again."
FULL = "The memory of this machine does not suffice for that; try again later, or send a smaller photo."


def offer(studio: Studio, start: str) -> None:
    """Add the endpoints to the gr.Blocks that is being built; `start` is the model used where none is named."""

    def directions(model: str | None = None) -> list[dict[str, Any]]:
        """The sliders of a model.

        Args:
            model: one of the page's models, "" for its first one.
        Returns: for each slider its name, label, group, low and high; 0 is the unedited face.
        """
        found = studio.editor(model or start).directions
        return [
            {"name": name, "label": each.label, "group": each.group, "low": each.low, "high": each.high}
            for name, each in found.items()
        ]

    def edit(
        photo: bytes | None = None,
        strengths: dict[str, float] | None = None,
        fidelity: float | None = None,
        face: float | None = None,
        whole: bool | None = None,
        model: str | None = None,
        region: str | None = None,
        feather: float | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """Edit a face of a photo.

        Args:
            photo: the picture file.
            strengths: name of a slider -> strength, from low to high, or up to three times as far; {} is the face as
                the model sees it.
            fidelity: 0 takes edits most cleanly, 1 is closest to the photo.
            face: which of several faces, 0 for the best one.
            whole: whether to return the photo with the edited face in it, or the face alone.
            model: one of the page's models, "" for its first one.
            region: with `whole`, the only part to change: everything, mouth, eyes, skin or head.
            feather: how soft that part's edge is.
        Returns: a PNG at full size, and {"faces", "face", "width", "height", "milliseconds"}.
        """
        start_time = time.perf_counter()
        name = model or start
        editor = studio.editor(name)
        if not isinstance(strengths or {}, dict):
            raise DirectionError('Strengths are a dictionary of numbers, {"smile": 1.5}; send one.')
        fidelity = 1.0 if fidelity is None else fidelity
        editor.directions.check(strengths or {}, fidelity)
        region, feather = region or "everything", FEATHER if feather is None else feather
        check_region(region, feather)
        number = 0 if face is None else face
        if number != number or abs(number) > 1000 or number != int(number):
            raise PhotoError("The face is a whole number, 0 for the best one; send that.")
        if not photo:
            raise PhotoError("There is no photo; send a file as `photo`.")
        edits = Edits(strengths or {}, fidelity, region=region, feather=feather)
        visit = studio.open(Visit(name, edits=edits, face=int(number)), io.BytesIO(photo), int(number))
        visit, picture, _ = studio.render(visit)
        picture = studio.paste(visit, picture) if whole else picture
        report = {
            "faces": len(visit.session.faces),
            "face": int(number),
            "width": picture.width,
            "height": picture.height,
            "milliseconds": round(milliseconds(start_time)),
        }
        return _written(output, picture, studio.settings(visit)), report

    said = (_raise, studio.free_memory, FAILED, FULL)
    # A queue of its own: a program may name a model that has to be loaded first.
    queue = {"concurrency_id": "programs", "concurrency_limit": 1, "show_progress": "hidden"}
    with gr.Column(visible=False):
        model = gr.Textbox(label="model")
        table = gr.JSON(label="directions")
        gr.Button().click(in_sentences(directions, *said), [model], [table], api_name="directions", **queue)
        strengths = gr.JSON(label="strengths", value={})
        strengths.api_info = lambda: STRENGTHS  # Gradio's own describes no JSON schema, which MCP clients refuse
        inputs = [
            gr.File(label="photo", type="binary"),  # as a path, Gradio leaves an empty file behind at every call
            strengths,
            gr.Number(label="fidelity", value=1),
            gr.Number(label="face", value=0),
            gr.Checkbox(label="whole", value=False),
            gr.Textbox(label="model"),
            gr.Textbox(label="region", value="everything"),
            gr.Number(label="feather", value=FEATHER),
        ]
        output, report = gr.File(label="picture"), gr.JSON(label="report")
        gr.Button().click(in_sentences(edit, *said), inputs, [output, report], api_name="edit", **queue)


def _written(output: gr.File, picture: Image.Image, settings: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edited.png"
        save_png(picture, path, settings)
        return output.move_resource_to_block_cache(path)


def _raise(sentence: str) -> None:
    """As the error that gradio_client raises."""
    raise gr.Error(html.escape(sentence, quote=False), print_exception=False)
