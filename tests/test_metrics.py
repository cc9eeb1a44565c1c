import json
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from e4e_core.checkpoints import save_model
from e4e_core.images import content
from e4e_core.metrics.edits import Seen, consistency, editability, identity_distances, lec, spreads
from e4e_core.metrics.generator import inception_note, measure
from e4e_core.metrics.reconstruction import distortion, published_networks, scales, to_input
from e4e_core.metrics.report import to_markdown, write
from e4e_core.metrics.statistics import Estimate, bootstrap, frechet, frechet_estimate, frechet_of_moments, middle_mean
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from e4e_core.training.data import Pictures
from errors import DownloadError

LAYERS, WIDTH = 4, 3


class Invertible:
    """A stand-in whose pictures are its codes, [n, 3, 4, 4] of [n, 4, 3], so that inverting is exact."""

    aspect, input_size, resolution, num_layers, latent_dim = (1, 1), 4, 4, LAYERS, WIDTH

    def synthesize(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.permute(0, 2, 1)[..., None].expand(-1, -1, -1, 4).contiguous()

    def invert(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., 0].permute(0, 2, 1)

    def map(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z)


def small_codes(count: int = 40) -> torch.Tensor:
    return 0.1 * torch.randn(count, LAYERS, WIDTH, generator=torch.Generator().manual_seed(0))


def test_frechet_distance_of_known_gaussians():
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 1.0, 4.0])
    mean = np.array([1.0, -2.0, 0.0])
    expected = 5.0 + np.square(np.sqrt(a) - np.sqrt(b)).sum()  # commuting covariances
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    found = frechet_of_moments(np.zeros(3), turn * a @ turn.T, mean, turn * b @ turn.T)
    assert found == pytest.approx(expected, rel=1e-12)
    assert frechet_of_moments(mean, np.zeros((3, 3)), mean, np.diag(b)) == pytest.approx(b.sum())  # singular


def test_frechet_distance_of_samples_approaches_that_of_their_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4000, 4)), 2 * rng.standard_normal((4000, 4)) + [1, 0, 0, 0]
    found = frechet_estimate(a, b, resamples=50)
    assert found.low < 5.0 < found.high and found.high - found.low < 0.8
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_estimate(a[:1], b).count == 0


def test_bootstrap_interval_is_that_of_the_mean_and_leaves_out_what_was_not_measured():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap(np.append(values, np.nan))
    assert found.count == 400 and found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert bootstrap(values) == found, "the seed is fixed"
    assert str(bootstrap(np.array([np.nan]))) == "–"


def test_lec_filters_over_all_pictures():
    values = np.concatenate([np.linspace(0, 1, 101), [1e6]])
    assert middle_mean(values) == pytest.approx(0.505, abs=0.01)
    assert lec(np.zeros(50)) == Estimate(0, 0, 0, 50)


def test_an_exactly_invertible_model_is_consistent():
    codes, vectors = small_codes(), 0.2 * torch.ones(LAYERS, WIDTH)
    found = consistency(Invertible(), codes, vectors)
    np.testing.assert_allclose(found.codes, 0, atol=1e-12)
    np.testing.assert_allclose(found.pictures, 0, atol=1e-12)


def test_an_encoder_that_misses_by_a_known_step_has_the_lec_of_that_step():
    class Missing(Invertible):
        def invert(self, images: torch.Tensor) -> torch.Tensor:
            return super().invert(images) + 0.1

    codes = small_codes()
    found = consistency(Missing(), codes, torch.zeros(LAYERS, WIDTH))
    np.testing.assert_allclose(found.codes, LAYERS * WIDTH * 0.01, rtol=1e-4)
    spread = (codes - codes.mean(0)).square().sum((1, 2)).mean().item()
    np.testing.assert_allclose(found.relative, found.codes / spread, rtol=1e-5)
    np.testing.assert_allclose(found.pictures, 0.01, rtol=1e-4)


