"""The parts the page is made of: its texts, pictures on their way to the browser, sliders."""

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import Any

import gradio as gr
from PIL import Image

from editing import Direction

FIELD = 800  # pixels; the longer side of the photo in its own small field
LONGEST = 1600  # pixels; the photo is shown no larger than this, its download is full size

HEADER = "<header><h1>Edit a face</h1><p>Choose a photo, move a slider, download the result.</p></header>"
WELCOME = """<div><svg viewBox="0 0 96 96" aria-hidden="true"><path d="M12 30V20a8 8 0 0 1 8-8h10M66 12h10a8 8 0 0 1 8
8v10M84 66v10a8 8 0 0 1-8 8H66M30 84H20a8 8 0 0 1-8-8V66M36 38v5M60 38v5M34 58c8 9 20 9 28 0"/></svg>
<h2>Start with a photo of a face</h2>
<ol><li>Upload one, use the camera, paste it, or take an example.</li>
<li>Move the sliders; the picture follows.</li>
<li>Download the face, or the whole photo with the face put back.</li></ol></div>"""
FOOTER = """<footer>Edit only photos of yourself or of people who agreed, and say that a picture is edited when you
share it. The sliders show what a model has learned from other people's photos, not facts about anyone. Your photo is
kept in memory while this page is open, and what is uploaded or downloaded also as a file that is deleted after minutes.
</footer>"""
REGION_NAMES = [("Whole face", "everything"), ("Skin", "skin"), ("Eyes", "eyes"), ("Mouth", "mouth")]
REGION_NAMES += [("Face and hair", "head")]
BROWSE = "() => document.querySelector('#photo input[type=file]')?.click()"


def data_url(picture: Image.Image) -> str:
    """A picture as the text that carries it to the browser, JPEG."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def as_value(url: str) -> dict[str, Any]:
    """A data URL in the form in which Gradio's front end takes pictures."""
    return {"url": url, "path": None, "meta": {"_type": "gradio.FileData"}}


def smaller(photo: Image.Image, longest: int) -> Image.Image:
    """The photo with a longer side of at most `longest` pixels."""
    scale = longest / max(photo.size)
    return photo if scale >= 1 else photo.resize([max(1, round(side * scale)) for side in photo.size], reducing_gap=2.0)


def status_line(text: str, detail: str = "") -> str:
    return f"<p><span>{html.escape(text)}</span><span>{html.escape(detail)}</span></p>"


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


def direction_slider(name: str, direction: Direction, value: float = 0) -> gr.Slider:
    return gr.Slider(
        direction.low,
        direction.high,
        value=value,
        step=step(direction),
        label=direction.label,
        interactive=True,
        buttons=["reset"],
        elem_id=f"direction-{name}",
    )


def fidelity_slider(value: float = 1) -> gr.Slider:
    return gr.Slider(
        0,
        1,
        value=value,
        step=0.01,
        label="Fidelity",
        info="Lower is easier to edit, higher is closer to the photo",
        interactive=True,
        buttons=["reset"],
        elem_id="fidelity",
    )


def amount_slider(name: str, label: str, info: str) -> gr.Slider:
    """From 0, nothing, to 1, all of it."""
    return gr.Slider(
        0, 1, value=0, step=0.01, label=label, info=info, interactive=True, buttons=["reset"], elem_id=f"mix-{name}"
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
