import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from e4e_core import load_model
from e4e_core.training.data import Pictures
from editing import discovery
from editing.attributes import measure_light
from editing.directions import (
    PUBLISHED,
    Direction,
    DirectionSet,
    directions_for,
    directions_to_extend,
    published_directions,
    tomllib,
)
from editing.discovery import TRIED, Trial, fit_directions, range_of, read_labels
from editing.packing import unpack
from errors import DirectionError, DownloadError, TrainingError

LAYERS, WIDTH = 6, 4
NAMES = ("age", "light", "pose", "smile")


def random_set(seed: int = 0) -> DirectionSet:
    generator = torch.Generator().manual_seed(seed)
    return DirectionSet(
        {
            name: Direction(name.title(), "Face", -3, 3, torch.randn(LAYERS, WIDTH, generator=generator))
            for name in reversed(NAMES)
        }
    )


def random_codes(count: int = 2) -> torch.Tensor:
    return torch.randn(count, LAYERS, WIDTH, generator=torch.Generator().manual_seed(1))


few = settings(max_examples=25, deadline=None)
a_strength = st.floats(-3, 3, width=32)
some_strengths = st.dictionaries(st.sampled_from(NAMES), a_strength)


@few
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 0.0, -0.0])))
def test_strength_zero_is_exactly_the_identity(strengths):
    assert torch.equal(random_set().edit_codes(random_codes(), strengths), random_codes())


@few
@given(some_strengths, st.randoms())
def test_order_does_not_matter_to_the_last_bit(strengths, random):
    shuffled = list(strengths.items())
    random.shuffle(shuffled)
    edited = random_set().edit_codes(random_codes(), strengths)
    assert torch.equal(edited, random_set().edit_codes(random_codes(), dict(shuffled)))


@few
@given(some_strengths, some_strengths, st.floats(0, 1))
def test_edits_add_up(first, second, fidelity):
    directions, codes = random_set(), random_codes()
    both = {name: first.get(name, 0.0) + second.get(name, 0.0) for name in first | second}
    step_by_step = directions.edit_codes(directions.edit_codes(codes, first, fidelity), second)
    torch.testing.assert_close(directions.edit_codes(codes, both, fidelity), step_by_step, rtol=1e-5, atol=1e-5)


def test_fidelity_goes_from_w_alone_to_the_codes_exactly():
    directions, codes = random_set(), random_codes()
    w = codes[:, :1].expand_as(codes)
    assert torch.equal(directions.edit_codes(codes, {}, 0), w)
    assert torch.equal(directions.edit_codes(codes, {}, 1), codes)
    torch.testing.assert_close(directions.edit_codes(codes, {}, 0.25), w + 0.25 * (codes - w))


def test_layers_without_a_vector_stay_as_they_are():
    vectors = torch.zeros(LAYERS, WIDTH)
    vectors[2:4] = 1
    direction = Direction("Smile", "Face", -3, 3, vectors)
    assert direction.layers == [2, 3]
    moved = DirectionSet({"smile": direction}).edit_codes(random_codes(), {"smile": 2}) - random_codes()
    torch.testing.assert_close(moved, (2 * vectors).expand_as(moved))


def test_a_direction_does_not_share_memory_with_its_maker():
    vectors = torch.ones(LAYERS, WIDTH)
    direction = Direction("Smile", "Face", -3, 3, vectors)
    vectors.zero_()
    assert direction.vectors.eq(1).all()


