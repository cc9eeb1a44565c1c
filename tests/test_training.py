import errno
import json
import multiprocessing
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from e4e_core.checkpoints import export_published, load_model, save_model
from e4e_core.images import content, in_square, to_tensor
from e4e_core.models.discriminators import Discriminator
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from e4e_core.training import encoder, generator, report
from e4e_core.training.augment import Augment
from e4e_core.training.data import EndlessOrder, Pictures, endless_batches
from e4e_core.training.encoder import EncoderTraining, active_deltas, start_trunk, train_encoder
from e4e_core.training.generator import (
    GeneratorTraining,
    draw_codes,
    export_generator,
    load_generator,
    start_from,
    train_generator,
)
from e4e_core.training.latents import CodePool
from e4e_core.training.losses import gradient_penalty
from e4e_core.training.perception import DlibIdentity
from e4e_core.training.processes import Processes
from e4e_core.training.run import Log, Run, load_state
from e4e_core.training.settings import PRESETS, FacesTraining
from errors import ModelError, TrainingError

CHANNELS = (8, 8, 8, 8)
T = TypeVar("T", EncoderTraining, GeneratorTraining)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of twelve smooth 32 px pictures."""
    path = tmp_path_factory.mktemp("data") / "blobs.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(12):
            picture = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
            file = BytesIO()
            picture.save(file, "PNG")
            archive.writestr(f"{i:02d}.png", file.getvalue())
    return path


def generator_settings(blobs: Path, out: Path, images: int) -> GeneratorTraining:
    return GeneratorTraining(
        data=blobs,
        out=out,
        resolution=32,
        channels=CHANNELS,
        latent_dim=16,
        mapping_layers=2,
        images=images,
        batch=4,
        r1_every=2,
        device="cpu",
        workers=0,
        save_every=8,
    )


@pytest.fixture(scope="module")
def small_run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "g32"
    train_generator(generator_settings(blobs, out, images=24))
    return out


def encoder_settings(blobs: Path, small_run: Path, out: Path, images: int) -> EncoderTraining:
    return EncoderTraining(
        data=blobs,
        generator=small_run,
        out=out,
        input_size=32,
        stem=8,
        stages=(8, 12, 16, 20),
        blocks=(1, 1, 1, 1),
        pyramid=16,
        images=images,
        batch=4,
        synthetic=4,
        pool=5,
        progressive_start=8,
        progressive_every=4,
        r1_every=2,
        save_every=8,
        holdout=0,
        device="cpu",
        workers=0,
    )


def test_progressive_schedule(blobs: Path, small_run: Path, tmp_path: Path):
    settings = encoder_settings(blobs, small_run, tmp_path, 100)
    assert [active_deltas(settings, n, num_layers=8) for n in (0, 7, 8, 11, 12, 32, 1000)] == [0, 0, 1, 1, 2, 7, 7]


def test_rates_fall_along_the_cosine_of_the_present_settings(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rates, step = [], encoder.Training.step

    def noted(training: encoder.Training, reals: torch.Tensor, penalize: bool) -> dict[str, torch.Tensor]:
        terms = step(training, reals, penalize)
        rates.append(training.optimizer.param_groups[0]["lr"] / training.config.learning_rate)
        return terms

    monkeypatch.setattr(encoder.Training, "step", noted)
    settings = replace(encoder_settings(blobs, small_run, tmp_path, images=2), save_every=100)
    train_encoder(settings)  # fewer pictures than a batch
    train_encoder(replace(settings, images=16))
    steps = np.array([0, 1, 2, 3])
    np.testing.assert_allclose(rates, (1 + np.cos(np.pi * steps / 4)) / 2)
    assert encoder.rate_share(replace(settings, decay=False), 2) == 1


def test_offsets_of_a_finished_encoder_are_never_lost(blobs: Path, small_run: Path, tmp_path: Path):
    settings = encoder_settings(blobs, small_run, tmp_path, 100)
    assert [active_deltas(settings, n, 8, first=5) for n in (0, 8, 24, 28, 1000)] == [5, 5, 5, 6, 7]


def test_no_stage_of_a_compiled_encoder_compiles_anew(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    graphs, images = [], torch.rand(2, 3, 32, 32)

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    settings = encoder_settings(blobs, small_run, tmp_path, 8)
    expected = encoder.Training(settings, Processes("cpu")).encoder.train()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    compiled = encoder.Training(replace(settings, compile=True), Processes("cpu")).encoder.train()
    compiled.load_state_dict(expected.state_dict())
    for deltas in range(8):
        compiled.num_deltas = expected.num_deltas = deltas
        torch.testing.assert_close(compiled(images), expected(images))
    assert len(graphs) == 4  # the trunk, and a head for each of the sizes that heads read


def test_pool_returns_past_codes_and_never_grows():
    torch.manual_seed(0)
    pool = CodePool(4)
    first = torch.arange(4.0)[:, None]
    torch.testing.assert_close(pool.exchange(first), first)
    answer = pool.exchange(torch.full([100, 1], 9.0))
    assert len(pool.codes) == 4
    assert set(first.flatten().tolist()) & set(answer.flatten().tolist()), "no past code came back"


def test_mixing_changes_the_code_at_one_layer():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(32, 16, 2, CHANNELS))
    codes = draw_codes(generator, 64, mixing=1.0)
    changes = (codes[:, 1:] != codes[:, :-1]).any(2).sum(1)
    assert (changes == 1).all()
    unmixed = draw_codes(generator, 8, mixing=0.0)
    torch.testing.assert_close(unmixed, unmixed[:, :1].expand_as(unmixed))


def test_augmentation_follows_the_critic_and_lets_gradients_through():
    torch.manual_seed(0)
    augment, images = Augment(target=0.6), torch.rand(8, 3, 16, 16) * 2 - 1
    assert augment(images) is images, "off until the critic knows the pictures by heart"
    for _ in range(3000):
        augment.adjust(torch.ones(64))
    assert augment.probability == 1.0
    images.requires_grad_(True)
    augmented = augment(images)
    augmented.sum().backward()
    assert augmented.shape == images.shape and not torch.allclose(augmented, images)
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    augment.adjust(-torch.ones(64))
    assert augment.probability < 1.0


def test_every_pass_shows_every_picture_once_and_can_be_continued():
    endless = iter(EndlessOrder(10, seed=1))
    order = [next(endless) for _ in range(30)]
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    continued = iter(EndlessOrder(10, seed=1, start=13))
    assert [next(continued) for _ in range(17)] == order[13:]


def test_pictures_of_folder_and_zip_are_the_same_and_mirrored(blobs: Path, tmp_path: Path):
    zipfile.ZipFile(blobs).extractall(tmp_path)
    packed, unpacked = Pictures(blobs, 32, mirror=True), Pictures(tmp_path, 32, mirror=True)
    assert len(packed) == len(unpacked) == 24
    torch.testing.assert_close(packed[3], unpacked[3])
    torch.testing.assert_close(packed[15], packed[3].flip(2))
    kept, held = Pictures(blobs, 32, holdout=2), Pictures(blobs, 32, holdout=2, held=True)
    assert (len(kept), len(held)) == (10, 2) and kept.names + held.names == packed.names
    with tarfile.open(tmp_path / "blobs.tar", "w") as archive:
        for name in packed.names:
            archive.add(tmp_path / name, name)
    torch.testing.assert_close(Pictures(tmp_path / "blobs.tar", 32)[3], packed[3])
    assert Pictures(blobs, 32, aspect=(4, 3))[0].shape == (3, 24, 32)


def test_photos_are_upright_and_keep_their_proportions(tmp_path: Path):
    squares = np.kron(np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4), np.ones((16, 16), np.uint8))  # [48, 64]
    photo = Image.fromarray(squares).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown, turned clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected = to_tensor(photo.crop((8, 0, 56, 48)).resize((16, 16), Image.Resampling.BOX))[0]
    torch.testing.assert_close(Pictures(tmp_path, 16)[0], expected, rtol=0, atol=0)


def test_unusable_data_is_named(tmp_path: Path):
    with pytest.raises(TrainingError, match="neither a folder nor a zip or tar"):
        Pictures(tmp_path / "missing", 32)
    with pytest.raises(TrainingError, match="too few pictures"):
        Pictures(tmp_path, 32)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match=r"broken\.png .* remove it"):
        Pictures(tmp_path, 32)[0]
    for workers in (0, 1):
        with pytest.raises(TrainingError, match=r"^broken\.png in .* remove it and resume\.$"):
            next(endless_batches(Pictures(tmp_path, 32), 1, 0, 0, workers, Processes("cpu")))


def test_batches_are_the_pictures_of_their_order(blobs: Path):
    pictures = Pictures(blobs, 32, mirror=True)
    expected = torch.stack([pictures[i] for i in islice(EndlessOrder(24, seed=3, start=20), 12)])
    for workers in (0, 1):
        batches = endless_batches(pictures, 6, 3, 20, workers, Processes("cpu"))
        torch.testing.assert_close(torch.cat([next(batches), next(batches)]), expected, rtol=0, atol=0)


def assert_same_state(a: object, b: object, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=f"{where} differs")
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key not in ("seconds", "settings"):
                assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def test_a_stopped_generator_run_continues_as_if_it_had_not_stopped(blobs: Path, small_run: Path, tmp_path: Path):
    train_generator(generator_settings(blobs, tmp_path / "g", images=8))
    train_generator(generator_settings(blobs, tmp_path / "g", images=24))
    assert_same_state(load_state(small_run / "state.pt"), load_state(tmp_path / "g" / "state.pt"))


KILLED_AFTER = 17  # steps, in the middle of a pass over the data


def recorded(train: Callable[[T], Path], settings: T, die_at: int | None = None) -> list[dict[str, float]]:
    """The losses of every step of a training, which dies right after the save at `die_at` pictures."""
    module = encoder if train is train_encoder else generator
    losses, step, save = [], module.Training.step, Run.save

    def noted(training: object, *args: object, **options: object) -> dict[str, torch.Tensor]:
        terms = step(training, *args, **options)
        losses.append({name: training.processes.mean(term).item() for name, term in terms.items()})
        return terms

    def save_and_die(run: Run) -> None:
        save(run)
        if run.parts["progress"].images == die_at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Training, "step", noted)
        patch.setattr(Run, "save", save_and_die)
        if die_at is None:
            train(settings)
        else:
            with pytest.raises(KeyboardInterrupt):
                train(settings)
    return losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder_rate": 1e-2, "samples": 4, "projected": 0.5, "likeness": 1.0, "variety": 1.0},
        {"optimizer": "ranger", "kind": "w", "batch": 1, "synthetic": 0},
    ],
    ids=["frozen", "learning-decoder", "ranger-batch-1"],
)
def test_a_killed_encoder_run_continues_as_if_it_had_not_stopped(
    options: dict, blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(DlibIdentity, "features", quick_features)
    settings = encoder_settings(blobs, small_run, tmp_path, images=100)
    assert_goes_on(train_encoder, replace(settings, holdout=2, progressive_every=16, **options), tmp_path)


def quick_features(_: DlibIdentity, chips: Tensor) -> list[Tensor]:
    """Features as many as those of dlib's network."""
    sizes = zip(DlibIdentity.WIDTHS, (4, 4, 2, 2), strict=True)
    return [F.adaptive_avg_pool2d(chips, side).repeat(1, width, 1, 1)[:, :width] for width, side in sizes]


