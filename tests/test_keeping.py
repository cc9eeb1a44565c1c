"""What a visit keeps: sliders of its own, presets that use them, settings of several faces."""

from dataclasses import replace

import pytest
import torch
from test_editing import LAYERS, WIDTH, some_directions, tiny_model

from editing import Direction, Editor
from errors import PhotoError
from page import own
from page.page import Page
from page.presets import Edits, of_face
from page.studio import History, Studio, Visit


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(Studio("tiny", Editor(tiny_model(template=None), some_directions())), "tiny")


@pytest.fixture(scope="module")
def visit(page: Page) -> Visit:
    return page.open_example(0, Visit("tiny"))[page.visit]


def slider(label: str, reach: float) -> Direction:
    return Direction(label, "", -reach, reach, torch.randn(LAYERS, WIDTH))


def test_own_sliders_with_like_names_do_not_replace_each_other(page, visit):
    studio = page.studio
    for label, reach in (("Hair +", 1), ("Hair -", 2), ("Beard", 6)):
        visit = own.keep_found(studio, visit, slider(label, reach))
    assert [each.label for each in visit.own["tiny"].values()] == ["Hair +", "Hair -", "Beard"]
    visit = studio.edited(visit, Edits({"own-Beard": 5.0}))
    visit = own.keep_found(studio, visit, slider("Beard", 0.5))  # the same name: it takes the other's place
    assert len(visit.own["tiny"]) == 3 and visit.edits.strengths == {"own-Beard": 0.5}
    back = studio.step(visit, -1)  # to a strength that the new slider does not have
    assert studio.draw(back, back.edits).tobytes() == studio.draw(visit, visit.edits).tobytes()
    visit = own.drop(studio, visit, " Hair  - ")
    assert [each.label for each in visit.own["tiny"].values()] == ["Hair +", "Beard"]
    with pytest.raises(PhotoError, match="no slider of your own"):
        own.drop(studio, visit, "Hair -")
    for label in ("Hair -", "Hair -"):  # beside "Hair +", and without it
        visit = own.keep_found(studio, visit, slider(label, 1))
        visit = own.drop(studio, visit, "Hair +") if "own-Hair_" in visit.own["tiny"] else visit
    assert [each.label for each in visit.own["tiny"].values()] == ["Beard", "Hair -"]


def test_a_preset_holds_own_sliders(page, visit):
    visit = own.keep_found(page.studio, visit, slider("Beard", 6))
    visit = page.studio.edited(visit, Edits({"own-Beard": 5.0}))
    kept = page.keep_preset("Bearded", [], visit)[page.kept]
    index = [*page._presets(visit, kept)].index("Bearded")
    applied = page.apply_preset(index, kept, page.studio.edited(visit, Edits()))[page.visit]
    assert applied.edits.strengths == {"own-Beard": 5.0}


def test_settings_of_several_faces_find_their_face(page, visit):
    session = replace(visit.session, faces=(None, None), face=1)
    visit = replace(visit, session=session, edits=Edits({"smile": 2.0}), others={0: (visit.session, History())})
    settings = page.studio.settings(visit)
    assert not of_face(settings, 0)["strengths"] and of_face(settings, 1)["strengths"] == {"smile": 2.0}


def test_edits_of_a_photo_that_is_gone_wait_for_their_faces(page, visit, monkeypatch):
    session = replace(visit.session, faces=(None, None), face=1)
    first, second = Edits({"smile": 1.0}), Edits({"smile": 2.0})
    visit = replace(visit, session=session, edits=second, others={0: (visit.session, History().rested(first))})
    back = page.studio.open(visit.without_photo(), page.example_files[0])
    assert back.edits == back.history.edits == first
    again = page.studio.open(visit.without_photo().without_photo(), page.example_files[0])
    assert again.waiting == back.waiting
    monkeypatch.setattr(page.studio, "_encode", lambda *_: session)
    assert page.studio.choose_face(back, 1).edits == second


def test_each_small_picture_says_what_it_shows(page, visit):
    visit = page.studio.edited(visit, Edits({"smile": -1.0}))
    assert [each["caption"] for each in page._strip(visit)] == ["No edits", "Now: smile −1"]


def test_a_second_photo_that_cannot_be_opened_leaves_the_one_before(page, visit):
    with_second = page.studio.open_second(visit, page.example_files[0])
    for before in (visit, with_second):
        answer = page.open_second({"path": None, "url": "data:image/png;base64,AAAA"}, before)
        assert page.visit not in answer and (answer[page.second] is None) == (before.second is None)
        assert ("is still here" in answer[page.status]) == (before.second is not None)


def test_a_small_picture_of_before_leaves_where_the_hand_was_to_redo(page, visit):
    studio = page.studio
    visit = studio.edited(studio.edited(visit, Edits({"smile": 1.0})), Edits({"smile": 2.0}))
    moved = studio.move(visit, {"strengths": {"smile": 3.0}}, rest=False)
    gone = studio.go(moved, 1)
    assert gone.edits.strengths == {"smile": 1.0}
    assert studio.step(gone, -1).edits.strengths == {"smile": 3.0}