@pytest.mark.parametrize(
    ("strengths", "fidelity", "sentence"),
    [
        ({"smlie": 1}, 1, "This model has no direction 'smlie'; choose one of smile, pose, light, age, wink."),
        ({"smile": float("nan")}, 1, "The strength of 'smile' cannot be nan; give a number from -3 to 3."),
        ({"smile": float("inf")}, 1, "The strength of 'smile' cannot be inf; give a number from -3 to 3."),
        ({"smile": 9.1}, 1, "The strength of 'smile' cannot be 9.1; give a number from -3 to 3."),
        ({"wink": -0.1}, 1, "The strength of 'wink' cannot be -0.1; give a number from 0 to 2."),
        ({"smile": None}, 1, "The strength of 'smile' cannot be None; give a number from -3 to 3."),
        ({}, 1.5, "Fidelity cannot be 1.5; give a number from 0 (editable) to 1 (faithful)."),
        ({}, float("nan"), "Fidelity cannot be nan; give a number from 0 (editable) to 1 (faithful)."),
    ],
)
def test_impossible_edits_are_refused_with_a_sentence(strengths, fidelity, sentence):
    wink = Direction("Wink", "Face", 0, 2, torch.ones(LAYERS, WIDTH))
    with pytest.raises(DirectionError) as refusal:
        DirectionSet({**random_set(), "wink": wink}).edit_codes(random_codes(), strengths, fidelity)
    assert str(refusal.value) == sentence


def test_directions_of_another_model_are_refused():
    with pytest.raises(DirectionError, match="made for 6 layers of width 4, but this model has 18 of width 512"):
        random_set().check_fits(18, 512)
    with pytest.raises(DirectionError, match="use directions made for this model"):
        random_set().edit_codes(torch.zeros(1, LAYERS, WIDTH + 1), {"smile": 1})


@pytest.mark.parametrize(
    ("low", "high", "vectors", "words"),
    [
        (1, 3, torch.ones(6, 4), "must enclose 0"),
        (0, 0, torch.ones(6, 4), "must enclose 0"),
        (-1, float("nan"), torch.ones(6, 4), "must enclose 0"),
        (-1, 1, torch.ones(4), "of shape"),
        (-1, 1, torch.full((6, 4), float("inf")), "finite"),
    ],
)
def test_numbers_that_make_no_slider_are_refused(low, high, vectors, words):
    with pytest.raises(DirectionError, match=words):
        Direction("Smile", "Face", low, high, vectors)


def test_names_can_be_typed_in_a_shell():
    with pytest.raises(DirectionError, match="cannot name a direction"):
        DirectionSet({"big smile=": random_set()["smile"]})


@few
@given(
    st.lists(st.sampled_from(NAMES), unique=True),
    st.text('aZ é笑😀"\\\n', max_size=9),
    st.floats(-50, 0),
    st.floats(0.5, 50),
    st.integers(0, 2**32),
)
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, names, label, low, high, seed):
    vectors = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(seed))
    made = Direction(label, "Grüppe", low, high, vectors, {"slope": 1.5, "unit": "σ"}, "us", "MIT")
    folder = tmp_path_factory.mktemp("set")
    DirectionSet(dict.fromkeys(names, made)).save(folder)
    loaded = DirectionSet.load(folder)
    assert list(loaded) == names
    for direction in loaded.values():
        assert torch.equal(direction.vectors, vectors)
        for attribute in ("label", "group", "low", "high", "measured", "source", "licence"):
            assert getattr(direction, attribute) == getattr(made, attribute)


def test_one_file_serves_folders_and_pages(tmp_path):
    random_set().save(tmp_path)
    file = tmp_path / "directions.safetensors"
    read = unpack(file.read_bytes(), "My own", LAYERS, WIDTH)
    assert list(read) == list(random_set()) and torch.equal(read["smile"].vectors, random_set()["smile"].vectors)
    (tmp_path / "directions.json").unlink()
    file.write_bytes(random_set().packed())
    loaded = DirectionSet.load(tmp_path)
    assert (loaded["smile"].label, loaded["smile"].group, loaded["smile"].low) == ("Smile", "Face", -3)
    file.write_bytes(save({"smile": torch.ones(LAYERS, WIDTH)}))
    with pytest.raises(DirectionError, match="'directions' is missing"):
        DirectionSet.load(tmp_path)
    with pytest.raises(DirectionError, match=r"cannot be written to .*; check the folder"):
        random_set().save(file)


