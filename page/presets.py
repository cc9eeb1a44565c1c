"""Edits with a name, and edits in files; nothing here knows of Gradio, and everything that comes in is checked."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from alignment import FEATHER, REGIONS, Region
from editing.mixing import Mix
from errors import PhotoError

if TYPE_CHECKING:
    from editing import Direction

# Parts of the way from 0 to a slider's end, negative towards the lower one. A preset is offered if the first
# slider it names is there and goes that way.
BUILT_IN = {
    "Younger": {"age": -0.75},
    "Older": {"age": 0.75},
    "Big smile": {"smile": 0.9, "mouth_open": 0.4},
    "Serious": {"smile": -0.6},
    "Surprised": {"mouth_open": 0.8, "eye_open": 0.7},
    "Look left": {"yaw": -0.7},
    "Look right": {"yaw": 0.7},
    "Side light": {"light_lr": 0.7},
}
MOST = 40  # own presets a browser may keep
LONGEST_NAME = 40
LEAST_FEATHER = 0.02  # heights of the face; below it an edge is as hard as the pixels
LARGEST = 1 << 20  # bytes of a settings file that is not a picture


@dataclass(frozen=True)
class Edits:
    """Where the sliders and choices of one face stand.

    Attributes:
        strengths: by direction, within their ranges; those at 0 are left out.
        fidelity: in 0 … 1.
        mix: what is taken of the second photo, if there is one.
        keep: directions along which the others must not move the face.
        region, feather: which part of the photo may change and how soft its edge is, see `alignment.paste_back`.
    """

    strengths: Mapping[str, float] = field(default_factory=dict)
    fidelity: float = 1.0
    mix: Mix = field(default_factory=Mix)
    keep: tuple[str, ...] = ()
    region: Region = "everything"
    feather: float = FEATHER

    def __bool__(self) -> bool:
        """Whether they change anything."""
        return self.fidelity < 1 or bool(self.strengths) or bool(self.mix)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "strengths": dict(self.strengths), "keep": [*self.keep]}


def edits_within(directions: "Mapping[str, Direction]", sent: Any) -> Edits:
    """Whatever was sent, as edits that can be rendered: unknown sliders left out, numbers moved into range.

    `sent` has the keys of `Edits.plain`. What is no number, an empty number box for example, counts as the slider's
    rest, and so does what is missing.
    """
    sent = sent if isinstance(sent, Mapping) else {}
    strengths, mix, keep, region = (sent.get(key) for key in ("strengths", "mix", "keep", "region"))
    strengths = strengths if isinstance(strengths, Mapping) else {}
    within = {
        name: number_within(strengths.get(name), direction.low, direction.high, 0.0)
        for name, direction in directions.items()
    }
    mix = mix if isinstance(mix, Mapping) else {}
    amounts = {part.name: number_within(mix.get(part.name), 0.0, 1.0, 0.0) for part in fields(Mix)}
    return Edits(
        {name: value for name, value in within.items() if value},
        number_within(sent.get("fidelity"), 0.0, 1.0, 1.0),
        Mix(**amounts),
        tuple(name for name in directions if isinstance(keep, list) and name in keep),
        region if isinstance(region, str) and region in REGIONS else "everything",
        number_within(sent.get("feather"), LEAST_FEATHER, 1.0, FEATHER),
    )


def number_within(value: Any, low: float, high: float, otherwise: float) -> float:
    """Whatever was sent as a number from low to high; `otherwise` where it is none."""
    return min(max(_number(value, otherwise), low), high)


def _number(value: Any, otherwise: float) -> float:
    try:
        return float(value) if isinstance(value, Real) and not math.isnan(value) else otherwise
    except OverflowError:  # an integer beyond every float
        return math.inf if value > 0 else -math.inf


def built_in(directions: "Mapping[str, Direction]") -> dict[str, Edits]:
    """The presets that suit a model's sliders, by name."""
    found = {}
    for name, parts in BUILT_IN.items():
        known = {key: part for key, part in parts.items() if key in directions}
        ends = {key: directions[key].high if part > 0 else -directions[key].low for key, part in known.items()}
        strengths = {key: round(part * ends[key], 2) for key, part in known.items() if ends[key]}
        if next(iter(parts)) in strengths:
            found[name] = Edits(strengths)
    return found


def own(kept: Any, model: str, directions: "Mapping[str, Direction]") -> dict[str, Edits]:
    """The presets that a browser has kept for a model, by name."""
    kept = kept if isinstance(kept, list) else []
    mine = [entry for entry in kept[:MOST] if isinstance(entry, dict) and entry.get("model") == model]
    return {
        str(entry.get("name"))[:LONGEST_NAME]: edits_within(
            directions, {"strengths": entry.get("strengths"), "fidelity": entry.get("fidelity")}
        )
        for entry in mine
    }


def keep(kept: Any, name: Any, model: str, edits: Edits | None) -> list[dict[str, Any]]:
    """What the browser keeps from now on: with `edits` under `name`, or without that preset where edits is None.

    Raises: PhotoError for an empty name and when there are too many.
    """
    name = " ".join(str(name or "").split())[:LONGEST_NAME]
    if not name:
        raise PhotoError("A preset needs a name; type one and try again.")
    kept = [entry for entry in kept if isinstance(entry, dict)] if isinstance(kept, list) else []
    others = [entry for entry in kept if (entry.get("name"), entry.get("model")) != (name, model)]
    if edits is None:
        if len(others) == len(kept):
            raise PhotoError(f"There is no preset of your own called {name}; type the name of one that is there.")
        return others
    if len(others) >= MOST:
        raise PhotoError(f"This browser keeps {MOST} presets; delete one before you keep another.")
    return [*others, {"name": name, "model": model, "strengths": dict(edits.strengths), "fidelity": edits.fidelity}]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file or in a PNG that this program wrote. Raises PhotoError if there are none."""
    missing = f"{path.name} holds no settings of this page; choose a settings file or a picture downloaded here."
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"\x89PNG\r\n\x1a\n":
                with Image.open(path, formats=["PNG"]) as picture:  # reads the texts before the pixels, not the pixels
                    text = picture.info.get("Settings", "")
            elif path.stat().st_size <= LARGEST:
                text = (start + file.read()).decode("utf-8")
            else:
                raise PhotoError(missing)
        settings = json.loads(text)
    except PhotoError:
        raise
    except Exception as error:  # whatever a decoder makes of a hostile file
        raise PhotoError(missing) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("strengths"), dict):
        raise PhotoError(missing)
    return settings


def of_face(settings: dict[str, Any], face: int) -> dict[str, Any]:
    """What settings of `read_settings` say of one face: its own edits where they name several faces, else theirs."""
    others = settings.get("others")
    edits = others.get(str(face)) if isinstance(others, dict) else None
    return edits if isinstance(edits, dict) and isinstance(edits.get("strengths"), dict) else settings