def test_lec_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch, model: E4E):
    codes = 0.5 * torch.randn(7, 8, 16, generator=torch.Generator().manual_seed(0))
    vectors = 0.3 * torch.ones(8, 16)
    values = []
    for batch in (1, 3, 16):
        monkeypatch.setattr("e4e_core.metrics.edits.BATCH", batch)
        found = consistency(model, codes, vectors)
        assert [len(images) for images in found.steps] == [min(batch, 7)] * 3  # no more are kept
        values.append(np.stack([found.codes, found.relative, found.pictures]))
    np.testing.assert_allclose(values[0], values[2], rtol=1e-4)
    np.testing.assert_allclose(values[1], values[2], rtol=1e-4)


@pytest.fixture(scope="module")
def model() -> E4E:
    """A 32 px model with random weights and no faces."""
    torch.manual_seed(0)
    shape = {"stem": 8, "stages": (8, 8, 8, 8), "blocks": (1, 1, 1, 1), "pyramid": 8}
    encoder = Encoder(EncoderConfig(input_size=32, num_layers=8, latent_dim=16, **shape))
    model = E4E(encoder, Generator(GeneratorConfig(32, 16, 2, (8, 8, 8, 8))), template=None, name="tiny")
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 16])
def test_distortion_of_known_differences(batch: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("e4e_core.metrics.reconstruction.BATCH", batch)
    targets = torch.zeros(2, 3, 64, 64)
    targets[..., ::8] = 0.5
    images = targets + torch.tensor([0.0, 0.1])[:, None, None, None]
    found = distortion(images, targets)
    np.testing.assert_allclose(found["L2"], [0, 0.01], atol=1e-7)
    assert found["PSNR"][1] == pytest.approx(10 * np.log10(2.0**2 / 0.01), rel=1e-4)
    assert found["MS-SSIM"][0] == pytest.approx(1, abs=1e-5) and found["MS-SSIM"][1] < 1


def test_ms_ssim_uses_as_many_scales_as_fit():
    assert [len(scales(side)) for side in (8, 16, 32, 64, 128, 256, 1024)] == [0, 1, 2, 3, 4, 5, 5]
    assert sum(scales(64)) == pytest.approx(1)
    for side in (16, 32, 64, 128, 256):
        images = torch.rand(1, 3, side, side) * 2 - 1
        assert "MS-SSIM" in distortion(images, images)


def test_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def offline(name: str):
        raise DownloadError("there is no network; put the file into the folder")

    monkeypatch.setattr("e4e_core.metrics.reconstruction.published_weights", offline)
    networks, notes = published_networks(SimpleNamespace(template=(0.1, 1.0), resolution=256))
    assert not networks and set(notes) == {"LPIPS", "identity distance (ArcFace)"}
    assert notes["LPIPS"] == "weights not here: there is no network; put the file into the folder"
    _, notes = published_networks(SimpleNamespace(template=None, resolution=32))
    assert notes == {"LPIPS": "not measured: AlexNet takes pictures from 64 px"}
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert inception_note().startswith(("weights not here: put https://", "not measured: run pip install"))


def test_networks_judge_every_picture_by_itself():
    images, targets = torch.zeros(3, 3, 16, 16), torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 3, 16, 16)
    found = distortion(images, targets, {"far": torch.nn.L1Loss()})
    np.testing.assert_allclose(found["far"], [0, 0.5, 1], atol=1e-6)


def test_only_the_content_of_a_car_is_measured_and_encoded():
    cars = SimpleNamespace(aspect=(4, 3), input_size=256)
    images = torch.full((1, 3, 512, 512), -1.0)
    images[:, :, 64:448] = 0.5
    assert torch.equal(content(images, cars.aspect), torch.full((1, 3, 384, 512), 0.5))
    assert torch.equal(to_input(cars, images), torch.full((1, 3, 192, 256), 0.5))


def seen(**attributes: float) -> Seen:
    return Seen(attributes, np.array(list(attributes.values())))