def test_what_a_folder_gets_is_added_to_what_the_model_has(tmp_path, shared, monkeypatch):
    monkeypatch.setenv("E4E_CACHE", str(shared))
    published = a_model("ffhq", tmp_path / "converted", 18, 512)
    assert "white_hair" in directions_to_extend(tmp_path / "converted", published)
    assert not directions_to_extend(tmp_path / "elsewhere", published)
    random_set().save(tmp_path)
    with pytest.raises(DirectionError, match="use directions made for this model"):
        directions_to_extend(tmp_path, published)


def break_file(folder, how):
    readable = folder / "directions.json"
    entries = json.loads(readable.read_text())
    if how == "missing":
        (folder / "directions.safetensors").unlink()
    elif how == "garbled":
        (folder / "directions.safetensors").write_bytes(b"no tensors")
    elif how == "not json":
        readable.write_text("{")
    elif how == "a list":
        readable.write_text("[1, 2]")
    else:
        if how == "unknown":
            entries["wink"] = entries["smile"]
        elif how == "no label":
            del entries["smile"]["label"]
        elif how == "no entry":
            entries["smile"] = None
        else:
            entries["smile"]["range"] = "wide"
        readable.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    "how", ["missing", "garbled", "not json", "a list", "unknown", "no label", "no entry", "no range"]
)
def test_malformed_files_are_one_sentence(tmp_path, how):
    random_set().save(tmp_path)
    break_file(tmp_path, how)
    with pytest.raises(DirectionError, match=r"^The directions in .* cannot be read \(.+\); restore directions.json"):
        DirectionSet.load(tmp_path)


def test_directions_that_cannot_be_written_leave_the_old_ones(tmp_path):
    old = random_set()
    old.save(tmp_path)
    (tmp_path / ".directions.json").mkdir()  # in the way
    with pytest.raises(DirectionError, match="check the folder and its space"):
        DirectionSet({}).save(tmp_path)
    assert DirectionSet.load(tmp_path).keys() == old.keys()
    assert not (tmp_path / ".directions.safetensors").exists()


def test_published_interfacegan_directions_are_added_to_every_layer(shared):
    directions = published_directions("ffhq", 18, shared / "directions")
    age = torch.load(shared / "directions" / "age.pt", weights_only=True)  # [1, 512]
    pose = torch.load(shared / "directions" / "pose.pt", map_location="cpu", weights_only=True)  # [1, 18, 512]
    codes = torch.randn(1, 18, 512)
    torch.testing.assert_close(directions.edit_codes(codes, {"age": -3}), codes - 3 * age)
    torch.testing.assert_close(directions.edit_codes(codes, {"pose": 2}), codes + 2 * pose)
    assert (directions["age"].low, directions["age"].high) == (-5, 5)
    assert "MIT" in directions["age"].licence


@pytest.mark.parametrize(
    ("domain", "layers", "name", "strength", "component", "published", "first", "last"),
    [
        ("ffhq", 18, "eye_openness", -20, 54, 20, 7, 8),  # published +20 closes the eyes
        ("ffhq", 18, "lipstick", 20, 34, 20, 10, 11),
        ("ffhq", 18, "white_hair", 24, 57, -24, 7, 10),
        ("ffhq", 18, "show_front_teeth", 40, 59, 40, 4, 5),
        ("cars", 16, "viewpoint", -2, 0, -2, 0, 5),
        ("cars", 16, "color", 8, 22, -8, 9, 11),
    ],
)
def test_ganspace_edits_are_relative_to_the_photo(
    shared, domain, layers, name, strength, component, published, first, last
):
    directions = published_directions(domain, layers, shared / "directions")
    pca = torch.load(shared / "directions" / f"{domain}_pca.pt", weights_only=True)
    expected = torch.zeros(layers, 512)
    expected[first:last] = published * pca["std"][component] * pca["comp"][component]
    assert strength in (directions[name].low, directions[name].high)
    moved = directions.edit_codes(torch.zeros(1, layers, 512), {name: strength})
    torch.testing.assert_close(moved[0], expected)


