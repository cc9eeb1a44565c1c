"""The pictures of docs/tour.md, made by the page itself in a real browser.

    python -m benchmarks.tour [--model demo] [--out docs/tour]

Shows nobody but the astronaut Eileen Collins (NASA, public domain) and faces that the embedded model invented. To be
run again whenever the page or the demo model has changed; needs Chromium and playwright, as the tests do.
"""

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from benchmarks.browser import chromium
from benchmarks.visitor import page

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
LARGEST = 120_000  # bytes of a picture in the documentation
PATIENCE = 240_000  # ms; a page on a busy machine


class Tour:
    """The stops, each one picture; a stop starts where the one before it left the page."""

    def __init__(self, browser_page: Page, folder: Path):
        self.page, self.folder = browser_page, folder
        self.status = self.page.locator("#status")

    def keep(self, name: str, picture: Image.Image | None = None, part: Locator | None = None) -> None:
        """Write a picture, or a screenshot of `part` or of the page, as WebP of at most LARGEST bytes."""
        if picture is None:
            self.page.wait_for_timeout(500)  # fades come to rest
            picture = Image.open(io.BytesIO((part or self.page).screenshot()))
        for quality in range(85, 20, -10):
            data = io.BytesIO()
            picture.convert("RGB").save(data, "WEBP", quality=quality, method=6)
            if data.tell() <= LARGEST:
                break
        (self.folder / f"{name}.webp").write_bytes(data.getvalue())
        print(f"{name}.webp  {picture.width} × {picture.height}  {data.tell() // 1000} KB", flush=True)

    def slide(self, name: str, key: str) -> None:
        """Move a slider by a key, "End" or "Home", and wait for the picture that stays."""
        slider = self.page.locator(f"#direction-{name} input[type=range]")
        slider.press(key)
        expect(self.status).to_contain_text("+" if key == "End" else "−")
        slider.blur()
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_timeout(300)
        self.page.wait_for_function("() => document.querySelector('#result img')?.complete")
        self.page.wait_for_timeout(1500)

    def saved(self, button: str) -> Image.Image:
        with self.page.expect_download() as download:
            self.page.locator(button).click()
        return Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))

    def reset(self) -> None:
        self.page.locator("#reset-all").click()
        expect(self.status).to_contain_text("No edits")

    def walk(self) -> None:
        self.keep("start")
        self.page.locator("#examples button").first.click()
        expect(self.status).to_contain_text("Opened in")
        self.settle()
        self.keep("opened")
        self.slide("smile", "End")
        self.keep("smile")
        self.page.get_by_role("tab", name="Before / after").click()
        self.page.wait_for_function("() => document.querySelectorAll('#compare img').length == 2")
        self.settle()
        self.keep("compare", part=self.page.locator("#centre"))
        self.page.get_by_role("tab", name="In the photo").click()
        self.page.wait_for_function("() => document.querySelector('#whole img')?.naturalWidth > 0")
        self.keep("photo", part=self.page.locator("#centre"))
        self.page.locator("#region").get_by_label("Mouth").check()
        expect(self.status).to_contain_text("mouth only")
        self.settle()
        self.keep("only", part=self.page.locator("#centre"))
        self.page.get_by_role("tab", name="Face").click()
        self.steps()
        self.page.locator("#more .label-wrap").click()
        self.page.set_viewport_size({"width": 1440, "height": 2000})  # nothing hides behind the row that sticks below
        self.keep("presets", part=self.page.locator("#more"))
        self.page.set_viewport_size({"width": 1440, "height": 900})
        self.reset()
        self.keep("grid", self.saved("#save-grid").convert("RGB"))
        self.film()
        self.closer()
        self.mix()
        self.find()
        self.several()
        self.phone()

    def steps(self) -> None:
        """What was before, as small pictures; the last step is the fidelity."""
        self.reset()
        for slider, value in (("direction-light_lr", "1"), ("direction-smile", "0.6"), ("fidelity", "0.7")):
            self.page.locator(f"#{slider} input[type=range]").fill(value)
            expect(self.status).to_contain_text(value)
            self.settle()
        self.keep("steps", part=self.page.locator("#centre"))

    def film(self) -> None:
        """Some pictures of a film, side by side."""
        self.page.locator("#film .label-wrap").click()
        self.page.locator("#film-kind").get_by_label("GIF").check()
        film = self.saved("#animate")
        frames = []
        for number in range(0, film.n_frames, film.n_frames // 6):
            film.seek(number)
            frames.append(film.convert("RGB").resize((200, 200), Image.Resampling.BICUBIC))
        strip = Image.new("RGB", (200 * len(frames), 200))
        for place, frame in enumerate(frames):
            strip.paste(frame, (200 * place, 0))
        self.keep("film", strip)
        self.page.locator("#film .label-wrap").click()

    def closer(self) -> None:
        """The model adapted to this photo."""
        self.page.locator("#closer .label-wrap").click()
        for button in ("#refine", "#refine-more"):
            self.page.locator(button).click()
            expect(self.status).to_contain_text("Refined in")
            expect(self.page.locator(button)).to_be_enabled()
        self.keep("refined")
        self.page.locator("#unrefine").click()
        expect(self.status).to_contain_text("Back to the inversion")
        self.page.locator("#closer .label-wrap").click()

    def mix(self) -> None:
        """Half of a second photo."""
        self.page.locator("#mixing .label-wrap").first.click()
        self.page.locator("#second input[type=file]").set_input_files(EXAMPLES / "generated-1.png")
        expect(self.status).to_contain_text("The second photo is there")
        self.page.locator("#mixing input[type=range]").first.fill("0.5")
        expect(self.status).to_contain_text("morph")
        self.settle()
        self.keep("mixed")
        self.page.locator("#mixing .label-wrap").first.click()
        self.reset()

    def find(self) -> None:
        """The components of the model, and where sliders are described in words."""
        self.page.locator("#exploring .label-wrap").first.click()
        expect(self.page.locator("#rows img")).to_have_count(12)
        self.page.set_viewport_size({"width": 1440, "height": 2600})
        self.keep("found", part=self.page.locator("#exploring"))
        self.page.set_viewport_size({"width": 1440, "height": 900})
        self.page.locator("#exploring .label-wrap").first.click()

    def several(self) -> None:
        """Two faces in one photo, each with its own edits."""
        group = Image.new("RGB", (1024, 512), "white")
        for left, name in ((0, "astronaut"), (512, "generated-1")):
            group.paste(Image.open(EXAMPLES / f"{name}.png").convert("RGB").resize((512, 512)), (left, 0))
        data = io.BytesIO()
        group.save(data, "PNG")
        file = {"name": "group.png", "mimeType": "image/png", "buffer": data.getvalue()}
        self.page.locator("#photo input[type=file]").set_input_files(file)
        expect(self.status).to_contain_text(re.compile(r"Found \d faces"))
        self.slide("smile", "End")
        self.page.locator("#faces").get_by_label("Face 2").click()
        expect(self.status).to_contain_text("Face 2 of 2")
        self.slide("mouth_open", "End")
        self.page.get_by_role("tab", name="In the photo").click()
        self.page.wait_for_function("() => document.querySelector('#whole img')?.naturalWidth > 0")
        self.settle()
        self.page.evaluate("window.scrollTo(0, 0)")
        self.keep("several")
        self.page.get_by_role("tab", name="Face").click()

    def phone(self) -> None:
        self.page.set_viewport_size({"width": 390, "height": 844})
        self.page.locator("#examples button").first.click()
        expect(self.status).to_contain_text("Opened in")
        self.slide("yaw", "End")
        self.page.locator("#direction-yaw input[type=range]").scroll_into_view_if_needed()
        self.keep("phone")


@contextmanager
def opened_at(address: str) -> Iterator[Page]:
    if chromium() is None:
        raise SystemExit("The tour needs Chromium; install it, for example with: apt-get install chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        opened.set_default_timeout(PATIENCE)
        opened.set_default_navigation_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        opened.goto(address)
        expect(opened.locator("#fidelity")).to_be_visible()
        yield opened
        browser.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tour", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tour")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with page(options.model) as (address, _), opened_at(address) as opened:
        Tour(opened, options.out).walk()


if __name__ == "__main__":
    main()