def test_editability_of_a_direction_that_is_known():
    """The stand-in shows its codes' first two numbers as attributes; the direction moves one by 2, the other by -1."""

    def look(picture: Image.Image) -> Seen:
        red, green, _ = (np.asarray(picture)[0, 0] / 127.5 - 1).tolist()
        return seen(red=red, green=green)

    vectors = torch.zeros(LAYERS, WIDTH)
    vectors[:, 0], vectors[:, 1] = 0.2, -0.1
    spread = {"red": 0.1, "green": 0.1}
    found = editability(Invertible(), small_codes(), vectors, [-1.0, 0.0, 1.0], look, spread, "red")
    np.testing.assert_allclose(found.change, 2, atol=0.1)
    np.testing.assert_allclose(found.others, 1, atol=0.1)
    np.testing.assert_allclose(found.identity, np.hypot(0.2, 0.1), atol=0.02)
    assert found.monotone.all() and found.found.all()
    chosen = editability(Invertible(), small_codes(), -vectors, [-1.0, 0.0, 1.0], look, spread, "not measured")
    assert chosen.attribute == "red" and chosen.monotone.all()
    np.testing.assert_allclose(chosen.change, -2, atol=0.1)


@pytest.mark.parametrize("strengths", [[0.0, 0.5, 1.0], [-1.0, -0.5, 0.0]])
def test_the_identity_distance_of_a_slider_with_one_side_is_that_of_its_end(strengths):
    def look(picture: Image.Image) -> Seen:
        return seen(red=np.asarray(picture)[0, 0, 0] / 127.5 - 1)

    vectors = torch.zeros(LAYERS, WIDTH)
    vectors[:, 0] = 0.2
    found = editability(Invertible(), small_codes(), vectors, strengths, look, {"red": 0.1}, "red")
    np.testing.assert_allclose(found.identity, 0.2, atol=0.02)


def test_faces_that_are_lost_are_counted_and_leave_no_figure():
    def blind(picture: Image.Image) -> Seen | None:
        red = np.asarray(picture)[0, 0, 0] / 127.5 - 1
        return None if red > 0.25 else seen(red=red)

    vectors = torch.zeros(LAYERS, WIDTH)
    vectors[:, 0] = 0.3
    codes = torch.zeros(5, LAYERS, WIDTH)
    found = editability(Invertible(), codes, vectors, [-1.0, 0.0, 1.0], blind, {"red": 1.0}, "red")
    np.testing.assert_allclose(found.found, 2 / 3)
    assert np.isnan([found.change, found.monotone, found.identity, found.others]).all()


