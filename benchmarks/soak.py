"""Does the page stay as it was, however long it is used? Mixed use over HTTP on loopback, and what is left of it.

    python -m benchmarks.soak [--minutes 30] [--visitors 3] [--model demo]

Starts the page in a process of its own, with room for PHOTOS photos only, so that the limits are reached early. The
visitors act as browsers do: they open photos, move sliders, take presets, undo, change tabs, download, send broken
files, leave in the middle of a picture, and come back as somebody else; one in six calls is a program's on `/edit`.

Flat is: the median resident memory of the last quarter of the time is at most TOLERANCE above that of the second
quarter (the first one fills caches). The exit code is 0 only if it is flat, nothing failed and no file was left.
"""

import argparse
import contextlib
import json
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.visitor import PATIENCE, Visitor, page, some_photo
from tests.hostile import HOSTILE

PHOTOS = 5
TOLERANCE = 0.03
EVERY = 5.0  # seconds between two looks at the memory


@dataclass
class Tally:
    """What all visitors did, and what went wrong."""

    done: Counter = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


class Person(Visitor):
    """A visitor who does this and that, by chance."""

    def __init__(self, address: str, config: dict[str, Any], chance: random.Random):
        self.chance = chance
        super().__init__(address, config, "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=11)))

    def photo(self) -> None:
        self.open(some_photo(self.chance))

    def broken(self) -> None:
        kind = self.chance.choice([*HOSTILE, "random"])
        self.call("photo", self.upload("photo.png", HOSTILE.get(kind) or self.chance.randbytes(20_000)))

    def slide(self) -> None:
        for _ in range(2):
            values = [self.chance.uniform(-2, 2) for _ in self.sliders]
            self.move(values, self.chance.random())
        self.rest(values, self.chance.random())

    def preset(self) -> None:
        self.call("presets", 0, [])

    def undo(self) -> None:
        self.call("undo")
        self.call("redo")

    def view(self) -> None:
        self.call("views", data={"index": self.chance.randrange(3), "value": "", "selected": True})

    def download(self) -> None:
        kind = self.chance.choice(["save-face", "save-photo", "save-grid", "save-settings"])
        found = re.search(r'"path": "([^"]+)"', json.dumps(self.press(kind)["output"]["data"]))
        if found:  # there is none before the first photo
            self.http.get(f"gradio_api/file={found[1]}").raise_for_status()

    def program(self) -> None:
        file = self.upload("photo.jpg", some_photo(self.chance))
        values = [file, {}, 1, 0, self.chance.random() < 0.5, "", "everything", 0.1]
        event_id = self.http.post("gradio_api/call/edit", json={"data": values}).raise_for_status().json()["event_id"]
        if "event: complete" not in (answer := self.http.get(f"gradio_api/call/edit/{event_id}").text):
            raise RuntimeError(f"program: {answer[:300]}")

    def leave(self, suddenly: bool = False) -> None:
        if suddenly:
            self.call("photo", self.upload("photo.jpg", some_photo(self.chance)), read=False)
        self.close()


def visit(address: str, config: dict[str, Any], seed: int, end: float, tally: Tally) -> None:
    """One visitor after the other until `end`."""
    chance = random.Random(seed)
    weights = {"photo": 2, "broken": 2, "slide": 6, "preset": 1, "undo": 2, "view": 2, "download": 2, "program": 3}
    while time.monotonic() < end:
        try:
            visitor = Person(address, config, chance)
            visitor.photo()
            for _ in range(chance.randrange(2, 8)):
                action = chance.choices([*weights], [*weights.values()])[0]
                getattr(visitor, action)()
                tally.done[action] += 1
            visitor.leave(suddenly := chance.random() < 0.3)
            tally.done["left suddenly" if suddenly else "left"] += 1
        except Exception as error:  # counted and shown: that is what this is for
            tally.errors.append(repr(error)[:300])


def resident(process: int) -> int:
    """Bytes of memory that a process holds now (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables for the processes started meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def soak(model: str, visitors: int, seconds: float, report: Callable[[float, int], None]) -> dict[str, Any]:
    """Use the page for so long. Returns samples [(seconds, bytes)], what was done, errors and files left."""
    tally, samples = Tally(), []
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)  # of Gradio's files and all others; the page's own go into a folder within
        with (
            variables(GRADIO_TEMP_DIR=str(temporary / "gradio"), TMPDIR=folder, E4E_MAX_PHOTOS=str(PHOTOS)),
            page(model) as (address, process),
        ):
            config = httpx.get(f"{address}config", timeout=PATIENCE).json()
            own = files(temporary)  # the page's examples
            start = time.monotonic()
            end = start + seconds
            job = (address, config)
            threads = [threading.Thread(target=visit, args=(*job, n, end, tally)) for n in range(visitors)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                samples.append((time.monotonic() - start, resident(process)))
                report(*samples[-1])
                time.sleep(EVERY)
            during = files(temporary) - own
        after = files(temporary) - own
        return {
            "model": model,
            "visitors": visitors,
            "minutes": seconds / 60,
            "samples": samples,
            "done": dict(tally.done),
            "errors": tally.errors,
            "files while it runs": dict(Counter(path.name for path in during)),
            "files left at its end": [path.name for path in after],
        }


def growth(samples: Sequence[tuple[float, int]]) -> float:
    """The last quarter's median over the second quarter's, minus 1."""
    quarter = max(1, len(samples) // 4)
    early = [size for _, size in samples[quarter : 2 * quarter]] or [samples[0][1]]
    return statistics.median(size for _, size in samples[-quarter:]) / statistics.median(early) - 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--visitors", type=int, default=3)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--json", type=Path, default=Path("results/soak.json"))
    options = parser.parse_args(arguments)
    shown = -1.0

    def report(at: float, size: int) -> None:
        nonlocal shown
        if at - shown >= max(10.0, options.minutes * 60 / 30) or shown < 0:
            shown = at
            print(f"{at / 60:5.1f} min  {size / 2**20:6.0f} MiB", flush=True)

    found = soak(options.model, options.visitors, options.minutes * 60, report)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    grown = growth(found["samples"])
    flat = grown <= TOLERANCE
    print(f"done: {', '.join(f'{count} {what}' for what, count in sorted(found['done'].items()))}")
    print(f"errors: {len(found['errors'])} {found['errors'][:3]}")
    print(f"temporary files while it runs: {found['files while it runs']}; left: {found['files left at its end']}")
    print(f"memory: {'flat' if flat else 'NOT flat'} ({grown:+.1%}, at most {TOLERANCE:+.0%})")
    return 0 if flat and not found["errors"] and not found["files left at its end"] else 1


if __name__ == "__main__":
    sys.exit(main())
