"""The sliders that a visit keeps for itself; nothing here knows of Gradio."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from editing import Direction, DirectionSet
from editing.packing import LONGEST_LABEL, MOST, unpack
from errors import PhotoError
from page.presets import edits_within
from page.studio import Look, Studio, Visit

OWN = "My own"  # the heading of the sliders that a visit keeps for itself
FULL = f"A visit keeps {MOST} sliders of its own; delete one before you keep another."


def keep(studio: Studio, visit: Visit, look: Look, number: int, label: Any) -> Visit:
    """The visit with one more slider of its own. Raises PhotoError without a name, or when there are too many."""
    found = [*studio.components(visit, look).values()]
    if number >= len(found):
        raise PhotoError("That component is not there; choose another one.")
    label = " ".join(str(label or "").split())[:LONGEST_LABEL]
    if not label:
        raise PhotoError("A slider needs a name; type one and try again.")
    return _owning(studio, visit, [replace(found[number], label=label, group=OWN, low=-look.reach, high=look.reach)])


def keep_found(studio: Studio, visit: Visit, direction: Direction) -> Visit:
    """The visit with one more slider of its own, called as it is. Raises PhotoError when there are too many."""
    return _owning(studio, visit, [replace(direction, label=direction.label[:LONGEST_LABEL].strip(), group=OWN)])


def load(studio: Studio, visit: Visit, data: bytes) -> Visit:
    """The visit with the sliders of a file added to its own. Raises DirectionError, see `unpack`."""
    model = studio.editor(visit.model).model
    return _owning(studio, visit, [*unpack(data, OWN, model.num_layers, model.latent_dim).values()])


def drop(studio: Studio, visit: Visit, label: Any) -> Visit:
    """The visit without one of its own sliders. Raises PhotoError if there is none of that name."""
    own = dict(visit.own.get(visit.model, {}))
    if own.pop(_key(own, " ".join(str(label or "").split())), None) is None:
        raise PhotoError("There is no slider of your own of that name; type the name of one that is there.")
    return _with(studio, visit, own)


def check_room(visit: Visit) -> None:
    """Raises PhotoError if the visit has as many sliders of its own as it may."""
    if len(visit.own.get(visit.model, {})) >= MOST:
        raise PhotoError(FULL)


def _owning(studio: Studio, visit: Visit, sliders: list[Direction]) -> Visit:
    """The visit with these sliders; one takes the place of another with the same label."""
    own = dict(visit.own.get(visit.model, {}))
    for each in sliders:
        own[_key(own, each.label)] = each
    if len(own) > MOST:
        raise PhotoError(FULL)
    return _with(studio, visit, own)


def _with(studio: Studio, visit: Visit, own: Mapping[str, Direction]) -> Visit:
    """The visit with these sliders of its own and no others, its edits within their ranges."""
    visit = studio.with_backdrop(replace(visit, own={**visit.own, visit.model: DirectionSet(own)}, full=None))
    return studio.edited(visit, edits_within(studio.directions(visit), visit.edits.plain()))


def _key(own: Mapping[str, Direction], label: str) -> str:
    """The name of a visit's own slider with this label, or else one that is free; no slider of a model has such."""
    for name, direction in own.items():
        if direction.label == label:
            return name
    stem = "own-" + re.sub(r"\W+", "_", label)[:LONGEST_LABEL]
    names = (f"{stem}-{number}" if number else stem for number in range(MOST + 1))
    return next(name for name in names if name not in own)
