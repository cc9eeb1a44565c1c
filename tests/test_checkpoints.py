"""Where models come from: names, files, downloads, and what a person is told when they cannot be used."""

import argparse
import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from e4e_core import E4E, checkpoints, downloads, load_model
from e4e_core.checkpoints import default_model_name, export_published, load_or_demo, registry, save_model
from e4e_core.formats import has_published_shape
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import FFHQ_CHANNELS, Generator, GeneratorConfig
from errors import DownloadError, ModelError

IMAGES = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("E4E_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model() -> E4E:
    torch.manual_seed(0)
    shape = EncoderConfig("e4e", 64, 8, 16, stem=8, stages=(8, 12, 16, 20), blocks=(1, 2, 2, 1), pyramid=20)
    generator = Generator(GeneratorConfig(32, 16, 3, (16, 16, 12, 8)))
    model = E4E(Encoder(shape), generator, torch.randn(16), name="small", template=(0.42, 0.62))
    model.encoder.num_deltas = 5
    return model.eval().requires_grad_(False)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to rounding: on some CPUs, where weights lie in memory decides in which order their products are summed."""
    return torch.allclose(a, b, rtol=0, atol=1e-5)


def same(a: E4E, b: E4E) -> bool:
    codes = a.invert(IMAGES)
    return near(codes, b.invert(IMAGES)) and near(a.synthesize(codes), b.synthesize(codes))


def load(path: str | Path) -> E4E:
    return load_model(path, device="cpu", precision="float32")


def test_a_published_file_is_converted_once_and_then_mapped(model: E4E, tmp_path: Path, cache: Path, monkeypatch):
    export_published(model, tmp_path / "mine.pt")
    first = load(tmp_path / "mine.pt")
    assert same(model, first)
    assert (first.name, first.template, first.aspect, first.encoder.num_deltas) == ("mine", (0.42, 0.62), (1, 1), 5)
    assert (first.encoder.config, first.decoder.config) == (model.encoder.config, model.decoder.config)
    assert first.folder.parent == cache
    assert json.loads((first.folder / "config.json").read_text())["generator"]["resolution"] == 32

    monkeypatch.setattr(checkpoints, "read_published", lambda *_: pytest.fail("converted a second time"))
    assert same(model, load(tmp_path / "mine.pt"))


def test_a_broken_conversion_is_made_again(model: E4E, tmp_path: Path):
    export_published(model, tmp_path / "mine.pt")
    weights = load(tmp_path / "mine.pt").folder / "model.safetensors"
    os.truncate(weights, 1000)
    assert same(model, load(tmp_path / "mine.pt"))


def test_without_a_writable_cache_the_model_still_loads(model: E4E, tmp_path: Path, cache: Path):
    export_published(model, tmp_path / "mine.pt")
    cache.write_text("a file where the folder should be")
    loaded = load(tmp_path / "mine.pt")
    assert same(model, loaded)
    assert loaded.folder is None


def published(model: E4E, tmp_path: Path) -> dict[str, Any]:
    export_published(model, tmp_path / "exported.pt")
    return torch.load(tmp_path / "exported.pt", weights_only=True)


def test_settings_come_from_opts(model: E4E, tmp_path: Path):
    content = published(model, tmp_path)
    opts = {"stylegan_size": 32, "encoder_type": "GradualStyleEncoder", "dataset_type": "cars_encode"}
    torch.save({**content, "opts": argparse.Namespace(**opts)}, tmp_path / "cars.pt")
    cars = load(tmp_path / "cars.pt")
    assert (cars.encoder.config.kind, cars.aspect, cars.template) == ("psp", (4, 3), None)
    assert cars.invert(torch.zeros(1, 3, 48, 64)).shape == (1, 8, 16)

    opts = {"stylegan_size": 32, "encoder_type": "Encoder4Editing", "dataset_type": "ffhq_encode"}
    torch.save({**content, "opts": opts}, tmp_path / "faces.pt", _use_new_zipfile_serialization=False)  # as before 2020
    faces = load(tmp_path / "faces.pt")
    assert (faces.encoder.num_deltas, faces.aspect, faces.template) == (7, (1, 1), (0.1, 1.0))
    assert near(faces.invert(IMAGES), model.invert(IMAGES))  # offsets that were not trained are 0

    torch.save({**content, "opts": {**content["opts"], "input_size": 128}}, tmp_path / "large.pt")
    with pytest.raises(ModelError, match="an input of 128 px does not fit an encoder for 33 to 64"):
        load(tmp_path / "large.pt")


@pytest.mark.parametrize("shape", [("w", 64), ("e4e", 96)])
def test_an_export_keeps_the_size_of_its_input(shape, tmp_path: Path, capsys):
    config = EncoderConfig(*shape, 8, 16, stem=8, stages=(8, 12, 16, 20), blocks=(1, 2, 2, 1), pyramid=20)
    export_published(E4E(Encoder(config), Generator(GeneratorConfig(32, 16, 3, (16, 16, 12, 8)))), tmp_path / "x.pt")
    assert "x.pt is for this project only" in capsys.readouterr().err
    assert load(tmp_path / "x.pt").input_size == shape[1]


def test_others_can_build_the_published_sizes_only():
    def readable(encoder: EncoderConfig, generator: GeneratorConfig) -> bool:
        model = SimpleNamespace(resolution=generator.resolution, decoder=SimpleNamespace(config=generator))
        model.encoder = SimpleNamespace(config=encoder)
        return has_published_shape(model)

    cars = GeneratorConfig(512, channels=FFHQ_CHANNELS[:-1])
    assert readable(EncoderConfig(), GeneratorConfig()) and readable(EncoderConfig("psp", num_layers=16), cars)
    assert not readable(EncoderConfig(input_size=128), GeneratorConfig())
    assert not readable(EncoderConfig(num_layers=16), replace(cars, mapping_layers=6))


def test_a_missing_latent_avg_is_computed(model: E4E, tmp_path: Path):
    content = published(model, tmp_path)
    content["latent_avg"] = None
    torch.save(content, tmp_path / "old.pt")
    z = torch.randn(20_000, 16)
    loaded = load(tmp_path / "old.pt")
    expected = model.map(z).mean(0).expand(8, -1)
    assert torch.allclose(loaded.latent_avg, expected, atol=0.05)
    assert loaded.latent_avg.abs().max() > 0


def test_float16_on_disk_is_computed_in_the_precision_asked_for(model: E4E, tmp_path: Path):
    save_model(model, tmp_path / "half", dtype="float16")
    save_model(model, tmp_path / "full")
    half = load(tmp_path / "half")
    assert {value.dtype for value in half.state_dict().values()} == {torch.float32, torch.int64}
    assert half.folder == tmp_path / "half"
    expected = model.synthesize(model.invert(IMAGES))
    assert (half.synthesize(half.invert(IMAGES)) - expected).norm() < 0.01 * expected.norm()
    assert (tmp_path / "half/model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "full/model.safetensors"
    ).stat().st_size
    assert load_model(tmp_path / "half", device="cpu", precision="bfloat16").precision == "bfloat16"


class Attack:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.target),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path):
    torch.save({"state_dict": Attack(tmp_path / "attacked")}, tmp_path / "evil.pt")
    with pytest.raises(
        ModelError, match=r"evil\.pt is refused because opening it could run code \(it asks for .*mkdir\)"
    ):
        load(tmp_path / "evil.pt")
    assert not (tmp_path / "attacked").exists()


def test_broken_files_are_sentences(model: E4E, tmp_path: Path):
    content = published(model, tmp_path)
    data = (tmp_path / "exported.pt").read_bytes()
    file = tmp_path / "broken.pt"
    for broken in (b"", b"hello" * 99, data[: len(data) // 2]):
        file.write_bytes(broken)
        with pytest.raises(ModelError, match="may be incomplete, so fetch it again"):
            load(file)
    state = content["state_dict"]
    for odd in (
        [1, 2],
        {"state_dict": state},
        {**content, "opts": {"encoder_type": "Encoder4Editing"}},
        {**content, "opts": {**content["opts"], "encoder_type": "Other"}},
        {**content, "opts": {**content["opts"], "stylegan_size": 1024}},
        {**content, "state_dict": {key: state[key] for key in state if not key.startswith("decoder.to_rgbs")}},
        {**content, "latent_avg": torch.zeros(3, 5)},
    ):
        torch.save(odd, file)
        with pytest.raises(ModelError, match="not laid out like a published e4e or pSp checkpoint"):
            load(file)
    for changed in ({"decoder.extra": torch.zeros(1)}, {"decoder.input.input": torch.zeros(1, 9, 4, 4)}):
        torch.save({**content, "state_dict": {**state, **changed}}, file)
        with pytest.raises(ModelError, match="its tensors do not fit its settings"):
            load(file)
    del state["encoder.input_layer.1.running_var"]
    torch.save(content, file)
    with pytest.raises(ModelError, match=r"Missing key.*input_layer\.1\.running_var"):
        load(file)


def test_broken_folders_are_sentences(model: E4E, tmp_path: Path):
    folder = tmp_path / "model"
    save_model(model, folder)
    text = (folder / "config.json").read_text()
    for broken in ("", "[]", "{}", text.replace('"format": 1', '"format": 2'), text.replace('"stem"', '"trunk"')):
        (folder / "config.json").write_text(broken)
        with pytest.raises(ModelError, match=r"The model in .* is broken \(.+\); restore its files"):
            load(folder)
    (folder / "config.json").write_text(text)
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelError, match="restore its files"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is not a model folder: model\.safetensors is missing"):
        load(folder)
    with pytest.raises(ModelError, match="could not be written"):
        save_model(model, folder / "config.json")


def test_unknown_names_list_the_known_ones(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    (tmp_path / "registry.toml").write_text((Path(__file__).parents[1] / "checkpoints/registry.toml").read_text())
    with pytest.raises(ModelError, match="no model 'lions'; use demo, ffhq, cars, horse, church, restyle, a published"):
        load("lions")
    with pytest.raises(ModelError, match="There is no file or folder /nowhere/model"):
        load("/nowhere/model")
    with pytest.raises(
        ModelError, match=r"download e4e_cars_encode\.pt from https://drive\.google\.com/.* and put it into"
    ):
        load("cars")
    with pytest.raises(ModelError, match="float16 needs a GPU"):
        load_or_demo("lions", device="cpu", precision="float16")


def test_a_file_put_beside_the_registry_serves_its_name(model: E4E, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    (tmp_path / "registry.toml").write_text('[cars]\nfile = "e4e_cars_encode.pt"\npage = "https://example.org"\n')
    export_published(model, tmp_path / "e4e_cars_encode.pt")
    assert load("cars").name == load(tmp_path / "e4e_cars_encode.pt").name == "cars"


def test_which_model_starts(monkeypatch: pytest.MonkeyPatch):
    for variable in ("E4E_MODEL", "SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    assert default_model_name() == "demo"
    monkeypatch.setenv("SPACE_ID", "someone/space")
    assert default_model_name() == "ffhq"
    monkeypatch.setenv("E4E_MODEL", "church")
    assert default_model_name() == "church"


def test_the_demo_stands_in_with_a_notice(model: E4E, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    (tmp_path / "registry.toml").write_text('[demo]\nfolder = "demo"\n')
    with pytest.raises(ModelError, match="demo is not a model folder"):
        load_or_demo("demo")
    save_model(model, tmp_path / "demo")
    loaded, notice = load_or_demo("lions", device="cpu")
    assert (loaded.name, loaded.folder) == ("demo", tmp_path / "demo")
    assert notice == (
        "The demo model is used instead. There is no model 'lions'; use demo, a published .pt file, or a model folder."
    )
    assert load_or_demo("demo", device="cpu")[1] is None


def test_registry_entries_are_complete():
    for name, entry in registry().items():
        assert entry["label"] and entry["licence"], name
        assert "folder" in entry or (entry["file"].endswith(".pt") and entry["page"].startswith("https://")), name
        if "mirrors" in entry:
            assert len(entry["sha256"]) == 64 and entry["bytes"] > 0
            assert all(mirror.keys() == {"repository", "path", "revision"} for mirror in entry["mirrors"])


# ---- downloads, with a Hub that lies ----


@pytest.fixture
def hub(model: E4E, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A registry with one published model and three mirrors; `hub.files` says what each of them sends."""
    import huggingface_hub

    export_published(model, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    mirrors = "".join(f'{{repository = "{m}", path = "x.pt", revision = "main"}}, ' for m in ("a/a", "b/b", "c/c"))
    (folder / "registry.toml").write_text(
        f'[demo]\nfolder = "demo"\n[faces]\nfile = "x.pt"\npage = "https://example.org"\nbytes = {len(good)}\n'
        f'sha256 = "{hashlib.sha256(good).hexdigest()}"\nmirrors = [{mirrors}]\n'
    )
    hub = SimpleNamespace(good=good, files={}, asked=[], folder=folder, online=True)

    def download(repository: str, path: str, revision: str, local_files_only: bool, tqdm_class: Any) -> str:
        hub.asked.append(repository)
        content = hub.files[repository]
        if isinstance(content, Exception):
            raise content
        bar = tqdm_class(desc=path, total=len(content), initial=0, unit="B", unit_scale=True)
        bar.update(1000)
        bar.update(len(content) - 1000)
        bar.close()
        file = tmp_path / repository.replace("/", "-") / path
        file.parent.mkdir()
        file.write_bytes(content)
        return str(file)

    monkeypatch.setattr(checkpoints, "CHECKPOINTS", folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "is_reachable", lambda _: hub.online)
    return hub


def test_mirrors_are_tried_in_order_and_wrong_files_deleted(hub, model: E4E, tmp_path: Path, capsys):
    wrong = bytes([hub.good[0] ^ 1]) + hub.good[1:]
    hub.files = {"a/a": OSError("503 Server Error\nlong story"), "b/b": wrong, "c/c": hub.good}
    seen = []
    loaded = load_model("faces", device="cpu", precision="float32", progress=lambda *now: seen.append(now))
    assert same(model, loaded)
    assert (loaded.name, hub.asked) == ("faces", ["a/a", "b/b", "c/c"])
    assert not (tmp_path / "b-b/x.pt").exists()
    assert seen[-2:] == [(1000, len(hub.good)), (len(hub.good), len(hub.good))]
    assert capsys.readouterr().err == "", "a page's progress draws nothing on the terminal"
    hub.asked.clear()
    assert same(model, load("faces"))
    assert hub.asked == [], "the conversion needs no Hub"


def test_when_every_mirror_fails_each_is_named(hub):
    hub.files = {"a/a": OSError("503 Server Error\nlong story"), "b/b": OSError("gone."), "c/c": hub.good[:2000]}
    with pytest.raises(DownloadError) as caught:
        load_model("faces", device="cpu", progress=lambda *_: None)
    assert str(caught.value) == (
        "The faces model could not be downloaded (a/a: 503 Server Error; b/b: gone.; the copy of x.pt from c/c was not "
        "the published file and is deleted); try again with a working connection, or put x.pt from "
        f"https://example.org into {hub.folder}."
    )


def test_offline_is_one_sentence_at_once(hub):
    hub.online = False
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"could not be downloaded \(there is no network\); try again with"):
        load("faces")
    assert time.monotonic() - start < 1
    assert hub.asked == []


def test_a_dead_network_is_noticed_within_a_second(monkeypatch: pytest.MonkeyPatch):
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    start = time.monotonic()
    assert not downloads.is_reachable("https://nothing.invalid")
    assert not downloads.is_reachable("https://127.0.0.1:9")
    assert time.monotonic() - start < 2 * downloads.CONNECT_SECONDS + 0.5

    def hang(*_: Any) -> None:  # as looking up a name can
        time.sleep(3)
        raise OSError

    monkeypatch.setattr(downloads.socket, "create_connection", hang)
    start = time.monotonic()
    assert not downloads.is_reachable("https://example.org")
    assert time.monotonic() - start < 1.2


def test_a_wrong_file_beside_the_registry_is_named(hub):
    (hub.folder / "x.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DownloadError, match=r"x\.pt is not the published file; remove it, or replace it"):
        load("faces")
    assert (hub.folder / "x.pt").exists(), "it is not ours to delete"
    (hub.folder / "x.pt").write_bytes(hub.good)
    assert load("faces").name == "faces"