def test_a_killed_generator_run_continues_as_if_it_had_not_stopped(blobs: Path, tmp_path: Path):
    settings = generator_settings(blobs, tmp_path, images=100)
    assert_goes_on(train_generator, replace(settings, augment=0.6, path_length=2.0), tmp_path)


def assert_goes_on(train: Callable[[T], Path], settings: T, folder: Path) -> None:
    """A run that is killed has, for 50 steps after it is started again, the losses of one that was not, bit for bit."""
    die_at = KILLED_AFTER * settings.batch
    settings = replace(settings, images=die_at + 50 * settings.batch, save_every=die_at)
    whole = recorded(train, replace(settings, out=folder / "whole"))
    settings = replace(settings, out=folder / "split")
    before, after = recorded(train, settings, die_at=die_at), recorded(train, settings)
    assert len(after) == 50 and before + after == whole
    assert_same_state(load_state(folder / "whole/state.pt"), load_state(folder / "split/state.pt"))


def test_a_run_whose_last_model_could_not_be_written_writes_it_when_it_goes_on(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = replace(encoder_settings(blobs, small_run, tmp_path, images=16), save_every=100)

    def full(model: E4E, folder: Path) -> None:
        raise ModelError("no space")

    with monkeypatch.context() as patch, pytest.raises(ModelError, match="no space"):
        patch.setattr(report, "save_model", full)
        train_encoder(settings)
    folder = train_encoder(settings)
    saved, state = load_model(folder, device="cpu").encoder.state_dict(), load_state(tmp_path / "state.pt")["encoder"]
    assert_same_state(dict(saved), dict(state))


def test_a_learning_decoder_moves_and_its_average_is_kept(blobs: Path, small_run: Path, tmp_path: Path):
    first, first_critic = load_generator(small_run)
    settings = replace(encoder_settings(blobs, small_run, tmp_path, images=16), decoder_rate=1e-2, samples=4)
    folder = train_encoder(settings)
    state = load_state(tmp_path / "state.pt")
    saved, critic = load_generator(folder)
    for name, weight in saved.named_parameters():
        if ".modulation." not in name:  # those have W in other coordinates
            torch.testing.assert_close(weight, state["g_ema"][name], rtol=0, atol=0)
    moved = {n.partition(".")[0] for n, p in first.named_parameters() if not torch.equal(p, state["g"][n])}
    assert moved >= {"input", "convs", "to_rgbs"} and "style" not in moved
    assert not torch.equal(saved.conv1.conv.weight, state["g"]["conv1.conv.weight"]), "the average is not the newest"
    assert not torch.equal(critic.final_conv[0].weight, first_critic.final_conv[0].weight)
    assert sorted(path.name for path in tmp_path.glob("samples_*")) == ["samples_0000008.png", "samples_0000016.png"]


def test_a_learning_generator_invents_what_its_encoder_sees(blobs: Path, small_run: Path, tmp_path: Path):
    """The saved model's photos look as in training, and mapped codes have the mean and covariance of photos' w."""
    settings = replace(encoder_settings(blobs, small_run, tmp_path, images=8), decoder_rate=1e-3, samples=4)
    model = load_model(train_encoder(settings), device="cpu", precision="float32")
    state, center = load_state(tmp_path / "state.pt"), load_generator(small_run)[0].mean_latent()
    in_training = E4E(Encoder(model.encoder.config), Generator(model.decoder.config), center).eval()
    in_training.encoder.load_state_dict(state["encoder"])
    in_training.encoder.num_deltas = model.encoder.num_deltas
    in_training.decoder.load_state_dict(state["g_ema"])
    pictures = Pictures(blobs, 32, mirror=True)
    photos = torch.stack([pictures[i] for i in range(len(pictures))])

    def covariances(of: E4E) -> tuple[Tensor, Tensor]:
        return torch.cov(of.map(torch.randn(50_000, 16)).T), torch.cov(of.invert(photos)[:, 0].T)

    with torch.no_grad():
        images, expected = (each.synthesize(each.invert(photos)) for each in (model, in_training))
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-3)
        mapped, seen = covariances(model)
        assert (mapped - seen).norm() < 0.2 * seen.norm()
        mapped, seen = covariances(in_training)
        assert (mapped - seen).norm() > seen.norm(), "nothing had to be moved"