def test_every_published_edit_is_there_with_a_digest(shared):
    table = tomllib.loads(PUBLISHED.read_text())
    assert len(published_directions("ffhq", 18, shared / "directions")) == 27
    assert list(published_directions("cars", 16, shared / "directions")) == ["viewpoint", "cube", "color", "grass"]
    for name, published in table["files"].items():
        assert published["url"].endswith(name) and "/99ea50578695d2e8a1cf7259d8ee89b23eea942b/" in published["url"]
        assert len(published["sha256"]) == 64


def test_published_directions_refuse_a_model_with_too_few_layers(shared):
    with pytest.raises(DirectionError, match="but this model has"):
        published_directions("ffhq", 8, shared / "directions")


def test_offline_is_one_sentence_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("editing.directions.is_reachable", lambda url: False)
    with pytest.raises(DownloadError, match=r"age\.pt could not be fetched .* put the file from https://raw\.github"):
        published_directions("ffhq", 18, tmp_path)


def test_a_damaged_file_is_not_read_but_fetched_again(tmp_path, shared, monkeypatch):
    for file in (shared / "directions").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "age.pt").write_bytes(b"half")
    served = shared / "directions" / "age.pt"
    monkeypatch.setattr("editing.directions.is_reachable", lambda url: True)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: served.open("rb"))
    published_directions("ffhq", 18, tmp_path)
    assert (tmp_path / "age.pt").read_bytes() == served.read_bytes()
    (tmp_path / "age.pt").unlink()
    served = shared / "directions" / "smile.pt"
    with pytest.raises(DownloadError, match="is not the published file"):
        published_directions("ffhq", 18, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cars_pca.pt", "ffhq_pca.pt", "pose.pt", "smile.pt"]


def a_model(name="", folder=None, num_layers=LAYERS, latent_dim=WIDTH):
    return SimpleNamespace(name=name, folder=folder, num_layers=num_layers, latent_dim=latent_dim)


def test_a_models_own_directions_come_first(tmp_path, shared, monkeypatch):
    monkeypatch.setenv("E4E_CACHE", str(shared))  # published files lie in the cache's folder `directions`
    random_set().save(tmp_path)
    assert list(directions_for(a_model("ffhq", tmp_path))) == list(random_set())
    assert "white_hair" in directions_for(a_model("ffhq", None, 18, 512))
    assert "grass" in directions_for(a_model("cars", tmp_path / "converted", 16, 512))
    assert not directions_for(a_model("my own"))
    with pytest.raises(DirectionError, match="use directions made for this model"):
        directions_for(a_model("ffhq", tmp_path, 18, 512))


class Painter:
    """Pictures whose brightness is what layer 1 of their codes says, and whose right half what layer 9 says."""

    aspect = (1, 1)

    def synthesize(self, codes: torch.Tensor) -> torch.Tensor:
        images = codes[:, 1, 0].view(-1, 1, 1, 1).repeat(1, 3, 8, 8)
        images[..., 4:] += codes[:, 9, 0].view(-1, 1, 1, 1)
        return images


class LightMeter:
    """Measures pictures without looking for a face."""

    labels = ()

    def __call__(self, picture: Image.Image) -> dict[str, float]:
        return measure_light(picture)


def test_a_learned_slider_leaves_out_what_does_other_things_and_counts_in_standard_deviations():
    vectors = torch.zeros(12, 1)
    vectors[[1, 9], 0] = torch.tensor([-0.2, 0.05])
    codes = 0.1 * torch.randn(20, 12, 1, generator=torch.Generator().manual_seed(0))
    with ThreadPoolExecutor(1) as pool:
        trial = Trial(Painter(), LightMeter(), {"bright": 12.0, "light_lr": 0.1}, pool)
        chosen = trial.choose_layers(Direction("Brightness", "Light", -1, 1, vectors), "bright", codes)
        assert chosen.layers == [1]
        learned = trial.calibrate(chosen, "bright", codes)
        measured = trial.figures(learned, "bright", codes)
    assert learned.vectors[1, 0] == pytest.approx(2 * 12 / 255, rel=0.05)  # reversed: it darkened
    assert measured["low"] == pytest.approx(learned.low, abs=0.05)
    assert measured["high"] == pytest.approx(learned.high, abs=0.05)
    assert measured["monotone"] == 1 and measured["side_effects"] == {"light_lr": 0}


class Bender(Painter):
    """Faces whose brightness is their first number; one in five darkens again where that goes beyond their second."""

    def synthesize(self, codes: torch.Tensor) -> torch.Tensor:
        value, turn = codes[:, 0, 0], codes[:, 1, 0]
        value = (turn - (value - turn).abs()) / 2
        return value.view(-1, 1, 1, 1).repeat(1, 3, 8, 8)


@pytest.mark.parametrize("turn, end", [(0.5, 0.5), (0.05, 0.0)])
def test_a_learned_slider_ends_where_it_would_turn_back_on_more_than_a_few_faces(turn, end):
    vectors = torch.tensor([[1.0], [0.0]])
    codes = torch.tensor([[[0.0], [turn]]] * 4 + [[[0.0], [9.0]]] * 16)  # the mean rises all the way
    with ThreadPoolExecutor(1) as pool:
        trial = Trial(Bender(), LightMeter(), {"bright": 12.0}, pool)
        learned = trial.calibrate(Direction("Brightness", "Light", -1, 1, vectors), "bright", codes)
        measured = trial.figures(learned, "bright", codes)
    assert learned.high * learned.vectors[0, 0] == pytest.approx(end, abs=0.13)
    assert learned.low * learned.vectors[0, 0] < -0.5
    assert measured["monotone"] == 1 and measured["mean_rises"]


def test_faces_that_are_not_found_unedited_say_nothing_of_a_range():
    strengths = np.concatenate([-TRIED[::-1], [0.0], TRIED])
    values = np.repeat(-2 * strengths[:, None], 20, 1)
    whole = range_of(strengths, values)
    values[:, 3] = np.nan
    values[7, 4] = np.nan
    assert range_of(strengths, values) == whole == (-3.0, 3.0, pytest.approx(-2))
    values[7] = np.nan
    assert range_of(strengths, values) is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"photos": 50}, "--photos 50, --faces 32 or --holdout 500 is too small; give at least 100, 2 and 4."),
        ({"faces": 0}, "--faces 0 or"),
        ({"holdout": 0}, "--holdout 0 is"),
        ({"holdout": 10_400}, "has 10495 pictures; at least 100 beside the 10400 held out"),
        ({"against": ["age"]}, "There is no slider age to keep the others from; add such a column to --labels."),
        ({"template": None}, "use python -m editing.unsupervised for this model."),
    ],
)
def test_settings_are_checked_before_any_picture(shared, changed, sentence, monkeypatch):
    monkeypatch.setattr(discovery, "look_at", lambda *_: pytest.fail("looked at pictures"))
    model = SimpleNamespace(input_size=32, resolution=64, aspect=(1, 1), template=changed.pop("template", (0.1, 1.0)))
    with pytest.raises(TrainingError) as refusal:
        discovery.learn(model, shared / "faces" / "faces128.zip", **changed)
    assert sentence in str(refusal.value)


