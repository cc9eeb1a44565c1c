"""Two photos in one picture, and films: of a morph between them, and of a slider, in the photo or not."""

from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from test_editing import LAYERS, RESOLUTION, WIDTH, some_directions, tiny_model

from editing import Direction, DirectionSet, Editor
from editing.animation import FRAMES, save_film
from editing.mixing import Mix
from errors import DirectionError, PhotoError
from page import studio as studio_module
from page.sheets import MORPH, film
from page.studio import Studio, Visit


def test_amounts_are_the_part_of_the_way_to_the_second_code():
    first, second = torch.zeros(1, 10, 4), torch.ones(1, 10, 4)
    mixed = Mix(morph=0.5, coarse=0.5, fine=1.0).blend(first, second)[0, :, 0]
    # 4² and 8² are layers 0 to 2, 16² and 32² layers 3 to 6: half of the way, and half or all of what is left.
    assert mixed.tolist() == [0.75] * 3 + [0.5] * 4 + [1.0] * 3


def test_the_ends_are_exactly_the_photos():
    first, second = torch.randn(2, 18, 512).split(1)
    assert torch.equal(Mix().blend(first, second), first)
    assert torch.equal(Mix(morph=1.0).blend(first, second), second)
    assert torch.equal(Mix(coarse=1.0, middle=1.0, fine=1.0).blend(first, second), second)


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_other_amounts_are_refused(amount):
    with pytest.raises(DirectionError, match="amount of coarse cannot be"):
        Mix(coarse=amount)


def test_two_models_do_not_mix():
    with pytest.raises(DirectionError, match="open the second one again"):
        Mix(morph=0.5).blend(torch.zeros(1, 18, 512), torch.zeros(1, 10, 128))


def test_fidelity_is_of_both_photos_and_edits_come_on_top():
    editor = Editor(tiny_model(template=None), some_directions())
    first, second = (editor.open(Image.new("RGB", (64, 64), colour)) for colour in ("red", "navy"))
    for strengths in ({}, {"smile": 1.0}):
        mixed = editor.render(first, strengths, 0.5, None, second, Mix(morph=1.0))
        assert mixed.tobytes() == editor.render(second, strengths, 0.5).tobytes()
        assert mixed.tobytes() != editor.render(first, strengths, 0.5).tobytes()


def test_kept_directions_are_kept_and_the_others_lose_only_what_lies_along_them():
    torch.manual_seed(0)
    vectors = {name: torch.randn(LAYERS, WIDTH) for name in ("age", "glasses", "gender")}
    vectors["glasses"][4:] = 0  # a layer on which nothing is to be kept stays free
    vectors["age"][1] = 0
    directions = DirectionSet({name: Direction(name, "", -1, 1, each) for name, each in vectors.items()})
    kept = directions.keeping(["glasses"])
    assert torch.equal(kept["glasses"].vectors, vectors["glasses"])
    age = kept["age"].vectors
    assert (age * vectors["glasses"]).sum(1).abs().max() < 1e-5
    assert torch.equal(age[4:], vectors["age"][4:]) and not age[1].any()
    along = (vectors["age"] * vectors["glasses"]).sum(1) / vectors["glasses"].square().sum(1)  # n1 − (n1ᵀn2)n2, eq. 1
    expected = vectors["age"] - along.nan_to_num()[:, None] * vectors["glasses"]
    torch.testing.assert_close(age, expected)
    both = directions.keeping(["glasses", "gender"])["age"].vectors
    for name in ("glasses", "gender"):
        assert (both * vectors[name]).sum(1).abs().max() < 1e-5
    assert directions.keeping(()) is directions
    with pytest.raises(DirectionError, match="no direction 'hat'"):
        directions.keeping(["hat"])


# Films


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio("tiny", Editor(tiny_model(template=None), some_directions()))


@pytest.fixture(scope="module")
def visit(studio: Studio) -> Visit:
    """Two photos, wider than high, and for the second one codes far from the first's."""
    first = Image.linear_gradient("L").resize((120, 90)).convert("RGB")
    second = Image.radial_gradient("L").resize((120, 90)).convert("RGB")
    visit = studio.open_second(studio.open(Visit("tiny"), first), second)
    torch.manual_seed(3)
    return replace(visit, second=replace(visit.second, codes=3 * torch.randn(1, LAYERS, WIDTH)))