def test_validation_measures_and_changes_nothing_of_the_run(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_file({"smile": torch.full([8, 16], 0.1)}, tmp_path / "directions.safetensors")
    often = replace(encoder_settings(blobs, small_run, tmp_path / "often", 16), holdout=3, save_every=4)
    often, figures = replace(often, directions=tmp_path / "directions.safetensors"), []
    scalars = Log.scalars

    def noted(log: Log, group: str, values: dict[str, float], images: int) -> None:
        scalars(log, group, values, images)
        figures.extend([values] if group == "validation" else [])

    monkeypatch.setattr(Log, "scalars", noted)
    train_encoder(often)
    assert len(figures) == 4
    for values in figures:
        assert values.keys() == {"l2", "perc", "score", "psnr", "face", "offset", "known_w", "lec_smile"}
        assert values["score"] == pytest.approx(values["l2"] + values["perc"])
        assert values["psnr"] >= 10 * np.log10(4 / values["l2"]) - 1e-3  # Jensen; clamping helps
        assert values["face"] > 0 and 0 < values["lec_smile"] < np.inf
    learning = replace(often, out=tmp_path / "learning", images=4, decoder_rate=1e-3, samples=4)
    train_encoder(learning)
    assert figures[-1]["score"] == pytest.approx(figures[-1]["l2"]), "the discriminator's view changes as it learns"
    train_encoder(replace(often, out=tmp_path / "once", save_every=100))
    a, b = load_state(tmp_path / "often/state.pt"), load_state(tmp_path / "once/state.pt")
    a["progress"].pop("best"), b["progress"].pop("best")
    assert_same_state(a, b)
    assert (tmp_path / "often/best/model.safetensors").is_file()
    assert list((tmp_path / "often/tensorboard").iterdir())
    assert json.loads((tmp_path / "often/settings.json").read_text())["save_every"] == 4


def test_what_cannot_be_measured_is_named_before_training(blobs: Path, small_run: Path, tmp_path: Path):
    settings, file = encoder_settings(blobs, small_run, tmp_path / "run", images=8), tmp_path / "d.safetensors"
    save_file({"smile": torch.zeros(9, 16)}, file)
    with pytest.raises(TrainingError, match=r"smile in .*d\.safetensors has the shape \[9, 16\], not .*\[8, 16\]"):
        train_encoder(replace(settings, directions=file))
    file.write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match=r"d\.safetensors cannot be read as directions"):
        train_encoder(replace(settings, directions=file))
    zipfile.ZipFile(blobs).extractall(tmp_path / "data")
    (tmp_path / "data/11.png").write_bytes(b"half a picture")
    with pytest.raises(TrainingError, match=r"11\.png .* remove it and resume"):
        train_encoder(replace(settings, data=tmp_path / "data", holdout=3))
    assert not (tmp_path / "run/state.pt").exists()