def test_sliders_are_learned_from_photos_alone(shared, monkeypatch):
    monkeypatch.setattr(discovery, "SLIDERS", {"smile": discovery.SLIDERS["smile"]})
    model = load_model("demo", "cpu")
    learned = discovery.learn(model, shared / "faces" / "faces128.zip", None, holdout=500, photos=110, faces=4)
    smile = learned["smile"]
    assert smile.source.endswith("photos, measured")
    assert smile.measured["mean_rises"] and smile.measured["high"] - smile.measured["low"] > 0.5


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), 0).item()


def test_learned_sliders_leave_alone_what_they_are_fitted_against(tmp_path, shared, monkeypatch, capsys):
    draw, data, labels = np.random.default_rng(0), shared / "faces" / "faces128.zip", tmp_path / "labels.csv"
    rows = [f"{name},{draw.normal()},{draw.normal()}\n" for name in Pictures(data, 32).names]
    labels.write_text("file,smile,yaw\n" + "".join(rows))
    monkeypatch.setattr(discovery, "SLIDERS", {name: discovery.SLIDERS[name] for name in ("smile", "yaw")})
    monkeypatch.setattr(discovery, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(discovery, "invert_all", lambda model, pictures, shown: random_codes(len(shown)))
    landmarks = {"smile": 0.0, "yaw": 0.0}

    def examine(picture: Image.Image) -> tuple[dict[str, float], np.ndarray]:
        assert picture.size == (64, 64)
        return measure_light(picture) | landmarks, np.zeros(128)

    monkeypatch.setattr(discovery, "examine", examine)
    for step in ("choose_layers", "calibrate"):
        monkeypatch.setattr(Trial, step, lambda self, direction, name, codes: direction)
    monkeypatch.setattr(Trial, "figures", lambda self, direction, name, codes: {})
    model = SimpleNamespace(input_size=32, resolution=64, aspect=(1, 1), template=(0.1, 1.0))
    free, held = (discovery.learn(model, data, labels, photos=110, against=names) for names in ((), ("yaw",)))
    torch.testing.assert_close(held["yaw"].vectors, free["yaw"].vectors)
    together = [cosine(*rows) for rows in zip(held["smile"].vectors, held["yaw"].vectors, strict=True)]
    assert together == pytest.approx([0] * LAYERS, abs=1e-5)
    assert cosine(held["smile"].vectors, free["smile"].vectors) > 0.3
    assert held["smile"].source == "learned from 110 labelled photos, against yaw"
    monkeypatch.setattr(Trial, "calibrate", lambda self, direction, name, codes: direction if name == "yaw" else None)
    assert list(discovery.learn(model, data, labels, photos=110)) == ["yaw"]
    assert "Left out, as they hardly move what they are named after: smile." in capsys.readouterr().err
    monkeypatch.setattr(Trial, "calibrate", lambda self, direction, name, codes: None)
    with pytest.raises(TrainingError, match="No direction moves what it is named after"):
        discovery.learn(model, data, labels, photos=110)
    monkeypatch.setattr(discovery, "examine", lambda picture: None)
    with pytest.raises(TrainingError, match="dlib finds a face in only 0 of 110 pictures; use aligned faces"):
        discovery.learn(model, data, labels, photos=110)


def test_the_command_knows_what_can_be_held(tmp_path, monkeypatch, capsys):
    asked = {}

    def learn(*_: object, **named: object) -> DirectionSet:
        """Stands in for the real one."""
        asked.update(named)
        return DirectionSet({})

    monkeypatch.setattr(discovery, "load_model", lambda name: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(discovery, "learn", learn)
    command = ["--model", "m", "--data", "faces.zip", "--against"]
    assert discovery.main([*command, "yaw", "light_lr"]) == 0 and asked == {"against": ["yaw", "light_lr"]}
    with pytest.raises(SystemExit):
        discovery.main([*command, "hat"])
    assert "invalid choice: 'hat'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    monkeypatch.setattr(discovery, "load_model", lambda name: SimpleNamespace(folder=tmp_path / "file"))
    asked.clear()
    assert discovery.main([*command, "yaw"]) == 1 and not asked
    assert "Nothing can be written to" in capsys.readouterr().err


def test_labels_are_numbers_brackets_and_two_words(tmp_path, capsys):
    table = tmp_path / "labels.csv"
    table.write_text(
        "\ufefffile,age,gender,yaw,hat\nb.png,70+,Male,10,yes\na.png,30-39,Female,-9,no\nc.png,4,Male,1e-1,\n"
    )
    labels = read_labels(table, ["a.png", "b.png", "c.png"])
    assert {name: column.tolist() for name, column in labels.items()} == {
        "age": [34.5, 75, 4],
        "gender": [0, 1, 1],
        "yaw": [-9, 10, 0.1],
    }
    assert "Left out of" in (said := capsys.readouterr().err) and ": hat; sliders are made of smile" in said
    assert read_labels(table, ["b.png", "c.png"])["gender"].std() == 0  # one word is no error


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,age\na.png,3\n", "has no column `file`; add one with names of pictures such as a.png."),
        ("", "has no column `file`; add one with names of pictures such as a.png."),
        ("file,age\na.png,3\n", "has no row for b.png and 0 others; add them."),
        ("file,hat\na.png,3\nb.png,4\n", "has none of the columns smile, "),
        ("file,age\na.png,3\nb.png,\n", "has nothing instead of a number in the column age for b.png; correct it, or"),
        ("file,age\na.png,3\nb.png\n", "has nothing instead of a number in the column age for b.png; correct it, or"),
        ("file,gender\na.png,Male\nb.png,\n", "has nothing instead of a number in the column gender for b.png;"),
        ("file,age\na.png,3\nb.png,old\n", "has 'old' instead of a number in the column age for b.png;"),
        ("file,age\na.png,3\nb.png,nan\n", "has 'nan' instead of a number in the column age for b.png;"),
    ],
)
def test_unusable_labels_are_sentences(tmp_path, text, sentence):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(TrainingError) as refusal:
        read_labels(table, ["a.png", "b.png"])
    assert sentence in str(refusal.value)