def frames_of(path: Path) -> np.ndarray:
    """All pictures of a film, int [frames, h, w, 3]."""
    if path.suffix == ".gif":
        with Image.open(path) as gif:
            return np.stack([np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(gif)])
    frames = imageio_ffmpeg.read_frames(str(path))
    width, height = next(frames)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3).astype(int) for frame in frames])


def is_near(frame: np.ndarray, picture: Image.Image) -> bool:
    """Whether a frame shows a picture, but for the film's compression and, in a GIF, the dots that mix its colours."""
    shown = Image.fromarray(frame.astype(np.uint8))
    coarse = (np.asarray(each.resize((32, 32), Image.Resampling.BOX), int) for each in (shown, picture))
    return np.abs(np.subtract(*coarse)).mean() < 8


@pytest.mark.parametrize("kind", ["gif", "mp4"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_morph_begins_with_the_first_photo_and_turns_back_at_the_second(studio, visit, tmp_path, kind, whole):
    save_film(film(studio, visit, MORPH, whole, 512), tmp_path / f"morph.{kind}")
    frames = frames_of(tmp_path / f"morph.{kind}")
    assert frames.shape == (FRAMES, 256, 342 if whole else 256, 3)  # 90 rows grow to 256, and 120 columns with them
    for at, morph in ((0, 0.0), (FRAMES // 2, 1.0)):
        moved = studio.move(visit, {"mix": {"morph": morph}}, rest=True)
        picture = studio.render(moved)[1]
        assert is_near(frames[at], studio.paste(moved, picture) if whole else picture)
    assert not is_near(frames[FRAMES // 2], Image.fromarray(frames[0].astype(np.uint8)))
    data = (tmp_path / f"morph.{kind}").read_bytes()
    assert b"edited with AI" in data and b"compositeWithTrainedAlgorithmicMedia" in data


def test_a_film_of_a_slider_in_the_photo_goes_from_end_to_end_with_the_other_edits(studio, visit, tmp_path):
    visit = studio.move(visit, {"strengths": {"age": 1.5}, "region": "everything"}, rest=True)
    save_film(film(studio, visit, "smile", True, 512), tmp_path / "smile.mp4")
    frames = frames_of(tmp_path / "smile.mp4")
    assert len(frames) == FRAMES
    for at, smile in ((0, -3.0), (FRAMES // 2, 3.0)):
        moved = studio.move(visit, {"strengths": {"age": 1.5, "smile": smile}}, rest=True)
        assert is_near(frames[at], studio.paste(moved, studio.render(moved)[1]))


def test_a_morph_needs_a_second_photo(studio, visit):
    with pytest.raises(PhotoError, match="no second photo to morph to; choose one"):
        film(studio, studio.open_second(visit, None), MORPH, False, 512)


@pytest.mark.parametrize("program", ["/bin/false", "/not/there"])
def test_without_a_working_ffmpeg_a_sentence_offers_gif(studio, visit, tmp_path, monkeypatch, program):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    with pytest.raises(PhotoError, match="could not be written as MP4 on this machine; choose GIF"):
        save_film(film(studio, visit, "smile", False, 512), tmp_path / "smile.mp4")
    assert not [*tmp_path.iterdir()]  # no half a film
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    monkeypatch.setattr("imageio_ffmpeg._utils._get_ffmpeg_exe", lambda: None)
    with pytest.raises(PhotoError, match="no ffmpeg on this machine, which MP4 films need; choose GIF"):
        save_film(film(studio, visit, "smile", False, 512), tmp_path / "smile.mp4")


# Previews


def test_previews_that_would_come_too_late_have_half_the_side(visit, monkeypatch):
    studio = Studio("tiny", Editor(tiny_model(template=None), some_directions()))
    monkeypatch.setattr(studio_module, "PREVIEW", 16)
    taken = iter([900.0, 900.0, 300.0, 100.0, 300.0])
    monkeypatch.setattr(studio_module, "milliseconds", lambda start: next(taken))

    def width(strength: float, preview: bool) -> int:
        return studio.render(studio.move(visit, {"strengths": {"smile": strength}}, rest=False), preview)[1].width

    full = width(0.1, preview=False)
    assert full == RESOLUTION
    assert [width(0.1 * step, preview=True) for step in range(2, 6)] == [16, 8, 8, 16]
