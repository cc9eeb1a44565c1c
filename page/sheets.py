"""Many pictures in one file: the grid of all sliders, and films."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from editing.animation import there_and_back
from errors import PhotoError
from page.studio import PREVIEW, Studio, Visit

MORPH = " morph"  # the path of a film that is no slider; no direction has a space in its name


def grid(studio: Studio, visit: Visit) -> Image.Image:
    """Every slider at its lower end, at 0 and at its upper end, added to the edits as they stand."""
    model, directions = studio.editor(visit.model).model, studio.directions(visit)
    if not directions:
        raise PhotoError("This model comes without sliders, so there is no grid; choose another model.")
    side = min(PREVIEW, model.resolution)
    font = ImageFont.load_default(18)
    wide = max(round(font.getlength(direction.label)) for direction in directions.values()) + 32
    steps = [
        replace(visit.edits, strengths={**visit.edits.strengths, name: value})
        for name, direction in directions.items()
        for value in (direction.low, 0, direction.high)
    ]
    pictures = [
        picture.resize([PREVIEW * n // max(picture.size) for n in picture.size])
        for picture in studio.draw_all(visit, steps, side)
    ]
    height = pictures[0].height
    sheet = Image.new("RGB", (wide + 3 * PREVIEW, 40 + height * len(directions)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, sign in enumerate("−0+"):
        draw.text((wide + PREVIEW * (column + 0.5), 20), sign, "black", font, anchor="mm")
    for row, direction in enumerate(directions.values()):
        draw.text((16, 40 + height * (row + 0.5)), direction.label, "black", font, anchor="lm")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, 3)
        sheet.paste(picture, (wide + PREVIEW * column, 40 + height * row))
    return sheet


def film(studio: Studio, visit: Visit, path: Any, whole: bool, side: int) -> Iterator[Image.Image]:
    """A slider's way from end to end and back, or the morph's (MORPH), with the other edits as they are.

    whole: the photo with each picture in it. side: pixels that a picture needs at least, if the model has them.
    Raises: PhotoError at once for a path that is not there and for a morph without a second photo.
    """
    directions = studio.directions(visit)
    if path == MORPH:
        if visit.second is None:
            raise PhotoError("There is no second photo to morph to; choose one under “Mix with a second photo”.")
        steps = [replace(visit.edits, mix=replace(visit.edits.mix, morph=at)) for at in there_and_back(0, 1)]
    elif isinstance(path, str) and path in directions:
        way = there_and_back(directions[path].low, directions[path].high)
        steps = [replace(visit.edits, strengths={**visit.edits.strengths, path: at}) for at in way]
    else:
        raise PhotoError("There is nothing to animate; choose one of the sliders.")
    size = side if side < studio.editor(visit.model).model.resolution else None
    return studio.draw_all(visit, steps, size, whole)
