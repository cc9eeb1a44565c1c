"""`python -m editing FOLDER` against opening, editing and writing one photo after the other.

    python -m benchmarks.folder [--photos 12]

A program of its own, which imports nothing before it must: the processes that work on a folder import what the program
that started them is made of.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def measure(count: int) -> tuple[float, float]:
    """Photos per second, of 2.6 megapixels with the demo model, pasted back: (together, one by one)."""
    from e4e_core import load_model
    from editing import Editor
    from editing.export import save_png
    from editing.folder import Order, edit_photos, jobs_of

    editor = Editor(load_model("demo", "cpu"))
    order = Order({next(iter(editor.directions)): 1.0}, paste=True)
    face = Image.open(ROOT / "examples" / "astronaut.png").convert("RGB")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(count):
            face.resize((1600, 1600), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=92)
        photos = sorted(folder.glob("*.jpg"))

        def one_by_one() -> None:
            for path in photos:
                session = editor.open(path)
                save_png(editor.paste(session, editor.render(session, order.strengths)), folder / "one.png", {})

        def together() -> None:
            jobs = jobs_of(photos, folder)
            assert not any(error for _, error in edit_photos(editor, jobs, order, {}))

        rates = []
        for way in (together, one_by_one):
            start = time.perf_counter()
            way()
            rates.append(count / (time.perf_counter() - start))
    return rates[0], rates[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folder", description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=12)
    print(json.dumps(measure(parser.parse_args().photos)))
