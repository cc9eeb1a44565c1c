"""What the page lets people take of its machine, and what happens at the limit."""

from asyncio import Queue
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_editing import some_directions, tiny_model

import app
import limits
from alignment import open_photo
from editing import Editor
from errors import PhotoError, SettingError
from page import page as page_module
from page.incoming import DROPPED, FULL
from page.page import Page
from page.parts import data_url
from page.presets import Edits
from page.studio import Studio, Visit


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(Studio("tiny", Editor(tiny_model(), some_directions())), "tiny")


@pytest.fixture(scope="module")
def opened(page) -> Visit:
    index = next(i for i, path in enumerate(page.example_files) if path.stem == "astronaut")
    return page.open_example(index, Visit("tiny"))[page.visit]


@pytest.mark.parametrize("value", ["0", "-1", "1e3", "many", "٣", "10000000000", "1.5"])
def test_a_limit_that_is_no_number_is_a_sentence_before_the_page_starts(monkeypatch, capsys, value):
    monkeypatch.setenv("E4E_MAX_QUEUE", value)
    with pytest.raises(SettingError, match=r"E4E_MAX_QUEUE is .* set it to a whole number from 1 to 100000"):
        limits.limit("E4E_MAX_QUEUE")
    assert app.main(["--model", "demo"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_limits_are_read_from_the_environment(monkeypatch):
    assert limits.limit("E4E_MAX_UPLOAD_MB") == 100
    monkeypatch.setenv("E4E_MAX_UPLOAD_MB", " 7 ")
    assert limits.limit("E4E_MAX_UPLOAD_MB") == 7


def test_pixels_are_limited(monkeypatch):
    monkeypatch.setenv("E4E_MAX_MEGAPIXELS", "1")
    assert open_photo(Image.new("RGB", (1000, 1000))).size == (1000, 1000)
    with pytest.raises(PhotoError, match="more than 1 million pixels; reduce it"):
        open_photo(Image.new("RGB", (1001, 1000)))


def test_the_photo_nobody_touched_for_longest_makes_room(page, opened, monkeypatch):
    monkeypatch.setenv("E4E_MAX_PHOTOS", "2")
    holder, key = page.blocks.state_holder, page.visit._id
    moved = page.rest(page._bank(opened), page._levels(opened), opened, {"strengths": {"smile": 1.0}})[page.visit]
    for person in ("first", "second", "third"):
        holder[person]
        page.open_example(0, Visit("tiny"))
        holder[person][key] = moved
    assert [holder[person][key].session is None for person in ("first", "second", "third")] == [True, False, False]
    dropped = holder["first"][key]
    late = page.rest(page._bank(dropped), page._levels(dropped), dropped, {"strengths": {"smile": 2.0}})
    assert DROPPED in late[page.status]
    assert DROPPED in page._in_sentences(page.download_face)(dropped)[page.status]
    again = page.open_example(0, dropped)[page.visit]
    holder["first"][key] = page.open_second({"path": None, "url": data_url(opened.session.photo)}, dropped)[page.visit]
    page.open_example(0, Visit("tiny"))  # of the last one
    assert [holder[person][key].photos for person in ("first", "second", "third")] == [1, 0, 1]
    assert again.edits.strengths == {"smile": 1.0} and not again.dropped


def test_a_page_that_was_cut_off_keeps_its_edits_but_not_its_photo(page, opened):
    holder, key = page.blocks.state_holder, page.visit._id
    holder["asleep"][key] = replace(opened, model="other", edits=Edits({"smile": 1.0}))
    unread = page.blocks._queue.pending_messages_per_session["asleep"] = Queue()  # as Gradio makes it
    unread.put_nowait("a picture")
    times, event = page.blocks._queue.process_time_per_fn, Mock(rendered_in="its sliders")
    times[event].add(1.0)
    page.forget(SimpleNamespace(session_hash="asleep"))
    assert unread.empty() and event not in times
    left = holder["asleep"][key]
    assert left.session is None and left.dropped
    assert (left.model, left.edits) == ("other", Edits({"smile": 1.0}))
    page.forget(SimpleNamespace(session_hash="never seen"))
    back = page.open_example(0, replace(left, model="tiny"))[page.visit]
    for visit, kept in ((back, True), (replace(back, opened=0.0), False)):  # chosen after the page was closed, before
        holder["asleep"][key] = visit
        page._drop_photo("asleep", before=1e-9)
        assert (holder["asleep"][key].session is not None) == kept


def test_sliders_that_are_gone_are_replaced(page, opened):
    away = page._bank(replace(opened, model="other"))
    answer = page.rest(away, page._levels(opened), opened, {"strengths": {"smile": 1.0}})
    assert answer[page.bank] == page._bank(opened) and answer[page.picker] == "tiny"
    assert page.visit not in answer


def without_memory(*_):
    raise np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("float32"))


@pytest.mark.parametrize(
    "fail",
    [
        without_memory,
        lambda *_: torch.empty(1 << 60),  # PyTorch's own words on a CPU
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    ],
    ids=["numpy", "torch", "cuda"],
)
def test_out_of_memory_is_a_sentence_and_the_page_goes_on(page, opened, monkeypatch, fail):
    renderer = page.studio.editor("tiny").renderer
    page.studio.render(page.studio.edited(opened, page_module.Edits({"smile": 1.0})))
    assert renderer.kept_bytes
    with monkeypatch.context() as patch:
        patch.setattr(page.studio, "_draw", fail)
        asked = (page._bank(opened), page._levels(opened), opened, {"strengths": {"smile": 2.0}})
        answer = page._in_sentences(page.rest)(*asked)
    assert FULL in answer[page.status] and set(answer) == {page.status}
    assert not renderer.kept_bytes
    assert page.face in page.rest(*asked)
