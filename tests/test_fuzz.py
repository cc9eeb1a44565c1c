"""Damaged files of every kind that this project reads: each is read or is one sentence. `make fuzz` tries many more."""

import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import ASTRONAUT, LONGER, damaged, png_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from test_editing import some_directions, tiny_model
from test_unbreakable import ANYTHING, QUICK

import alignment
from alignment.photos import FORMATS
from e4e_core.checkpoints import export_published, load_model, save_model
from e4e_core.training import data as training_data
from e4e_core.training.data import Pictures
from editing import DirectionSet
from editing.export import save_png
from errors import DirectionError, E4EError, ModelError, PhotoError, TrainingError
from page.presets import read_settings

SEED = int(os.environ.get("E4E_FUZZ_SEED", "0"))


def fuzz(read: Callable[[bytes], object], data: bytes, error: type[E4EError], times: int) -> None:
    """`read` damaged copies of `data`; anything but an answer or a sentence that ends fails, and names the copy."""
    for number in range(SEED, SEED + times * LONGER):
        broken = damaged(data, random.Random(number))
        try:
            read(broken)
        except error as sentence:
            assert str(sentence).endswith((".", "both.")) and "\n" not in str(sentence), (number, sentence)
        except Exception as other:
            raise AssertionError(f"E4E_FUZZ_SEED={number} LONGER={LONGER}: {other!r}") from other


def reading(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return written


def picture(kind: str = "PNG", side: int = 48) -> bytes:
    data = io.BytesIO()
    Image.open(ASTRONAUT).convert("RGB").resize((side, side)).save(data, kind)
    return data.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow's, about metadata
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_photos(kind):
    if kind not in Image.SAVE:
        Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    fuzz(lambda data: alignment.open_photo(io.BytesIO(data)), picture(kind), PhotoError, 20)


@pytest.mark.filterwarnings("ignore")
def test_damaged_settings(tmp_path):
    save_png(Image.new("RGB", (8, 8)), tmp_path / "own.png", {"strengths": {"smile": 1.0}, "fidelity": 1})
    fuzz(reading(tmp_path / "x.png", read_settings), (tmp_path / "own.png").read_bytes(), PhotoError, 20)
    fuzz(reading(tmp_path / "x.json", read_settings), b'{"strengths": {"smile": 1.0}, "age": []}', PhotoError, 20)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_models(tmp_path, name):
    save_model(tiny_model(template=None), tmp_path)
    file = tmp_path / name
    header = 4000  # of tensors, the numbers can be anything; of their header they cannot
    data = file.read_bytes()

    def read(start: bytes) -> object:
        file.write_bytes(start + data[header:])
        return load_model(tmp_path, device="cpu", precision="float32")

    fuzz(read, data[:header], ModelError, 20)


@settings(QUICK, max_examples=12 * LONGER)  # each builds a model
@given(data=st.data(), value=ANYTHING)
def test_settings_of_a_model_may_be_anything(tmp_path_factory, data, value):
    folder = tmp_path_factory.getbasetemp() / "odd"
    if not folder.exists():
        save_model(tiny_model(template=None), folder)
        (folder / "config.json").rename(folder / "kept.json")
    config = json.loads((folder / "kept.json").read_text())
    place, key = config, data.draw(st.sampled_from([*config]))
    if isinstance(config[key], dict) and data.draw(st.booleans()):
        place, key = config[key], data.draw(st.sampled_from([*config[key]]))
    place[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    try:
        load_model(folder, device="cpu", precision="float32")
    except ModelError as error:
        assert str(error).endswith(".")


def test_settings_that_no_model_can_have(tmp_path):
    save_model(tiny_model(template=None), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for part, key, value in (
        ("generator", "latent_dim", 0),
        ("generator", "latent_dim", -1),
        ("generator", "mapping_layers", 10**9),
        ("encoder", "num_layers", 10**9),
        ("encoder", "blocks", [10**9, 1, 1, 1]),
    ):
        changed = {**config, part: {**config[part], key: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=r"broken \(.+\); restore its files"):
            load_model(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("E4E_CACHE", str(tmp_path / "cache"))
    export_published(tiny_model(template=None), tmp_path / "own.pt")
    read = reading(tmp_path / "x.pt", lambda path: load_model(path, device="cpu", precision="float32"))
    fuzz(read, (tmp_path / "own.pt").read_bytes(), ModelError, 10)
    with zipfile.ZipFile(tmp_path / "own.pt") as archive:
        program = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        parts = {name: archive.read(name) for name in archive.namelist()}

    def repacked(code: bytes) -> object:
        with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, code if name == program else content)
        return load_model(tmp_path / "y.pt", device="cpu", precision="float32")

    fuzz(repacked, parts[program], ModelError, 10)


@pytest.mark.parametrize("name", ["directions.safetensors", "directions.json"])
def test_damaged_directions(tmp_path, name):
    some_directions().save(tmp_path)
    file = tmp_path / name
    fuzz(reading(file, lambda path: DirectionSet.load(tmp_path)), file.read_bytes(), DirectionError, 20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_data_sets(tmp_path, kind):
    file = tmp_path / f"own.{kind}"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) if kind == "zip" else tarfile.open(file, "w") as archive:
        for name in ("a.png", "b.jpg"):
            data = picture("JPEG" if name.endswith("jpg") else "PNG", 24)
            if kind == "zip":
                archive.writestr(name, data)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    def read(path: Path) -> None:
        pictures = Pictures(path, 16)
        for index in range(len(pictures)):
            assert pictures[index].shape == (3, 16, 16)

    fuzz(reading(tmp_path / f"x.{kind}", read), file.read_bytes(), TrainingError, 20)


def test_bombs_in_data_sets(tmp_path, monkeypatch):
    """Many zeros that take a few bytes in the archive, and pictures that promise too many pixels."""
    monkeypatch.setattr(training_data, "LARGEST_FILE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(3 << 20))
        archive.writestr("pixels.png", png_of(60_000, 60_000))
        archive.writestr("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    pictures = Pictures(tmp_path / "bomb.zip", 16)
    for index, reason in enumerate(("exceeds limit", "cannot identify", "unfolds to 3 MB")):
        with pytest.raises(TrainingError, match=f"{reason}.*remove it and resume"):
            pictures[index]


def test_a_safetensors_header_that_promises_much_is_a_sentence(tmp_path):
    save_model(tiny_model(template=None), tmp_path)
    for header in (b"\xff" * 8, (1 << 40).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}"):
        (tmp_path / "model.safetensors").write_bytes(header)
        with pytest.raises(ModelError, match="restore its files"):
            load_model(tmp_path)
    some_directions().save(tmp_path)
    vectors = {name: torch.full((5, 5), float("nan")) for name in some_directions()}
    save_file(vectors, tmp_path / "directions.safetensors")
    with pytest.raises(DirectionError, match="finite"):
        DirectionSet.load(tmp_path)
