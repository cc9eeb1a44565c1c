"""From a moved slider to its picture, in a real browser with the real page. Needs playwright and Chromium."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import visitor

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 120_000  # ms

# Moves a slider as a hand does and waits for pictures: the first new one, and the first one as wide as `full`, each
# until the frame in which the browser paints it. In between it leaves the browser alone, which would otherwise paint
# all the time, on the cores that compute the picture.
MOVE = """([selector, value, full]) => new Promise((resolve, reject) => {
  const picture = () => document.querySelector("#result img");
  const before = picture().src, start = performance.now();
  let first = 0;
  const observer = new MutationObserver(async () => {
    const shown = picture();
    if (!shown || shown.src === before) return;
    await shown.decode().catch(() => {}); // it has given way to the next one
    await new Promise(requestAnimationFrame);
    first ||= performance.now() - start;
    if (shown.naturalWidth < full) return;
    observer.disconnect();
    resolve([first, performance.now() - start]);
  });
  const changes = { subtree: true, childList: true, attributeFilter: ["src"] };
  observer.observe(document.querySelector("#result"), changes);
  setTimeout(() => reject(new Error("no full picture")), 60000);
  const slider = document.querySelector(selector);
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
})"""


def chromium() -> str | None:
    """The browser's program, or None where it or playwright is missing."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return None
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def served(model: str) -> Iterator["Page"]:
    """The page with this model, open in a browser, without a photo."""
    from playwright.sync_api import sync_playwright

    with visitor.page(model) as (address, _), sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#fidelity").wait_for()
        yield page
        browser.close()


def upload(page: "Page", photo: Path) -> float:
    """Seconds from choosing a photo to its first picture."""
    start = time.perf_counter()
    page.locator("#photo input[type=file]").first.set_input_files(photo)
    page.locator("#result img").wait_for()
    page.wait_for_function("document.querySelector('#result img').complete")
    return time.perf_counter() - start


def moves(page: "Page", slider: str, values: np.ndarray, full: int) -> tuple[list[float], list[float]]:
    """(ms to the first new picture, ms to the first one of `full` pixels) of each movement of a slider."""
    page.wait_for_timeout(5000)  # until what the process's start and the photo left to do is done
    times = []
    for value in values:
        times.append(page.evaluate(MOVE, [f"{slider} input[type=range]", f"{value:.3f}", full]))
        page.wait_for_timeout(500)  # until the slider has come to rest, and the page with it
    return [first for first, _ in times], [last for _, last in times]
