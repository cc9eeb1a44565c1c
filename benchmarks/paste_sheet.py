"""What does pasting look like? Every slider, mild and strong, in whole photos.

    python -m benchmarks.paste_sheet ../shared/photos/*.[jp][pn]g --out /tmp/sheets

Writes a sheet for each photo: one row per slider, with the face it makes, then the photo with it at its low end, half
of that, half of its high end and its high end; and each of these pictures at full size beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm import tqdm

from alignment import REGIONS, paste_back
from alignment.paste import FEATHER
from e4e_core import load_model
from editing import Editor
from editing.editor import Session

TILE = 320  # px
SHARES = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of a slider's low and high end; 0 is the photo


def part_around(session: Session, photo: Image.Image) -> Image.Image:
    """The photo around the crop, half as wide again."""
    low, high = session.crop.quad.min(axis=0), session.crop.quad.max(axis=0)
    middle, half = (low + high) / 2, 0.75 * float((high - low).max())
    box = [round(float(v)) for v in (*(middle - half), *(middle + half))]
    return photo.crop(box).resize((TILE, TILE), Image.Resampling.LANCZOS)


def sheet(editor: Editor, session: Session, folder: Path, region: str, feather: float) -> Image.Image:
    """All sliders of the editor on one photo; full-size pictures go to `folder`."""
    names = list(editor.directions)
    result = Image.new("RGB", (TILE * (len(SHARES) + 1), TILE * len(names)), "white")
    unedited = editor.render(session, {})
    for row, name in enumerate(tqdm(names, folder.name)):
        direction = editor.directions[name]
        for column, share in enumerate(SHARES):
            strength = share * direction.high if share > 0 else -share * direction.low
            picture = editor.render(session, {name: strength})
            whole = paste_back(session.photo, picture, session.crop, unedited, region, feather)
            if share:
                whole.save(folder / f"{name}_{strength:+.2f}.png")
            result.paste(part_around(session, whole), (TILE * (column + 1), TILE * row))
        result.paste(picture.resize((TILE, TILE), Image.Resampling.BICUBIC), (0, TILE * row))
        ImageDraw.Draw(result).text((8, TILE * row + 8), name, "white", stroke_width=1, stroke_fill="black")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("photos", nargs="+", type=Path)
    command.add_argument("--model", default="demo")
    command.add_argument("--region", choices=REGIONS, default="everything")
    command.add_argument("--feather", type=float, default=FEATHER)
    command.add_argument("--out", type=Path, default=Path("results/paste"))
    options = command.parse_args(arguments)
    editor = Editor(load_model(options.model))
    for photo in options.photos:
        folder = options.out / photo.stem
        folder.mkdir(parents=True, exist_ok=True)
        sheet(editor, editor.open(photo), folder, options.region, options.feather).save(folder / "sheet.png")
        print(folder / "sheet.png")


if __name__ == "__main__":
    main()