@pytest.mark.parametrize("kind", ["psp", "w"])
def test_other_encoder_kinds_have_neither_critic_nor_penalty(kind: str, blobs: Path, small_run: Path, tmp_path: Path):
    losses = recorded(train_encoder, replace(encoder_settings(blobs, small_run, tmp_path, images=8), kind=kind))
    assert losses[0].keys() == {"l2", "perc", "known"}
    codes = load_model(tmp_path / "model", device="cpu").invert(torch.rand(1, 3, 32, 32))
    assert (codes.std(1).max().item() > 1e-6) == (kind == "psp")


def test_wide_pictures_fill_the_middle_rows(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wide, step = replace(generator_settings(blobs, tmp_path / "g", images=4), aspect=(4, 3)), generator.Training.step

    def noted(training: generator.Training, reals: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
        assert reals.shape == (4, 3, 32, 32) and (reals[:, :, [0, 3, 28, 31]] == -1).all()
        torch.testing.assert_close(in_square(content(reals, (4, 3))), reals)
        return step(training, reals, number)

    monkeypatch.setattr(generator.Training, "step", noted)
    train_generator(wide)
    for train, portrait in ((train_generator, wide), (train_encoder, encoder_settings(blobs, small_run, tmp_path, 8))):
        with pytest.raises(TrainingError, match="at least as wide as high; --aspect 3 4 is not"):
            train(replace(portrait, aspect=(3, 4)))
    settings = replace(encoder_settings(blobs, small_run, tmp_path, images=8), aspect=(4, 3), template=None)
    model = load_model(train_encoder(settings), device="cpu")
    assert model.aspect == (4, 3) and model.invert(torch.zeros(1, 3, 24, 32)).shape == (1, 8, 16)


def test_pictures_are_compared_at_the_asked_size(blobs: Path, small_run: Path, tmp_path: Path):
    settings = replace(encoder_settings(blobs, small_run, tmp_path, images=8), compare=16, aspect=(2, 1), perceptual=0)
    training = encoder.Training(settings, Processes("cpu"))
    training.losses["side"] = (1.0, lambda a, b: torch.tensor(float(a.shape[2] * 100 + b.shape[3])))
    stripes = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 3, 16, 32)  # their mean is 0
    terms = training.distances(stripes, torch.full_like(stripes, 0.5))
    assert terms["l2"].item() == pytest.approx(0.25) and terms["side"].item() == 816
    training.config = replace(settings, compare=64)  # not above the generator's
    terms = training.distances(stripes, torch.full_like(stripes, 0.5))
    assert terms["l2"].item() == pytest.approx(1.25) and terms["side"].item() == 1632


def test_the_gradient_penalty_is_computed_in_parts(blobs: Path, small_run: Path, tmp_path: Path):
    settings = replace(encoder_settings(blobs, small_run, tmp_path, 8), decoder_rate=1e-3, decoder_r1=6, accumulate=2)
    training = encoder.Training(settings, Processes("cpu"))
    reals, shown = torch.rand(4, 3, 32, 32) * 2 - 1, []
    training.critic.register_forward_pre_hook(lambda network, given: shown.append(len(given[0])))
    training.decoder.finish_gradients(reals, penalize=True)
    assert shown == [2, 2]
    weights = list(training.critic.requires_grad_(True).parameters())
    penalty = sum(6 * gradient_penalty(training.critic, part) for part in reals.chunk(2)) / 2  # every second step
    expected = torch.autograd.grad(penalty, weights, allow_unused=True)
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_every_preset_can_be_built():
    for preset in PRESETS.values():
        settings = preset(data=Path("d"), generator=Path("g"), out=Path("o"))
        assert settings.images % settings.batch == 0
    assert FacesTraining(Path("d"), Path("g"), Path("o")).identity == 0.1


def test_pictures_of_a_sheet_are_averaged_to_256_px_at_most():
    large = torch.tensor([0.0, 1.0]).repeat(512).expand(1, 3, 768, 1024)
    torch.testing.assert_close(generator.for_sheet(large), torch.full([1, 3, 192, 256], 0.5))
    small = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(generator.for_sheet(small), small, rtol=0, atol=0)


def test_a_trained_model_goes_to_the_published_layout_and_back(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("E4E_CACHE", str(tmp_path / "cache"))
    folder = train_encoder(encoder_settings(blobs, small_run, tmp_path / "run", images=16))
    model = load_model(folder, device="cpu", precision="float32")
    export_published(model, tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt", device="cpu", precision="float32")
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again.invert(image), model.invert(image))
    assert again.encoder.num_deltas == model.encoder.num_deltas == 2
    settings = replace(encoder_settings(blobs, small_run, tmp_path / "on", 4), start=tmp_path / "model.pt")
    train_encoder(settings)
    assert load_model(tmp_path / "on/model", device="cpu").encoder.num_deltas == 2


def test_generators_are_exported_and_read_in_the_widely_used_layout(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "g.pt"
    export_generator(small_run, file)
    exported = torch.load(file, weights_only=True)
    assert exported.keys() == {"g_ema", "latent_avg", "d"} and exported["latent_avg"].shape == (16,)
    first, _ = load_generator(small_run)
    again, critic = load_generator(file)
    codes = draw_codes(first, 2, mixing=0.0)
    torch.testing.assert_close(again(codes), first(codes))
    assert critic is not None
    torch.save({"g_ema": exported["g_ema"]}, file)
    train_generator(replace(generator_settings(blobs, tmp_path / "g", images=8), start=file, path_length=2.0))
    assert load_state(tmp_path / "g/state.pt")["path_length"]["mean"] > 0
    settings = encoder_settings(blobs, file, tmp_path / "e", images=8)
    with pytest.raises(TrainingError, match=r"has no discriminator; use --perceptual 0\.$"):
        train_encoder(settings)
    monkeypatch.setattr(encoder, "load_losses", lambda config: ({}, config.perceptual + config.lpips))  # no weights
    with pytest.raises(TrainingError, match=r"use --lpips 0 \(or .*\) and --decoder-rate 0\.$"):
        train_encoder(replace(settings, perceptual=0, lpips=0.8, decoder_rate=1e-3))


def worker(rank: int, port: int, train: Callable[[T], Path], settings: T, file: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    losses = recorded(train, settings)
    if rank == 0:
        file.write_text(json.dumps(losses))


@pytest.mark.parametrize("which", ["encoder", "generator"])
def test_two_processes_have_the_losses_of_one(which: str, blobs: Path, small_run: Path, tmp_path: Path):
    pytest.importorskip("accelerate")
    if which == "encoder":
        train = train_encoder
        settings = encoder_settings(blobs, small_run, tmp_path / "one", images=32)
        judged = {"projected": 0.5, "likeness": 1.0, "variety": 1.0}
        # Adam's first steps follow a gradient's sign, also that of rounding: small rates keep what it adds small.
        settings = replace(settings, batch=8, samples=8, learning_rate=1e-4, decoder_rate=1e-4, holdout=2, **judged)
    else:
        train, settings = train_generator, generator_settings(blobs, tmp_path / "one", images=32)
        settings = replace(settings, batch=8, noise=False)
    alone = recorded(train, settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = replace(settings, out=tmp_path / "two")
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with OpenMP threads can hang
    arguments = (port, train, settings, tmp_path / "losses.json")
    workers = [spawn.Process(target=worker, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(240)
    assert [process.exitcode for process in workers] == [0, 0]
    together = json.loads((tmp_path / "losses.json").read_text())
    assert len(together) == len(alone) == 4
    for here, there in zip(alone, together, strict=True):
        assert there == pytest.approx(here, abs=1e-4, rel=1e-4)


def test_batches_that_processes_cannot_share_are_refused():
    processes = Processes("cpu")
    processes.count = 3
    with pytest.raises(TrainingError, match="3 processes cannot share"):
        processes.check(9, 8)


def test_processes_that_resume_at_different_places_refuse_to_start(monkeypatch: pytest.MonkeyPatch):
    processes = Processes("cpu")
    processes.agree(8)
    monkeypatch.setattr(processes, "gather", lambda part: torch.cat([part, torch.zeros_like(part)]))
    with pytest.raises(TrainingError, match=r"after 8, 0 pictures: .* all machines share"):
        processes.agree(8)
    with pytest.raises(TrainingError, match=r"different networks \(this one: lpips\)"):
        processes.agree(0, "lpips")


@pytest.mark.parametrize("there", [True, False])
def test_a_training_takes_the_gpu_where_there_is_one(there: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert Processes(FacesTraining(Path("d"), Path("g"), Path("o")).device).device.type == ("cuda" if there else "cpu")


def test_a_broken_state_and_other_settings_are_named(
    blobs: Path,
    small_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(TrainingError, match="cannot be read as a saved run"):
        train_generator(generator_settings(blobs, tmp_path, images=8))
    source = tmp_path / "g.pt"
    export_generator(small_run, source)
    settings = encoder_settings(blobs, source, tmp_path / "e", images=4)
    train_encoder(settings)
    capsys.readouterr()
    train_encoder(settings)
    assert "was finished before; give it more --images" in capsys.readouterr().out
    kept = (tmp_path / "e/settings.json").read_bytes()
    for change, reason in (
        ({"r1": 3.0}, r"r1 10\.0, not 3\.0; use another --out"),
        ({"decoder_rate": 1e-3}, "decoder-rate 0, not above 0"),
        ({"l2": 2.0}, r"l2 1\.0, not 2\.0"),
    ):
        with pytest.raises(TrainingError, match=f"was started with {reason}"):
            train_encoder(replace(settings, images=8, **change))
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"losses \{\}, not \{'moco': 'Identity'\}"):
        patch.setattr(encoder, "load_losses", lambda config: ({"moco": (1.0, torch.nn.Identity())}, config.perceptual))
        train_encoder(settings)
    exported = torch.load(source, weights_only=True)
    next(iter(exported["g_ema"].values())).add_(1)
    torch.save(exported, source)
    with pytest.raises(TrainingError, match=r"was started with weights of the generator \w+, not \w+; use another"):
        train_encoder(settings)
    assert (tmp_path / "e/settings.json").read_bytes() == kept


def test_a_run_goes_on_with_the_rates_of_its_present_settings(blobs: Path, small_run: Path, tmp_path: Path):
    train_generator(generator_settings(blobs, tmp_path / "g", images=4))
    train_generator(replace(generator_settings(blobs, tmp_path / "g", images=8), learning_rate=3e-3))
    state = load_state(tmp_path / "g/state.pt")
    assert state["g_optim"]["param_groups"][0]["lr"] == 3e-3
    assert state["d_optim"]["param_groups"][0]["lr"] == pytest.approx(3e-3 * 2 / 3)  # lazy: r1_every is 2
    settings = encoder_settings(blobs, small_run, tmp_path / "e", images=4)
    train_encoder(settings)
    train_encoder(replace(settings, images=8, discriminator_rate=1e-5))
    assert load_state(tmp_path / "e/state.pt")["critic_optimizer"]["param_groups"][0]["lr"] == 1e-5


@pytest.mark.parametrize("which", ["encoder", "generator"])
def test_a_run_that_diverges_keeps_its_last_state(
    which: str, blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if which == "encoder":
        module, train, settings = encoder, train_encoder, encoder_settings(blobs, small_run, tmp_path, images=4)
    else:
        module, train, settings = generator, train_generator, generator_settings(blobs, tmp_path, images=4)
    train(settings)
    saved = (tmp_path / "state.pt").read_bytes()
    monkeypatch.setattr(module.Training, "step", lambda *args, **options: {"l2": torch.tensor(float("nan"))})
    with pytest.raises(TrainingError, match=r"diverged: l2 is nan\. Lower the learning rate .* last state is kept"):
        train(replace(settings, images=8))
    assert (tmp_path / "state.pt").read_bytes() == saved


@pytest.mark.parametrize("full", ["settings.json", "state.pt", "samples_0000016.png", "tensorboard"])
def test_a_full_disk_costs_a_sentence_and_not_the_last_state(
    full: str, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    train_generator(generator_settings(blobs, tmp_path, images=8))
    saved = (tmp_path / "state.pt").read_bytes()
    owner, method = {
        "settings.json": (Path, "write_text"),
        "state.pt": (torch, "save"),
        "samples_0000016.png": (Image.Image, "save"),
        "tensorboard": (SummaryWriter, "add_scalar"),
    }[full]
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=f"{full} could .* No space .* make room"):
        patch.setattr(owner, method, refuse)
        train_generator(replace(generator_settings(blobs, tmp_path, images=16), log_every=1))
    assert not list(tmp_path.glob("*.part"))
    if full != "samples_0000016.png":  # which comes after the state
        assert (tmp_path / "state.pt").read_bytes() == saved
    train_generator(generator_settings(blobs, tmp_path, images=20))
    assert load_state(tmp_path / "state.pt")["progress"]["images"] == 20


def test_growing_keeps_the_pictures(small_run: Path):
    small, _ = load_generator(small_run)
    channels = (*CHANNELS, 4)
    large, critic = Generator(GeneratorConfig(64, 16, 2, channels)), Discriminator(channels)
    start_from(small_run, large, critic)
    codes = draw_codes(large, 2, mixing=0.0)
    with torch.no_grad():
        enlarged = large.to_rgbs[-1].upsample(small(codes[:, :8]))
        torch.testing.assert_close(large(codes), enlarged)


def test_a_grown_discriminator_first_says_what_the_smaller_one_does(small_run: Path):
    _, small = load_generator(small_run)
    channels = (*CHANNELS, CHANNELS[-1])
    critic = Discriminator(channels)
    start_from(small_run, Generator(GeneratorConfig(64, 16, 2, channels)), critic)
    plain = torch.rand(64, 3, 1, 1).expand(-1, -1, 64, 64) * 2 - 1
    with torch.no_grad():
        inner = critic.convs[:2](plain)[..., 8:-8, 8:-8]
        torch.testing.assert_close(inner, small.convs[0](plain)[..., 8:24, 8:24], atol=1e-3, rtol=1e-3)


def test_a_generator_grows_on_the_cpu_and_then_moves(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generator, "Precision", lambda name, device: None)  # there is none on the meta device
    settings = replace(generator_settings(blobs, tmp_path, 8), resolution=64, channels=(*CHANNELS, 4), start=small_run)
    training = generator.Training(settings, Processes("meta"))  # mixing devices raises
    networks = (training.generator, training.discriminator, training.average)
    assert all(parameter.is_meta for network in networks for parameter in network.parameters())
    assert training.g_optimizer.param_groups[0]["params"] == list(training.generator.parameters())


def test_starting_from_other_widths_is_refused(small_run: Path):
    wide = (16, 16, 16, 16)
    with pytest.raises(TrainingError, match="does not fit"):
        start_from(small_run, Generator(GeneratorConfig(32, 16, 2, wide)), Discriminator(wide))


def test_generators_without_noise_render_the_same_every_time(blobs: Path, tmp_path: Path):
    train_generator(replace(generator_settings(blobs, tmp_path, images=8), noise=False))
    generator, _ = load_generator(tmp_path)
    codes = draw_codes(generator, 2, mixing=0.0)
    torch.testing.assert_close(generator(codes, random_noise=True), generator(codes, random_noise=True))


def test_an_encoder_starts_from_a_trained_trunk_with_new_heads(blobs: Path, small_run: Path, tmp_path: Path):
    shape = {"stem": 8, "stages": (8, 8, 8, 8), "blocks": (1, 1, 1, 1), "latent_dim": 16, "num_layers": 8}
    trained = E4E(Encoder(EncoderConfig(input_size=32, pyramid=8, **shape)), load_generator(small_run)[0])
    save_model(trained, tmp_path / "model")
    fresh = Encoder(EncoderConfig(kind="w", input_size=32, **shape))
    start_trunk(str(tmp_path / "model"), fresh)
    wanted = trained.encoder.state_dict()
    for key, value in fresh.state_dict().items():
        if key.startswith(("input_layer.", "body.")):
            torch.testing.assert_close(value, wanted[key])
    with pytest.raises(TrainingError, match="another shape"):
        start_trunk(str(tmp_path / "model"), Encoder(EncoderConfig(kind="w", **shape | {"stem": 16})))
    with pytest.raises(TrainingError, match="other layers"):
        start_trunk(str(tmp_path / "model"), Encoder(EncoderConfig(kind="w", **shape | {"blocks": (1, 1, 1, 2)})))


def test_codes_pictures_grids_and_loss_networks_keep_float32_in_half_precision(
    blobs: Path, small_run: Path, tmp_path: Path
):
    torch.manual_seed(0)
    training = encoder.Training(encoder_settings(blobs, small_run, tmp_path, images=8), Processes("cpu"))
    seen = []
    network = torch.nn.Conv2d(3, 1, 1)  # a loss network's only layer
    training.losses["stand-in"] = (1.0, lambda a, b: (network(a) - network(b)).square().mean())
    network.register_forward_hook(lambda module, given, answer: seen.append((given[0].dtype, answer.dtype)))
    z, images = torch.randn(4, 16), torch.rand(4, 3, 32, 32) * 2 - 1
    linear, features = training.encoder.styles[0].linear, torch.randn(4, 16)
    augment = Augment(0.6)
    augment.probability = 1.0

    def answers() -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            moved = augment(images)
        to_rgb = training.generator.to_rgbs[0]
        return [linear(features), training.generator.map(z), to_rgb.upsample(images), moved]

    expected = answers()
    with torch.autocast("cpu", torch.bfloat16):
        found = answers()
        codes = training.invert(images)
        made = training.render(codes)
        training.distances(made, images)
        assert training.encoder.input_layer(images).dtype == torch.bfloat16, "nothing was computed in half precision"
    assert codes.dtype == made.dtype == torch.float32 and seen == [(torch.float32, torch.float32)] * 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["generator", "encoder"])
def test_float16_and_batches_in_parts_train(kind: str, blobs: Path, small_run: Path, tmp_path: Path):
    changes = {"precision": "float16", "accumulate": 2}
    if kind == "generator":
        train_generator(replace(generator_settings(blobs, tmp_path, images=16), **changes))
        network = "g"
    else:
        changes |= {"decoder_rate": 1e-3, "samples": 4, "projected": 0.5}
        train_encoder(replace(encoder_settings(blobs, small_run, tmp_path, images=32), **changes))
        network = "encoder"
    state = load_state(tmp_path / "state.pt")
    assert all(torch.isfinite(value).all() for value in state[network].values() if value.is_floating_point())
    assert state["scaler"]["_growth_tracker"] >= 2  # steps since the last overflow