def test_spread_and_identity_skip_pictures_without_a_face():
    faces = [seen(a=1.0, b=2.0), None, seen(a=3.0, b=2.0)]
    assert spreads(faces) == {"a": 1.0}
    assert spreads([None, faces[0]]) == {}
    np.testing.assert_allclose(identity_distances(faces, faces[::-1]), [2.0, np.nan, 2.0])


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A zip of 30 smooth random pictures, 32 px."""
    path, rng = tmp_path / "colours.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(30):
            content = BytesIO()
            Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(content, "PNG")
            archive.writestr(f"{i:02d}.png", content.getvalue())
    return path


def test_a_generator_is_measured_beside_the_real_pictures(model: E4E, colours: Path):
    def look(picture: Image.Image) -> Seen:
        return seen(red=float(np.asarray(picture)[..., 0].mean()), blue=float(np.asarray(picture)[..., 2].mean()))

    rows, samples = measure(model, Pictures(colours, 32), 30, look, lambda picture: True)
    assert samples.shape == (30, 3, 32, 32)
    assert rows[0]["samples"] == rows[0]["real pictures"] == Estimate(1, 1, 1, 30)
    assert 0 < rows[1]["real pictures"].value < rows[1]["samples"].value
    again, _ = measure(model, Pictures(colours, 32), 30, look, lambda picture: True)
    assert rows[1] == again[1]


def test_tables_are_json_and_markdown(tmp_path: Path):
    rows = [{"figure": "L2", "W^k": Estimate(0.01234, 0.01, 0.02, 9), "pictures": 9}, {"figure": "LPIPS", "W^k": "–"}]
    write({"Reconstruction": rows, "Empty": []}, tmp_path, "metrics", {"model": "demo"})
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read["about"] == {"model": "demo"}
    assert read["Reconstruction"][0]["W^k"] == {"value": 0.01234, "low": 0.01, "high": 0.02, "count": 9}
    assert "| L2 | 0.0123 (0.01 … 0.02) | 9 |" in to_markdown({"Reconstruction": rows})
    lost = [{"figure": "L2", "W^k": bootstrap(np.array([]))}]
    write({"Reconstruction": lost}, tmp_path, "metrics", {})
    assert json.loads((tmp_path / "metrics.json").read_text())["Reconstruction"][0]["W^k"]["value"] is None


def test_the_command_measures_a_domain_without_faces(model: E4E, colours: Path, tmp_path: Path, capsys):
    from e4e_core.metrics.__main__ import main

    folder, out = tmp_path / "model", tmp_path / "out"
    save_model(model, folder)
    command = ["--model", str(folder), "--images", str(colours), "--out", str(out), "--count", "9", "--samples", "6"]
    assert main([*command, "--device", "cpu"]) == 0
    tables = json.loads((out / "metrics.json").read_text())
    assert tables["Reconstruction"][0]["W^k"]["count"] == 9
    assert [row["direction"] for row in tables["Consistency of edits"]] == ["(none)"]
    assert {path.name for path in out.iterdir()} >= {"metrics.md", "inversions.png", "consistency.png", "samples.png"}
    assert "| LPIPS |" in capsys.readouterr().out
    assert main(["--model", str(folder), "--images", str(tmp_path / "missing")]) == 1


def test_the_papers_claim_runs_resumes_and_fills_its_page(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    from benchmarks import paper_claim
    from e4e_core.training.generator import train_generator
    from e4e_core.training.settings import EncoderTraining, GeneratorTraining

    def look(picture: Image.Image) -> Seen:
        red, green, blue = np.asarray(picture, float).mean((0, 1))
        return seen(red=red, green=green, blue=blue)

    g = tmp_path / "g"
    quick = {"workers": 0, "batch": 2, "images": 4}
    shape = {"resolution": 32, "channels": (8, 8, 8, 8), "latent_dim": 16, "mapping_layers": 2}
    train_generator(GeneratorTraining(colours, g, **shape, **quick))
    small = {"input_size": 32, "stem": 8, "stages": (8, 8, 8, 8), "blocks": (1, 1, 1, 1), "pyramid": 8}
    base = EncoderTraining(colours, g, tmp_path, holdout=10, **small, **quick)
    page = tmp_path / "docs" / "results.md"
    settings = paper_claim.PaperClaim(colours, g, 8, tmp_path / "runs", page, count=8, faces=4, samples=120)
    rows = paper_claim.run(settings, base, look)
    assert [row["encoder"] for row in rows] == list(paper_claim.ENCODERS)
    assert all(row[paper_claim.L2].count == 8 and row[paper_claim.CHANGE].count == 4 for row in rows)
    text = page.read_text()
    assert text.count("| W^k (e4e) |") == 1 and "**LEC**" in text
    assert {path.name for path in page.parent.iterdir()} == {"results.md", "results-plot.png", "results-faces.png"}
    folders = {paper_claim.folder_of(each, base) for each in (settings, replace(settings, seed=1, docs=page))}
    assert len(folders) == 2 and sum(folder.exists() for folder in folders) == 1
    monkeypatch.setattr(paper_claim, "train_encoder", lambda config: pytest.fail(f"{config.out} was trained again"))
    assert paper_claim.run(settings, base, look) == rows
    assert page.read_text() == text


def test_the_verdict_is_honest():
    from benchmarks.paper_claim import CHANGE, L2, LEC, W_K, W_PLUS, W, verdict

    def rows(*values: tuple[float, float, float]) -> list[dict]:
        return [
            {"encoder": title}
            | {f: Estimate(v, v - 0.1, v + 0.1, 9) for f, v in zip((L2, LEC, CHANGE), three, strict=True)}
            for title, three in zip((W, W_PLUS, W_K), values, strict=True)
        ]

    as_claimed = verdict(rows((3, 1, 3), (1, 3, 1), (2, 2, 2)))
    assert as_claimed[0] == "- **L2**: W+ (pSp) < W^k (e4e) < W, as the paper says."
    assert all(line.endswith("as the paper says.") for line in as_claimed)
    otherwise = verdict(rows((3, 1, 1), (1, 1.1, 2), (2, 1.05, 3)))
    assert otherwise[1].endswith("as the paper says, but the intervals of neighbours overlap.")
    assert otherwise[2].endswith("here it comes out W < W+ (pSp) < W^k (e4e).")
    assert verdict(rows((3, 1, 2), (1, 3, 2.05), (2, 2, 2.1)))[2].endswith("but the intervals of neighbours overlap.")
