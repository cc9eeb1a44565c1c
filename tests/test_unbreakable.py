"""Hostile and broken input: always one sentence, the same process afterwards, and other sessions intact."""

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from gradio_client import Client, handle_file
from hostile import ASTRONAUT, HOSTILE, LONGER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import save
from test_editing import some_directions, tiny_model

from e4e_core.checkpoints import save_model
from editing import Direction, Editor
from errors import E4EError
from page.incoming import FAILED
from page.own import OWN
from page.page import Page
from page.presets import Edits, keep, of_face, own, read_settings
from page.studio import Studio, Visit

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
QUICK = settings(max_examples=60 * LONGER, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield Page(Studio("tiny", Editor(tiny_model(), some_directions())), "tiny")


@pytest.fixture(scope="module")
def visit(page: Page) -> Visit:
    return page.open_example(page.example_files.index(ASTRONAUT), Visit("tiny"))[page.visit]


@pytest.fixture
def stored(page: Page) -> Iterator[Path]:
    """A folder in which uploads lie."""
    folder = Path(page.photo.GRADIO_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name)


def said(page: Page, handler, *inputs) -> str:
    """What the page's status line says."""
    result = page._in_sentences(handler)(*inputs)
    assert set(result) <= {page.status, page.photo}, "a refused request changes nothing"
    text = result[page.status].split("<span>")[1].split("</span>")[0]
    assert text.endswith(".") and "Traceback" not in text and FAILED not in text
    return text


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_photo_is_a_sentence_and_the_photo_before_stays(page, visit, name, stored):
    path = stored / name
    path.write_bytes(HOSTILE[name])
    file = {"path": str(path), "url": None}
    assert "The photo before it is still here." in said(page, page.open_photo, file, visit)
    said(page, page.open_photo, file, Visit("tiny"))


def test_a_real_picture_of_one_pixel_by_ten_thousand_has_no_face(page, visit, stored):
    for size in ((1, 10_000), (10_000, 1)):
        Image.new("RGB", size, "red").save(stored / "thin.png")
        assert "No face was found" in said(page, page.open_photo, {"path": str(stored / "thin.png")}, visit)


def test_a_hundred_megapixels_are_searched_and_not_one_more_than_allowed(page, visit, stored):
    Image.new("L", (10_000, 10_000)).save(stored / "large.png", compress_level=1)
    assert "No face was found" in said(page, page.open_photo, {"path": str(stored / "large.png")}, visit)
    Image.new("1", (15_001, 10_000)).save(stored / "larger.png", compress_level=1)
    assert "more than 150 million pixels" in said(page, page.open_photo, {"path": str(stored / "larger.png")}, visit)


@QUICK
@given(data=st.binary(max_size=200))
def test_random_bytes_are_a_sentence(page, data):
    answer = page.open_photo({"url": "data:image/png;base64,AAAA", "path": None}, Visit("tiny"))
    assert answer.pop(page.photo) is None and "not a picture" in answer.pop(page.status) and not answer
    with pytest.raises(E4EError):
        page.studio.open(Visit("tiny"), io.BytesIO(data))


@QUICK
@given(smile=ANYTHING, age=ANYTHING, others=st.lists(ANYTHING, min_size=5, max_size=5))
def test_sliders_take_whatever_comes_and_stay_in_their_range(page, visit, smile, age, others):
    sent = dict(zip(("fidelity", "mix", "keep", "region", "feather"), others, strict=True))
    sent["strengths"] = {"smile": smile, "age": age}
    moved = page.rest(page._bank(visit), page._levels(visit), visit, sent)[page.visit]
    assert all(-3 <= value <= 3 and value for value in moved.edits.strengths.values())
    assert 0 <= moved.edits.fidelity <= 1
    assert visit.edits == Edits()


@pytest.mark.parametrize("name", ["../demo", "/etc", "/etc/passwd", str(ASTRONAUT.parent), "", None, 5, ["tiny"], {}])
def test_models_that_are_not_offered_are_refused(page, visit, name):
    assert "does not offer that model" in said(page, page.load_model, name)
    assert page.change_model(name, visit, None) == {page.picker: "tiny"}


@pytest.mark.parametrize("index", [-1, 10**9, 0.5, "0", None, [0], True])
def test_choices_that_are_not_there_are_refused(page, visit, index):
    assert "choose again" in said(page, page.open_example, index, visit)
    assert "choose again" in said(page, page.apply_preset, index, None, visit)


@QUICK
@given(content=ANYTHING)
def test_presets_and_settings_from_anywhere_are_checked(page, stored, content):
    kept = content if isinstance(content, list) else [content, {"name": content, "model": "tiny", "strengths": content}]
    for edits in own(kept, "tiny", some_directions()).values():
        assert all(-3 <= value <= 3 for value in edits.strengths.values())
    assert len(keep(kept, "mine", "tiny", Edits({"smile": 1.0}))) <= len(kept) + 1
    path = stored / "settings.json"
    path.write_text(json.dumps({"strengths": content, "fidelity": content}), encoding="utf-8")
    answer = page._in_sentences(page.apply_settings)({"path": str(path)}, Visit("tiny"))
    assert FAILED not in answer[page.status]


def test_settings_that_unfold_are_refused(page, visit, stored):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Settings", "[" * 50_000_000, zip=True)
    Image.new("RGB", (1, 1)).save(stored / "bomb.png", pnginfo=info)
    with pytest.raises(E4EError, match="holds no settings of this page"):
        read_settings(stored / "bomb.png")
    (stored / "deep.json").write_text("[" * 500_000, encoding="utf-8")
    assert "holds no settings" in said(page, page.apply_settings, {"path": str(stored / "deep.json")}, visit)


FIELDS = ("GANSpace", 0, 7, 3.0)  # method, first and last layer, range


@settings(QUICK, max_examples=15)
@given(fields=st.lists(ANYTHING, min_size=4, max_size=4), sheet=ANYTHING, number=ANYTHING)
def test_exploring_takes_whatever_comes(page, visit, fields, sheet, number):
    assert len(page.look_again(visit, sheet, *fields)[page.rows]) == 12
    answer = page._in_sentences(page.keep_component)(number, "mine", visit, *fields)
    assert FAILED not in answer[page.status]


def test_own_sliders_come_back_from_their_file_and_belong_to_one_visit(page, visit, stored):
    kept = page.keep_component(1, " My  beard ", visit, "SeFa", 2, 4, 2.0)[page.visit]
    slider = kept.own["tiny"]["own-My_beard"]
    assert (slider.label, slider.group, slider.low, slider.high, slider.layers) == ("My beard", OWN, -2, 2, [2, 3, 4])
    moved = page.rest(page._bank(kept), page._levels(kept), kept, {"strengths": {"own-My_beard": 1.0}})[page.visit]
    assert page.studio.words(moved) == "My beard +1"
    assert [*page.studio.directions(visit)] == [*page.studio.directions(Visit("tiny"))] == ["smile", "age"]
    (stored / "my.safetensors").write_bytes(kept.own["tiny"].packed())
    again = page.load_sliders({"path": str(stored / "my.safetensors")}, Visit("tiny"))[page.visit]
    assert torch.equal(again.own["tiny"]["own-My_beard"].vectors, slider.vectors)
    gone = page.drop_component("My beard", moved)[page.visit]
    assert gone.edits == Edits() and not gone.own["tiny"]
    assert "of that name" in said(page, page.drop_component, "My beard", gone)
    assert "needs a name" in said(page, page.keep_component, 1, " ", visit, *FIELDS)
    assert "click on one" in said(page, page.keep_component, None, "x", visit, *FIELDS)
    assert "keep one first" in said(page, page.save_sliders, visit)
    assert page.choose_method(visit, 0, *FIELDS)[page.component] is None  # it was one of the other method's


def test_without_clip_the_fields_for_words_are_off_and_say_why(page, monkeypatch):
    monkeypatch.setattr("page.describing.why_not", lambda: "Install <it> first.")
    off = Page(page.studio, "tiny")
    assert not any(part.interactive for part in (off.target, off.neutral, off.describe))
    said = [each for each in off.blocks.blocks.values() if each.elem_id == "no-words"]
    assert said[0].visible and said[0].value == "<p>Install &lt;it&gt; first.</p>"


def test_described_sliders_belong_to_their_model_and_can_be_cancelled(page, visit, monkeypatch):
    class Request:
        session_hash = "one"

    slider = Direction("A beard", "Text", -3, 3, torch.ones(8, 16))
    monkeypatch.setattr(page.studio, "describe", lambda visit, words, *watch: slider if words[0] else None)
    assert page.begin_search(visit, Request)[page.described] is None  # of an earlier search
    found = page.search("a beard", None, visit, Request)[page.described]
    assert found == ("tiny", slider)
    taken = page.take_slider(found, visit, Request)
    assert taken[page.visit].own["tiny"]["own-A_beard"].group == OWN and len(taken[page.described_ends]) == 3
    assert page.take_slider(("other", slider), visit, Request)[page.described_ends] == []
    page.begin_search(visit, Request)
    page.cancel_search(Request)
    assert page.search("a beard", None, visit, Request) == {page.described: None}
    assert "Cancelled" in page.take_slider(found, visit, Request)[page.status]
    assert page.search("a beard", None, visit, Request) == {page.described: None}  # nothing was begun


def sliders_file(vectors: torch.Tensor, **changed) -> bytes:
    words = {"x": {"label": "x", "range": [-1, 1], **changed}}
    return save({"x": vectors}, {"directions": json.dumps(words)})


HOSTILE_SLIDERS = {
    "empty": b"",
    "endless header": b"\xff" * 64,
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no words": save({"x": torch.ones(8, 16)}),
    "another model": sliders_file(torch.ones(18, 512)),
    "no numbers": sliders_file(torch.full((8, 16), float("nan"))),
    "overflow": sliders_file(torch.full((8, 16), 1e38)),
    "endless range": sliders_file(torch.ones(8, 16), range=[-1e308, 1e308]),
    "no range": sliders_file(torch.ones(8, 16), range=[1, -1]),
    "range of words": sliders_file(torch.ones(8, 16), range="ab"),
    "many": save(
        {str(n): torch.ones(1) for n in range(99)}, {"directions": json.dumps({str(n): {} for n in range(99)})}
    ),
}


@pytest.mark.parametrize("name", HOSTILE_SLIDERS)
def test_hostile_slider_files_are_a_sentence(page, visit, stored, name):
    (stored / "my.safetensors").write_bytes(HOSTILE_SLIDERS[name])
    said(page, page.load_sliders, {"path": str(stored / "my.safetensors")}, visit)


@pytest.mark.parametrize("path", ["../x", None, 5, ["smile"], " morph"])
def test_films_of_what_is_not_there_are_a_sentence(page, visit, path):
    said(page, page.download_film, visit, path, "GIF", False, SimpleNamespace(session_hash="one"))


def test_sliders_that_something_else_has_set_since_are_not_heard(page, visit):
    reset = page.reset_all(visit)
    late = page.rest(page._bank(visit), page._levels(visit), reset[page.visit], {"strengths": {"smile": 2}})
    assert late == {page.levels: reset[page.levels]}
    heard = page.rest(page._bank(visit), reset[page.levels], reset[page.visit], {"strengths": {"smile": 2}})
    assert heard[page.visit].edits.strengths == {"smile": 2}


def test_undo_leads_back_to_what_the_hand_had_not_let_go_of(page, visit):
    moved = page.studio.move(visit, {"strengths": {"smile": 1}}, rest=False)
    reset = page.reset_all(moved)[page.visit]
    assert page.step_back(reset)[page.visit].edits.strengths == {"smile": 1}
    forth = page.step_forth(moved)[page.visit]  # there is nothing to redo
    assert forth.full is not None and forth.history.edits.strengths == {"smile": 1}


def test_a_face_without_edits_keeps_its_session_while_another_is_open(page, visit):
    refined = replace(visit.session, codes=visit.session.codes + 0.1)
    elsewhere = page.studio.choose_face(replace(visit, others={1: (refined, visit.history)}), 1)
    assert elsewhere.session is refined and elsewhere.others[0][0] is visit.session and elsewhere.backdrop is None
    assert page.studio.settings(elsewhere).get("others", {}) == {}


def test_settings_of_several_faces_are_read_for_the_open_one():
    settings = {"strengths": {"smile": 1}, "face": 0, "others": {"1": {"strengths": {"smile": 2}}, "2": 5}}
    assert [of_face(settings, face)["strengths"]["smile"] for face in range(3)] == [1, 2, 1]
    assert of_face({"strengths": {}, "others": []}, 1) == {"strengths": {}, "others": []}


def test_no_handler_needs_a_photo(page):
    for handler in (page.download_face, page.download_photo, page.download_grid):
        assert "choose one first" in said(page, handler, Visit("tiny"))
    for handler in (page.reset_all, page.download_settings):
        assert page.status in handler(Visit("tiny"))


# Over the network


@pytest.fixture(scope="module")
def served(page) -> Iterator[str]:
    _, address, _ = page.blocks.queue().launch(
        server_name="127.0.0.1",
        quiet=True,
        prevent_thread_lock=True,
        run_history=False,
        ssr_mode=False,
        app_kwargs={"routes": page.routes},
    )
    yield address
    page.blocks.close()


@pytest.fixture(scope="module")
def client(served) -> Client:
    return Client(served, verbose=False, httpx_kwargs={"timeout": 600})


def test_frames_are_for_open_pages_alone(served, page, visit):
    page.blocks.state_holder["me"][page.visit._id] = visit
    asked = {"session": "me", "bank": page._bank(visit), "levels": page._levels(visit)}
    asked["sent"] = {"strengths": {"smile": 1e300, "x": []}}

    def ask(**changed) -> httpx.Response:
        return httpx.post(f"{served}frame", json={**asked, **changed}, timeout=600)

    face, compare, whole, status = ask().json()
    assert face["url"].startswith("data:image/jpeg") and compare is whole is None and "smile +3" in status
    assert page.blocks.state_holder["me"][page.visit._id].edits.strengths == {"smile": 3}
    assert ask().status_code == 204, "the picture is there"
    assert "smile +3" in ask(again=True).json()[-1], "unless it got lost"
    assert "No edits" in ask(sent=[]).json()[-1]
    assert ask(session="somebody").status_code == ask(bank={}).status_code == 204
    assert ask(levels='{"set_at": "1"}').status_code == ask(levels="[").status_code == 204
    assert "somebody" not in page.blocks.state_holder
    hostile = [b"", b"[]", b"5", b"\xff", b"[" * 60_000, b" " * 100_000, b"{}"]
    hostile += [json.dumps({**asked, "session": {}}).encode()]
    assert {httpx.post(f"{served}frame", content=each, timeout=600).status_code for each in hostile} == {400}


def test_a_program_edits_a_photo(client, tmp_path):
    sliders = client.predict(model="", api_name="/directions")
    assert [slider["name"] for slider in sliders] == ["smile", "age"]
    assert set(sliders[0]) == {"name", "label", "group", "low", "high"}
    path, report = client.predict(
        photo=handle_file(str(ASTRONAUT)),
        strengths={"smile": 1.5},
        fidelity=0.5,
        face=0,
        whole=True,
        model="",
        region="mouth",
        feather=0.1,
        api_name="/edit",
    )
    picture = Image.open(path)
    assert picture.size == (report["width"], report["height"]) == Image.open(ASTRONAUT).size
    made = json.loads(picture.text["Settings"])
    assert (made["strengths"], made["region"]) == ({"smile": 1.5}, "mouth")
    assert "compositeWithTrainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]
    side_by_side = Image.new("RGB", (1024, 512))
    for at in (0, 512):
        side_by_side.paste(Image.open(ASTRONAUT).convert("RGB").resize((512, 512)), (at, 0))
    side_by_side.save(tmp_path / "two.png")
    other, report = client.predict(
        photo=handle_file(str(tmp_path / "two.png")), strengths={"smile": 1.5}, face=1, api_name="/edit"
    )
    made = json.loads(Image.open(other).text["Settings"])
    assert (report["faces"], made["face"], made["strengths"]) == (2, 1, {"smile": 1.5})
    far, farther = (
        Image.open(client.predict(photo=handle_file(str(ASTRONAUT)), strengths={"smile": at}, api_name="/edit")[0])
        for at in (sliders[0]["high"], 2 * sliders[0]["high"])
    )
    assert far.tobytes() != farther.tobytes()  # what is asked for is rendered, also beyond the slider
    face, report = client.predict(photo=handle_file(str(ASTRONAUT)), api_name="/edit")  # the rest has its defaults
    assert Image.open(face).size == (32, 32) and report["face"] == 0


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"strengths": {"smile": 1e300}}, "smile"),
        ({"strengths": {"smile": "1"}}, "smile"),
        ({"strengths": {"../smile": 1}}, "no direction"),
        ({"strengths": [1, 2]}, "dictionary"),
        ({"fidelity": 1e300}, "idelity"),
        ({"face": 99}, "no face 99"),
        ({"face": 0.5}, "whole number"),
        ({"region": "../nose"}, "no region"),
        ({"feather": 1e300}, "feather cannot be"),
        ({"model": "../../etc/passwd"}, "does not offer that model"),
        ({"model": str(ASTRONAUT.parent)}, "does not offer that model"),
    ],
)
def test_a_program_that_errs_gets_a_sentence(client, wrong, sentence):
    with pytest.raises(Exception, match=sentence):
        client.predict(photo=handle_file(str(ASTRONAUT)), **wrong, api_name="/edit")
    assert client.predict(api_name="/directions")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1" * 400])
