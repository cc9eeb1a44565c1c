"""The sliders that a visit keeps for itself; nothing here knows of Gradio."""

import re
from dataclasses import replace
from typing import Any

from editing import Direction, DirectionSet
from editing.packing import LONGEST_LABEL, MOST, unpack
from errors import PhotoError
from page.presets import edits_within
from page.studio import Look, Studio, Visit

OWN = "My own"  # the heading of the sliders that a visit keeps for itself


def keep(studio: Studio, visit: Visit, look: Look, number: int, label: Any) -> Visit:
    """The visit with one more slider of its own. Raises PhotoError without a name, or when there are too many."""
    found = [*studio.components(visit, look).values()]
    if number >= len(found):
        raise PhotoError("That component is not there; choose another one.")
    label = " ".join(str(label or "").split())[:LONGEST_LABEL]
    if not label:
        raise PhotoError("A slider needs a name; type one and try again.")
    return _owning(visit, [replace(found[number], label=label, group=OWN, low=-look.reach, high=look.reach)])


def keep_found(visit: Visit, direction: Direction) -> Visit:
    """The visit with one more slider of its own, called as it is. Raises PhotoError when there are too many."""
    return _owning(visit, [replace(direction, label=direction.label[:LONGEST_LABEL].strip(), group=OWN)])


def load(studio: Studio, visit: Visit, data: bytes) -> Visit:
    """The visit with the sliders of a file added to its own. Raises DirectionError, see `unpack`."""
    model = studio.editor(visit.model).model
    return _owning(visit, [*unpack(data, OWN, model.num_layers, model.latent_dim).values()])


def drop(studio: Studio, visit: Visit, label: Any) -> Visit:
    """The visit without one of its own sliders. Raises PhotoError if there is none of that name."""
    own = dict(visit.own.get(visit.model, {}))
    if own.pop(_key(str(label or "")), None) is None:
        raise PhotoError("There is no slider of your own of that name; type the name of one that is there.")
    visit = replace(visit, own={**visit.own, visit.model: DirectionSet(own)})
    return studio.edited(visit, edits_within(studio.directions(visit), visit.edits.plain()))


def _owning(visit: Visit, sliders: list[Direction]) -> Visit:
    own = {**visit.own.get(visit.model, {}), **{_key(each.label): each for each in sliders}}
    if len(own) > MOST:
        raise PhotoError(f"A visit keeps {MOST} sliders of its own; delete one before you keep another.")
    return replace(visit, own={**visit.own, visit.model: DirectionSet(own)}, full=None)


def _key(label: str) -> str:
    """The name of a visit's own slider, which no slider of a model has."""
    return "own-" + re.sub(r"\W+", "_", " ".join(label.split()))[:LONGEST_LABEL]