def test_a_table_that_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match=r"cannot be read \(.*No such file.*\); name a csv file\."):
        read_labels(tmp_path / "labels.csv", ["a.png"])
    (tmp_path / "faces.zip").write_bytes(b"PK\xff\xfe")
    with pytest.raises(TrainingError, match="cannot be read"):
        read_labels(tmp_path / "faces.zip", ["a.png"])


def test_a_column_that_never_varies_spoils_no_direction():
    codes, rng = torch.randn(50, 2, 3), np.random.default_rng(0)
    smile = rng.standard_normal(50)
    learned = fit_directions(codes, {"smile": smile, "warm": np.full(50, 0.1)})
    assert list(learned) == ["smile"]
    torch.testing.assert_close(learned["smile"], fit_directions(codes, {"smile": smile})["smile"])


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_two_classes_differ_by_their_means_however_unequal_and_whatever_else_differs(share):
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    scale = torch.logspace(0, -1.5, LAYERS * WIDTH)  # Gaussian classes of one covariance, far from round
    gender = (torch.rand(2000, generator=draw) < share).float()
    age = 0.8 * gender / (share * (1 - share)) ** 0.5 + normal(2000)
    between, by_age = scale * normal(LAYERS * WIDTH), scale * normal(LAYERS * WIDTH)
    codes = scale * normal(2000, LAYERS * WIDTH) + gender[:, None] * between + age[:, None] * by_age
    codes, attributes = codes.view(-1, LAYERS, WIDTH), {"age": age.numpy(), "gender": gender.numpy()}
    learned = fit_directions(codes, attributes)
    assert cosine(learned["gender"], between) > 0.97 and cosine(learned["age"], by_age) > 0.97
    assert cosine(fit_directions(codes, {"gender": attributes["gender"]})["gender"], between) < 0.9  # age is in it
    assert torch.equal(learned["gender"], fit_directions(codes, attributes)["gender"])
    turned = fit_directions(codes, {"age": attributes["age"], "gender": 5 - 2 * attributes["gender"]})
    torch.testing.assert_close(turned["gender"], -learned["gender"], rtol=1e-2, atol=1e-4)


def test_two_classes_of_fewer_photos_than_coordinates_differ_as_least_squares_says():
    codes = torch.randn(20, LAYERS, WIDTH, generator=torch.Generator().manual_seed(0))
    label = torch.arange(20) % 3 == 0
    learned = fit_directions(codes, {"gender": label.double().numpy()})["gender"]
    means = (codes[label].mean(0) - codes[~label].mean(0)) * label.double().std(correction=0)
    torch.testing.assert_close(learned, means.float(), rtol=1e-3, atol=1e-5)