def test_numbers_that_json_has_no_words_for_are_refused(served, client, number):
    """Sent by hand, because no client would."""

    def edit(strengths: str = "{}", fidelity: str = "1", face: str = "0", feather: str = "0.1") -> str:
        """What the server answers, or its status if it refuses the request."""
        file = httpx.post(f"{served}gradio_api/upload", files={"files": ASTRONAUT.read_bytes()}, timeout=600).json()[0]
        photo = json.dumps({"path": file, "meta": {"_type": "gradio.FileData"}})
        job = httpx.post(
            f"{served}gradio_api/call/edit",
            content=f'{{"data": [{photo}, {strengths}, {fidelity}, {face}, false, "", "", {feather}]}}',
            headers={"Content-Type": "application/json"},
            timeout=600,
        )
        if job.status_code != 200:
            return str(job.status_code)
        return httpx.get(f"{served}gradio_api/call/edit/{job.json()['event_id']}", timeout=600).text

    assert "event: complete" in edit()
    answers = [edit(strengths=f'{{"smile": {number}}}'), edit(fidelity=number), edit(face=number), edit(feather=number)]
    for answer in answers:
        assert answer in ("400", "422") or ("event: error" in answer and "Traceback" not in answer)
    assert client.predict(api_name="/directions")


@pytest.mark.parametrize(
    "file", [{"path": "/etc/passwd"}, {"path": "../../etc/passwd"}, {"url": 5}, {"path": 5}, 5, [], "x"]
)
def test_only_uploaded_files_are_opened(page, visit, file):
    for handler in (page.open_photo, page.apply_settings, page.open_second, page.load_sliders):
        assert "not a file it uploaded" in said(page, handler, file, Visit("tiny"))


