"""The page in a real browser, with a random model: what is tested is the page, not how good the faces look."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageOps

from e4e_core.checkpoints import CHECKPOINTS, save_model
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from editing import Direction, DirectionSet

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

ROOT = Path(__file__).resolve().parents[1]
ASTRONAUT = ROOT / "examples" / "astronaut.png"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RESOLUTION = 512  # above the size of previews
PATIENCE = 120_000  # ms; an idle machine needs a hundredth
# With SLOW = 0 every drag shows previews first, whatever the speed of this machine. In place of CLIP stands what sees
# the mean colour of a picture and knows the word "red".
START = """
import sys, torch, app, page.describing, page.studio
from editing import text

class Colour:
    def sentences(self, sentences):
        views = torch.tensor([[1.0 + 2.0 * ("red" in each), 1.0, 1.0, 1.0] for each in sentences])
        return torch.nn.functional.normalize(views, dim=1)

    def pictures(self, images):
        views = torch.cat([images.mean((2, 3)), torch.ones_like(images[:, :1, 0, 0])], 1)
        return torch.nn.functional.normalize(views, dim=1)

page.studio.SLOW = 0
text.FACES = 2
text.load_clip = lambda device, progress: Colour()
page.describing.why_not = lambda: ""
sys.exit(app.main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    generator = GeneratorConfig(RESOLUTION, latent_dim=16, mapping_layers=2, channels=(8,) * 8)
    layers = generator.num_layers
    encoder = EncoderConfig("e4e", 128, layers, 16, stem=8, stages=(8, 8, 8, 8), blocks=(1, 1, 1, 1), pyramid=8)
    model = E4E(Encoder(encoder), Generator(generator), name="random").eval()
    sliders = {"smile": ("Smile", "Expression"), "eyes": ("Eyes open", "Expression"), "age": ("Age", "Person")}
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model(model, folder)
    vectors = {name: torch.randn(layers, 16) for name in sliders}
    DirectionSet({name: Direction(*words, -3, 3, vectors[name]) for name, words in sliders.items()}).save(folder)
    return folder


@pytest.fixture(scope="session")
def address(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one page process for all tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("gradio")
    command = [sys.executable, "-c", START, "--model", str(model_folder), "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(temporary), "E4E_REFINE_SECONDS": "10"}
    log = temporary.parent / "page.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        while "The page is at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(PATIENCE / 1000)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is missing, and CI must have it; .ci/run installs it.")
        pytest.skip("needs Chromium (apt-get install chromium)")
    expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as p:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = p.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def visit(browser: playwright.Browser, address: str) -> Iterator[Callable[..., playwright.Page]]:
    """Open the page in a browser of its own, as another person would."""
    contexts = []

    def visit(**options) -> playwright.Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        expect(page.locator("#fidelity")).to_be_visible(timeout=PATIENCE)
        return page

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def shared_page(visit: Callable[..., playwright.Page]) -> playwright.Page:
    page = visit()
    upload(page, ASTRONAUT)
    return page


@pytest.fixture
def page(shared_page: playwright.Page) -> playwright.Page:
    """The astronaut, opened, on the face tab, unedited."""
    shared_page.get_by_role("tab", name="Face", exact=True).click()
    shared_page.locator("#reset-all").click()
    settled(shared_page, "No edits")
    return shared_page


@pytest.fixture(scope="session")
def other(visit: Callable[..., playwright.Page]) -> playwright.Page:
    """The page as another person has it open, with whatever photo the last test left there."""
    return visit()


@pytest.fixture(scope="session")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second photo of a face."""
    path = tmp_path_factory.mktemp("photos") / "mirrored.jpg"
    ImageOps.mirror(Image.open(ASTRONAUT).convert("RGB")).save(path, quality=95)
    return path


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of two faces side by side, the same one mirrored."""
    path = tmp_path_factory.mktemp("photos") / "group.png"
    face = Image.open(ASTRONAUT).convert("RGB").crop((60, 0, 400, 340))
    both = Image.new("RGB", (680, 340))
    both.paste(face, (0, 0))
    both.paste(ImageOps.mirror(face), (340, 0))
    both.save(path)
    return path


def upload(page: playwright.Page, photo: Path) -> None:
    """Upload a photo other than the one that is open."""
    crop = page.locator("#crop img")
    before = crop.get_attribute("src") if crop.count() else None
    page.locator("#photo input[type=file]").set_input_files(photo)
    page.wait_for_function(
        "(before) => ![undefined, before].includes(document.querySelector('#crop img')?.src)", arg=before
    )
    settled(page, "Opened in")


def download(page: playwright.Page, button: str, target: Path) -> Image.Image:
    """The picture behind a download button, which is called what `target` is called."""
    with page.expect_download() as started:
        page.locator(button).click()
    started.value.save_as(target)
    if target.name.startswith("edited-"):
        assert started.value.suggested_filename == target.name
    return Image.open(target)


def source(page: playwright.Page) -> str:
    return page.locator("#result img").get_attribute("src")


def settled(page: playwright.Page, status: str) -> str:
    """Wait until the status line says `status` and the full picture is there and stays; its source."""
    expect(page.locator("#status")).to_contain_text(status)
    full = f"() => document.querySelector('#result img')?.naturalWidth === {RESOLUTION}"
    page.wait_for_function(full)
    page.wait_for_timeout(300)
    page.wait_for_function(full)
    return source(page)


def changed(page: playwright.Page, before: str) -> None:
    page.wait_for_function("(before) => document.querySelector('#result img')?.src !== before", arg=before)


def number(page: playwright.Page, label: str) -> playwright.Locator:
    return page.get_by_label(f"number input for {label}")


def drag(page: playwright.Page, label: str, to: float, steps: int) -> None:
    """Press on the middle of a slider, its 0, and move to `to`, a fraction of its width; the button stays down."""
    slider = page.get_by_label(f"range slider for {label}")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * to, y, steps=steps)


NAME = """(element) => (element.getAttribute("aria-label")
  || document.getElementById(element.getAttribute("aria-labelledby"))?.innerText
  || [...(element.labels ?? [])].map((label) => label.innerText).join(" ")
  || element.innerText || element.title || element.placeholder || element.querySelector("img")?.alt || "").trim()"""
# What can be reached with the keyboard and has no name for screen readers, or looks the same with and without focus;
# of a range slider only the thumb shows it, which no script can see.
LACKING = f"""() => {{
  const name = {NAME};
  document.head.insertAdjacentHTML("beforeend", "<style>* {{ transition: none !important }}</style>");
  const look = (element) => {{
    const style = getComputedStyle(element);
    return [style.outline, style.boxShadow, style.borderColor, style.backgroundColor, style.opacity].join();
  }};
  const around = (element) => [element, element.closest("label"), element.parentElement];
  const looks = (element) => around(element).map((each) => each && look(each)).join();
  return [...document.querySelectorAll("button, a[href], input, textarea, select, [tabindex]")]
    .filter((each) => each.tabIndex >= 0 && !each.disabled && each.checkVisibility({{ visibilityProperty: true }}))
    .flatMap((each) => {{
      document.activeElement.blur();
      const before = looks(each);
      each.focus();
      const same = each.type !== "range" && looks(each) === before;
      const lacks = [name(each) ? "" : "no name", same ? "no focus" : ""].join(" ").trim();
      const where = `${{name(each)}} ${{each.outerHTML.slice(0, 160)}} in ${{each.closest("[id]").id}}`;
      return lacks ? [`${{lacks}}: ${{where}}`] : [];
    }});
}}"""


def tab_to(page: playwright.Page, name: str, key: str = "Tab") -> None:
    """Press Tab until the focus is on what a screen reader would call `name`."""
    passed = []
    for _ in range(200):
        page.keyboard.press(key)
        passed.append(page.evaluate(f"() => ({NAME})(document.activeElement)"))
        if passed[-1] == name:
            return
    raise AssertionError(f"{name} is not among {passed}")


def test_the_keyboard_alone_opens_edits_undoes_compares_and_downloads(visit):
    page = visit()
    tab_to(page, "Example 1")
    page.keyboard.press("Enter")
    unedited = settled(page, "Opened in")
    tab_to(page, "range slider for Smile")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert settled(page, "Smile +0.15") != unedited
    tab_to(page, "Undo")
    page.keyboard.press("Space")
    assert settled(page, "No edits") == unedited
    tab_to(page, "Before / after", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#compare img")).to_have_count(2)
    tab_to(page, "Download face")
    with page.expect_download() as started:
        page.keyboard.press("Enter")
    assert started.value.suggested_filename == "edited-face.png"
    # Whatever else there is has a name and shows when it has the focus, the accordions' contents included.
    page.evaluate("document.querySelectorAll('.label-wrap:not(.open)').forEach((each) => each.click())")
    expect(page.locator("#rows img")).to_have_count(12)
    page.keyboard.press("Tab")  # from here on, the browser shows the focus wherever it is set
    lacking = page.evaluate(LACKING)
    assert not lacking, "\n".join(lacking)


def test_the_empty_page_says_what_to_do_and_an_upload_gives_a_result(visit):
    page = visit()
    sliders = page.locator("#sliders").bounding_box()
    assert sliders["x"] + sliders["width"] <= 1440  # beside the result, not off the page
    expect(page.get_by_text("Start with a photo of a face")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Ready for a photo")
    expect(page.locator("#footer")).to_contain_text("people who agreed")
    upload(page, ASTRONAUT)
    expect(page.get_by_text("Start with a photo of a face")).to_be_hidden()
    expect(page.locator("#crop img")).to_be_visible()
    expect(page.locator("#status")).to_contain_text(re.compile(r"random 512 px · (CPU|GPU.*) · \w+ · \d+ ms"))


def test_the_picture_follows_the_pointer_and_the_full_one_stays(page):
    before = source(page)
    drag(page, "Smile", to=0.8, steps=5)
    changed(page, before)  # while the button is still down
    page.mouse.up()
    value = float(number(page, "Smile").input_value())
    assert value == pytest.approx(1.8, abs=0.2)
    assert settled(page, f"Smile +{value:g}") != before


def test_the_last_value_wins_after_a_fast_drag(page):
    drag(page, "Smile", to=0.95, steps=60)
    box = page.get_by_label("range slider for Smile").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2, steps=60)
    page.mouse.up()
    value = number(page, "Smile").input_value()
    words = f"Smile −{-float(value):g}"
    dragged = settled(page, words)
    page.locator("#reset-all").click()
    assert settled(page, "No edits") != dragged
    number(page, "Smile").fill(value)
    assert settled(page, words) == dragged


def test_keyboard_and_number_box_move_a_slider(page):
    before = source(page)
    slider = page.get_by_label("range slider for Age")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    assert float(number(page, "Age").input_value()) == pytest.approx(0.2)
    by_keyboard = settled(page, "Age +0.2")
    assert by_keyboard != before
    number(page, "Age").fill("")  # on the way to another number: no error, and the same as 0
    settled(page, "No edits")
    number(page, "Age").fill("0.2")
    assert settled(page, "Age +0.2") == by_keyboard
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


def test_reset_of_one_slider_and_of_all(page):
    unedited = source(page)
    number(page, "Smile").fill("2")
    number(page, "Age").fill("-1")
    both = settled(page, "Smile +2, Age −1")
    page.locator("#direction-smile").get_by_label("Reset Smile").click()
    expect(page.locator("#status")).not_to_contain_text("Smile")
    assert settled(page, "Age −1") not in (both, unedited)
    number(page, "Fidelity").fill("0.5")
    settled(page, "Age −1, fidelity 0.5")
    page.locator("#reset-all").click()
    assert settled(page, "No edits") == unedited
    for label, value in {"Smile": 0, "Age": 0, "Fidelity": 1}.items():
        assert float(number(page, label).input_value()) == value


def test_a_second_photo_replaces_the_first(other, mirrored):
    upload(other, ASTRONAUT)
    first = source(other)
    upload(other, mirrored)
    assert source(other) != first


def test_a_photo_without_a_face_leaves_the_one_before(page, tmp_path):
    before = source(page)
    Image.radial_gradient("L").resize((200, 160)).save(tmp_path / "empty.png")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "empty.png")
    expect(page.locator("#status")).to_contain_text("No face was found in this photo")
    expect(page.locator("#status")).to_contain_text("The photo before it is still here.")
    assert source(page) == before
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "broken.png")
    expect(page.locator("#status")).to_contain_text("not a picture this program can read")
    number(page, "Smile").fill("1")
    changed(page, before)


def test_several_faces_keep_their_own_edits_and_all_go_into_the_photo(other, group, tmp_path):
    upload(other, group)
    expect(other.locator("#status")).to_contain_text("Found 2 faces")
    first = other.locator("#crop img").get_attribute("src")
    number(other, "Smile").fill("3")
    settled(other, "Smile +3")
    other.locator("#faces").get_by_label("Face 2").click()
    expect(other.locator("#status")).to_contain_text("Face 2 of 2")
    expect(other.locator("#faces").get_by_label("Face 2")).to_have_attribute("aria-pressed", "true")
    assert other.locator("#crop img").get_attribute("src") != first
    expect(number(other, "Smile")).to_have_value("0")
    number(other, "Age").fill("3")
    settled(other, "Age +3")
    picture = download(other, "#save-photo", tmp_path / "both.png")
    changed = ImageChops.difference(picture.convert("RGB"), Image.open(group))
    for side in ((0, 0, 340, 340), (340, 0, 680, 340)):
        assert changed.crop(side).getbbox()
    other.locator("#faces").get_by_label("Face 1").click()
    expect(number(other, "Smile")).to_have_value("3")
    expect(number(other, "Age")).to_have_value("0")


def test_before_after_and_the_photo_have_their_tabs(page):
    number(page, "Smile").fill("2")
    settled(page, "Smile +2")
    page.get_by_role("tab", name="Before / after").click()
    expect(page.locator("#compare img")).to_have_count(2)
    page.get_by_role("radio", name="After").check()  # the divider can be moved without a pointer
    page.get_by_role("tab", name="In the photo").click()
    page.wait_for_function("() => document.querySelector('#whole img')?.naturalWidth === 512")


def test_an_edit_can_be_kept_to_a_part_of_the_face(page, tmp_path):
    number(page, "Age").fill("3")
    settled(page, "Age +3")
    page.get_by_role("tab", name="In the photo").click()
    page.locator("#region").get_by_label("Mouth").check()
    expect(page.locator("#status")).to_contain_text("mouth only")
    original = Image.open(ASTRONAUT).convert("RGB")
    mouth = download(page, "#save-photo", tmp_path / "edited-photo.png")
    assert '"region": "mouth"' in mouth.text["Settings"]
    page.locator("#undo").click()
    expect(page.locator("#region input:checked")).to_have_value("everything")
    everything = download(page, "#save-photo", tmp_path / "edited-photo.png")
    small, large = (ImageChops.difference(each.convert("RGB"), original).getbbox() for each in (mouth, everything))
    assert small[3] - small[1] < (large[3] - large[1]) / 2


def test_a_second_photo_is_mixed_in(page, mirrored):
    first = source(page)
    page.locator("#mixing .label-wrap").click()
    page.locator("#second input[type=file]").set_input_files(mirrored)
    assert settled(page, "The second photo is there") == first
    slider = page.get_by_label("range slider for Morph")
    slider.focus()
    slider.press("End")  # the keyboard drags, too
    morphed = settled(page, "morph 1")
    assert morphed != first
    number(page, "Morph").fill("0")
    settled(page, "No edits")
    for group in ("Coarse", "Middle", "Fine"):
        number(page, f"{group} styles").fill("1")
    assert settled(page, "coarse 1, middle 1, fine 1") == morphed
    number(page, "Smile").fill("1")
    settled(page, "Smile +1, coarse 1, middle 1, fine 1")
    page.get_by_label("Remove Image").last.click()
    assert settled(page, "The second photo is gone") != morphed
    page.locator("#mixing .label-wrap").click()


@pytest.mark.parametrize("name, size", [("face", (RESOLUTION, RESOLUTION)), ("photo", (512, 512))])
def test_downloads_are_png_at_full_size(page, name, size, tmp_path):
    number(page, "Smile").fill("1.5")
    picture = download(page, f"#save-{name}", tmp_path / f"edited-{name}.png")
    assert (picture.format, picture.size) == ("PNG", size)
    assert '"smile": 1.5' in picture.text["Settings"]


def test_a_film_of_a_slider_comes_as_a_gif(page, tmp_path):
    page.locator("#film .label-wrap").click()
    page.locator("#film-kind").get_by_label("GIF").check()
    film = download(page, "#animate", tmp_path / "edited-film.gif")
    assert film.n_frames == 48 and b"edited with AI" in film.info["comment"]
    page.locator("#path input").click()
    page.get_by_role("option", name="Morph to the second photo").click()
    again = []
    page.on("download", lambda download: again.append(download))
    page.locator("#animate").click()
    expect(page.locator("#status")).to_contain_text("There is no second photo")
    page.wait_for_timeout(1000)
    assert not again  # the film before it
    page.locator("#film .label-wrap").click()


def test_the_page_is_at_rest_when_nothing_happens(page):
    number(page, "Smile").fill("2")
    settled(page, "Smile +2")
    page.wait_for_timeout(1000)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    changes = page.evaluate(
        """() => new Promise((resolve) => {
          let count = 0;
          const observer = new MutationObserver((records) => { count += records.length; });
          observer.observe(document, { attributes: true, characterData: true, childList: true, subtree: true });
          setTimeout(() => resolve(count), 1000);
        })"""
    )
    assert requests == []  # an event that brings itself about never ends
    assert changes < 10  # a progress indicator that never ends makes hundreds, and keeps a core busy


def test_undo_and_redo_by_button_and_keyboard(page):
    unedited = source(page)
    number(page, "Smile").fill("2")
    smiling = settled(page, "Smile +2")
    number(page, "Age").fill("1")
    both = settled(page, "Smile +2, Age +1")
    page.locator("#undo").click()
    expect(number(page, "Age")).to_have_value("0")
    assert settled(page, "Smile +2") == smiling
    page.get_by_label("range slider for Smile").press("Control+z")
    expect(number(page, "Smile")).to_have_value("0")
    assert settled(page, "No edits") == unedited
    page.locator("#redo").click()
    settled(page, "Smile +2")
    page.locator("#redo").click()
    assert settled(page, "Smile +2, Age +1") == both
    expect(page.locator("#redo")).to_be_disabled()


def test_refining_comes_closer_is_cancelled_and_goes_back(page):
    encoded = source(page)
    page.locator("#closer .label-wrap").click()
    page.locator("#refine").click()
    expect(page.locator("#status")).to_contain_text(re.compile(r"Refined in [\d.]+ s: PSNR [\d.]+ → [\d.]+ dB"))
    refined = source(page)
    assert refined != encoded
    number(page, "Smile").fill("1")
    assert settled(page, "Smile +1") != refined
    page.locator("#refine-more").click()
    page.locator("#cancel-refining").click()
    expect(page.locator("#status")).to_contain_text("Cancelled; the picture is as it was.")
    page.locator("#refine-more").click()
    number(page, "Smile").fill("0")  # meanwhile: neither loses what the other did
    expect(page.locator("#status")).to_contain_text(re.compile("Refined in"))
    expect(number(page, "Smile")).to_have_value("0")
    assert source(page) not in (refined, encoded)
    page.locator("#unrefine").click()
    assert settled(page, "Back to the inversion.") == encoded


def test_small_pictures_lead_back_to_where_the_sliders_rested(page):
    number(page, "Smile").fill("2")
    smiling = settled(page, "Smile +2")
    number(page, "Age").fill("1")
    settled(page, "Smile +2, Age +1")
    expect(page.locator("#strip .thumbnail-item").last).to_have_attribute("aria-label", "Back to: Smile +2, Age +1")
    page.locator("#strip").get_by_label("Smile +2", exact=True).last.click()
    expect(number(page, "Age")).to_have_value("0")
    assert settled(page, "Smile +2") == smiling
    expect(page.locator("#redo")).to_be_enabled()


def test_what_is_kept_unchanged_changes_what_the_others_do(page):
    number(page, "Smile").fill("2")
    before = settled(page, "Smile +2")
    page.locator("#keep input").click()
    page.get_by_role("option", name="Age").click()
    assert settled(page, "Smile +2, Age kept") != before
    page.locator("#undo").click()
    expect(page.locator("#status")).not_to_contain_text("kept")
    assert settled(page, "Smile +2") == before


def test_a_component_becomes_a_slider_of_this_visit_alone(visit):
    page, other = visit(), visit()
    page.locator("#exploring .label-wrap").click()  # on a mean face, before there is a photo
    expect(page.locator("#rows img")).to_have_count(12)
    mean = page.locator("#rows img").nth(1).get_attribute("src")
    upload(page, ASTRONAUT)
    expect(page.locator("#rows img").nth(1)).not_to_have_attribute("src", mean)
    number(page, "Smile").fill("1")
    settled(page, "Smile +1")
    ends = page.locator("#rows img").nth(3).get_attribute("src")
    number(page, "To layer").fill("3")
    expect(page.locator("#rows img").nth(3)).not_to_have_attribute("src", ends)
    page.locator("#rows .thumbnail-item").nth(3).click()
    expect(page.locator("#status")).to_contain_text("GANSpace 1 is chosen")
    page.get_by_label("Name of the slider").fill("Beard <b>")
    page.locator("#keep-own").click()
    expect(number(page, "Beard <b>")).to_have_value("0")
    expect(number(page, "Smile")).to_have_value("1")
    number(page, "Beard <b>").fill("-2")
    settled(page, "Smile +1, Beard <b> −2")
    other.reload()
    expect(other.locator("#fidelity")).to_be_visible()
    expect(other.get_by_text("My own")).to_have_count(0)


def test_two_descriptions_become_a_slider_of_this_visit(page):
    page.locator("#exploring .label-wrap").click()
    page.get_by_label("To", exact=True).fill("a red face")
    page.locator("#describe").click()
    expect(page.locator("#described img")).to_have_count(3)
    expect(page.locator("#status")).to_contain_text("A red face is a slider now")
    expect(page.locator("#describe")).to_be_enabled()
    number(page, "A red face").fill("3")
    settled(page, "A red face +3")
    page.get_by_label("Name of the slider").fill("A red face")
    page.locator("#drop-own").click()
    expect(page.get_by_label("number input for A red face")).to_have_count(0)
    page.locator("#exploring .label-wrap").click()


def test_presets_are_applied_kept_by_the_browser_and_deleted(visit):
    page = visit()
    upload(page, ASTRONAUT)
    page.locator("#more .label-wrap").click()
    page.locator("#presets").get_by_text("Older", exact=True).click()
    settled(page, "Age +2.25")
    expect(number(page, "Age")).to_have_value("2.25")
    number(page, "Smile").fill("1")
    settled(page, "Smile +1, Age +2.25")
    page.get_by_label("Name for these edits").fill("Grandma <b>")
    page.locator("#keep-preset").click()
    expect(page.locator("#presets")).to_contain_text("Grandma <b>")
    page.reload()
    expect(page.locator("#fidelity")).to_be_visible()
    page.locator("#more .label-wrap").click()
    upload(page, ASTRONAUT)
    page.locator("#presets").get_by_text("Grandma <b>").click()
    settled(page, "Smile +1, Age +2.25")
    page.get_by_label("Name for these edits").fill("Grandma <b>")
    page.locator("#delete-preset").click()
    expect(page.locator("#presets")).not_to_contain_text("Grandma")


def test_settings_come_back_from_a_picture_and_from_a_file(page, tmp_path):
    number(page, "Smile").fill("-1.5")
    number(page, "Fidelity").fill("0.5")
    edited = settled(page, "Smile −1.5, fidelity 0.5")
    download(page, "#save-face", tmp_path / "edited-face.png")
    if not page.locator("#save-settings").is_visible():
        page.locator("#more .label-wrap").click()
    with page.expect_download() as settings:
        page.locator("#save-settings").click()
    settings.value.save_as(tmp_path / "settings.json")
    for name in ("edited-face.png", "settings.json"):
        page.locator("#reset-all").click()
        settled(page, "No edits")
        page.get_by_test_id("Load settings-upload-button").set_input_files(tmp_path / name)
        assert settled(page, "Settings loaded: Smile −1.5, fidelity 0.5") == edited
        expect(number(page, "Smile")).to_have_value("-1.5")
    page.get_by_test_id("Load settings-upload-button").set_input_files(ASTRONAUT)
    expect(page.locator("#status")).to_contain_text("holds no settings of this page")
    grid = download(page, "#save-grid", tmp_path / "edited-grid.png")
    assert grid.height == 40 + 3 * 256


def test_two_people_do_not_see_each_other(page, other, mirrored):
    number(page, "Smile").fill("1")
    mine = settled(page, "Smile +1")
    upload(other, mirrored)
    number(other, "Age").fill("2")
    assert settled(other, "Age +2") != mine
    assert source(page) == mine
    number(page, "Smile").fill("2")
    assert settled(page, "Smile +2") != mine
    number(page, "Smile").fill("1")
    assert settled(page, "Smile +1") == mine
    expect(other.locator("#status")).to_contain_text("Age +2")
    assert float(number(other, "Smile").input_value()) == 0


def test_a_model_that_cannot_be_had_is_a_sentence(page):
    if (CHECKPOINTS / "e4e_church_encode.pt").exists():
        pytest.skip("the church model is here")
    before = source(page)
    page.get_by_label("Model").click()
    page.get_by_role("option", name="Churches").click()
    expect(page.locator("#status")).to_contain_text("has to be fetched by hand")
    expect(page.get_by_label("Model")).to_have_value("random")
    assert source(page) == before


def test_a_phone_shows_everything_in_one_column(other, tmp_path):
    upload(other, ASTRONAUT)
    other.set_viewport_size({"width": 390, "height": 844})
    assert other.evaluate("document.documentElement.scrollWidth") <= 390
    slider = other.get_by_label("range slider for Age")
    slider.focus()
    for part in (other.locator("#result img"), slider):  # the picture stays in sight of the sliders
        expect(part).to_be_in_viewport()
    picture, control = other.locator("#views").bounding_box(), slider.bounding_box()
    assert picture["y"] + picture["height"] <= control["y"] + 1  # and does not hide them
    other.screenshot(path=tmp_path / "phone.png")
    other.set_viewport_size({"width": 1440, "height": 900})


# The texts that can be read against what lies behind them with a contrast below 4.5 (WCAG 2.2, 1.4.3).
FAINT = """() => {
  const parts = (colour) => (colour.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
  const behind = (part) => {
    if (!part) return [255, 255, 255];
    const colour = parts(getComputedStyle(part).backgroundColor);
    return colour[3] === undefined ? colour : over(colour, behind(part.parentElement));
  };
  const light = (colour) => {
    const linear = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const faint = [];
  for (const part of document.querySelectorAll("body *")) {
    const own = [...part.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (!own || !part.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (part.closest("button:disabled, style, script, noscript")) continue;
    const below = behind(part);
    const [a, b] = [light(over(parts(getComputedStyle(part).color), below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push(`${own} ${contrast.toFixed(1)}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_can_be_read_in_light_and_dark(visit, scheme):
    page = visit(color_scheme=scheme)
    upload(page, ASTRONAUT)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0]")
    assert (int(light) > 128) == (scheme == "light")
    assert page.evaluate(FAINT) == []


def test_the_finished_page_is_photographed(other, tmp_path):
    """With E4E_SCREENSHOT=1 into docs/page.png, for the README; with the demo model where it is there."""
    if (CHECKPOINTS / "demo" / "config.json").exists():
        other.get_by_label("Model").click()
        other.get_by_role("option", name="Demo").click()
        expect(other.locator("#status")).to_contain_text(re.compile(r"demo \d+ px"))
        expect(other.locator("#direction-eyes")).to_have_count(0)  # the sliders of the model before are gone
        expect(other.locator("#sliders .group").first).to_be_visible()
    other.locator("#examples button").first.click()
    expect(other.locator("#status")).to_contain_text("Opened in")
    slider = other.locator("#sliders input[type=range]").first
    slider.press("End")
    expect(other.locator("#status")).to_contain_text("+")
    slider.blur()
    other.get_by_role("tab", name="In the photo").click()
    other.wait_for_function("() => document.querySelector('#whole img')?.complete")
    other.wait_for_timeout(1000)  # until the sliders are at rest
    target = ROOT / "docs" / "page.png" if os.environ.get("E4E_SCREENSHOT") else tmp_path / "page.png"
    target.parent.mkdir(exist_ok=True)
    other.screenshot(path=target)
    assert Image.open(target).size == (1440, 900)
