import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import alignment
from e4e_core.images import to_picture
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from editing import Direction, DirectionSet, Editor
from editing.export import save_png
from errors import DirectionError, DownloadError, PhotoError

RESOLUTION, WIDTH, LAYERS = 32, 16, 8


def tiny_model(**domain) -> E4E:
    """A complete model with random weights."""
    torch.manual_seed(0)
    decoder = Generator(GeneratorConfig(RESOLUTION, WIDTH, mapping_layers=2, channels=(8, 8, 8, 8)))
    shape = EncoderConfig("e4e", 64, LAYERS, WIDTH, stem=8, stages=(8, 8, 8, 8), blocks=(1, 1, 1, 1), pyramid=8)
    return E4E(Encoder(shape), decoder, name="tiny", **domain).eval().requires_grad_(False)


def some_directions() -> DirectionSet:
    torch.manual_seed(1)
    return DirectionSet({name: Direction(name, "Face", -3, 3, torch.randn(LAYERS, WIDTH)) for name in ("smile", "age")})


def noise_photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(tiny_model(), some_directions())


@pytest.fixture(scope="module")
def session(editor, shared):
    return editor.open(shared / "photos" / "portrait.jpg")


def test_open_keeps_all_that_rendering_needs(editor, session):
    assert session.picture.size == (64, 64)
    assert session.codes.shape == (1, LAYERS, WIDTH)
    assert session.codes.device.type == "cpu" and not session.codes.requires_grad
    assert session.face == 0 and len(session.faces) >= 1
    assert session.photo.mode == "RGB"


def test_render_starts_from_the_photos_own_codes_every_time(editor, session):
    before = editor.render(session, {})
    assert before.size == (RESOLUTION, RESOLUTION)
    assert before.tobytes() == to_picture(editor.model.synthesize(session.codes)).tobytes()
    smiling = editor.render(session, {"smile": 3})
    assert smiling.tobytes() != before.tobytes()
    assert editor.render(session, {"smile": 0, "age": 0}).tobytes() == before.tobytes()
    assert editor.render(session, {"age": 1, "smile": 3}).tobytes() == (
        editor.render(session, {"smile": 3, "age": 1}).tobytes()
    )


def test_fidelity_zero_renders_the_single_w(editor, session):
    w = session.codes[:, :1].expand_as(session.codes)
    expected = to_picture(editor.model.synthesize(w))
    assert editor.render(session, {}, fidelity=0).tobytes() == expected.tobytes()


def test_a_preview_is_smaller(editor, session):
    assert editor.render(session, {"smile": 1}, size=16).size == (16, 16)


def test_impossible_edits_are_sentences(editor, session):
    with pytest.raises(DirectionError, match=r"^This model has no direction 'wink'; choose one of smile, age\.$"):
        editor.render(session, {"wink": 1})
    with pytest.raises(DirectionError, match="Fidelity cannot be -1"):
        editor.render(session, {}, fidelity=-1)


def test_paste_changes_the_face_and_nothing_beyond_the_crop(editor, session):
    full = editor.paste(session, editor.render(session, {"smile": 2}))
    assert full.size == session.photo.size
    changed = np.argwhere((np.asarray(full) != np.asarray(session.photo)).any(2))  # [n, 2] as (y, x)
    assert len(changed) > 0
    on_crop = np.c_[changed[:, ::-1], np.ones(len(changed))] @ session.crop.photo_to_crop.T
    assert on_crop[:, :2].min() >= -1 and on_crop[:, :2].max() <= 64
    for size in (None, 16):  # what a preview leaves out is no edit
        assert editor.paste(session, editor.render(session, {}, size=size)).tobytes() == session.photo.tobytes()


def test_a_face_that_is_not_there_is_one_sentence(editor, session):
    count = len(session.faces)
    for face in (-1, count):
        with pytest.raises(PhotoError, match=rf"^There is no face {face} in this photo; it has "):
            editor.choose_face(session, face)
    assert torch.equal(editor.choose_face(session, 0).codes, session.codes)


def test_a_photo_without_a_face_is_one_sentence(editor):
    with pytest.raises(alignment.NoFaceError, match="No face was found in this photo; "):
        editor.open(Image.new("RGB", (200, 200), "grey"))


def test_many_threads_share_an_editor(editor, session):
    strengths = [{"smile": value / 4} for value in range(-8, 8)]
    alone = [editor.render(session, each).tobytes() for each in strengths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: editor.render(session, each).tobytes(), strengths))
    assert together == alone


@pytest.mark.parametrize(
    ("aspect", "photo_size", "seen", "rendered"),
    [
        ((4, 3), (300, 150), (64, 48), (32, 24)),  # as cars
        ((4, 3), (90, 200), (64, 48), (32, 24)),
        ((1, 1), (100, 150), (64, 64), (32, 32)),  # as churches and horses
    ],
)
def test_domains_without_faces_take_the_middle_of_the_picture(aspect, photo_size, seen, rendered):
    editor = Editor(tiny_model(template=None, aspect=aspect), some_directions())
    session = editor.open(noise_photo(*photo_size))
    assert session.faces == () and session.picture.size == seen
    picture = editor.render(session, {"smile": 1})
    assert picture.size == rendered
    assert editor.render(session, {}, size=16).size == (16, 16 * aspect[1] // aspect[0])
    full = editor.paste(session, picture)
    changed = np.argwhere((np.asarray(full) != np.asarray(session.photo)).any(2))
    middle = changed.mean(0)[::-1]
    assert full.size == photo_size
    np.testing.assert_allclose(middle, np.array(photo_size) / 2, atol=3)
    with pytest.raises(PhotoError, match="edits the whole picture, not faces"):
        editor.choose_face(session, 1)


def test_directions_must_fit_the_model():
    other = DirectionSet({"smile": Direction("Smile", "Face", -3, 3, torch.ones(18, 512))})
    with pytest.raises(DirectionError, match="made for 18 layers of width 512, but this model has 8 of width 16"):
        Editor(tiny_model(), other)


def test_without_a_network_the_page_still_starts(monkeypatch):
    def offline(model):
        raise DownloadError("age.pt could not be fetched; connect to the network.")

    monkeypatch.setattr("editing.editor.directions_for", offline)
    editor = Editor(tiny_model())
    assert not editor.directions and "connect to the network" in editor.notice


def test_png_tells_how_it_was_made_and_nothing_about_the_person(tmp_path):
    picture = noise_photo(20, 10)
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    picture.info["exif"] = exif.tobytes()
    picture.info["comment"] = "SecretPlace"
    settings = {"model": "demo", "strengths": {"smile": 1.5}, "fidelity": 0.9}
    save_png(picture, tmp_path / "a.png", settings)
    written = (tmp_path / "a.png").read_bytes()
    assert b"Secret" not in written and b"eXIf" not in written
    assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in written
    read = Image.open(io.BytesIO(written))
    assert json.loads(read.text["Settings"]) == settings
    assert "edited with AI" in read.text["Description"]
    np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