def test_files_of_the_server_cannot_be_opened(served, page, tmp_path):
    """Neither by path through the photo field and the endpoint, nor through Gradio's file route."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(ASTRONAUT.read_bytes())
    for path in (secret, "/etc/passwd"):
        assert httpx.get(f"{served}gradio_api/file={path}").status_code in (403, 404)
    wanted = {index for index, fn in page.blocks.fns.items() if getattr(fn, "name", "") in ("open_photo", "edit")}
    assert len(wanted) == 2
    for index in wanted:
        for file in ({"path": str(secret)}, {"path": str(secret), "meta": {"_type": "gradio.FileData"}}):
            thief = f"thief{index}{len(file)}"
            others = [None] * (len(page.blocks.fns[index].inputs) - 1)
            job = {"data": [file, *others], "fn_index": index, "session_hash": thief}
            httpx.post(f"{served}gradio_api/queue/join", json=job, timeout=600)
            answer = httpx.get(f"{served}gradio_api/queue/data?session_hash={thief}", timeout=600).text
            done = [json.loads(line[5:]) for line in answer.splitlines() if "process_completed" in line]
            assert done, answer
            assert "base64" not in answer


def test_another_model_folder_is_not_reachable_by_its_path(client, tmp_path):
    save_model(tiny_model(template=None), tmp_path / "other")
    with pytest.raises(Exception, match="does not offer that model"):
        client.predict(model=str(tmp_path / "other"), api_name="/directions")
