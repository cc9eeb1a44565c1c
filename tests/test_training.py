import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e4e_core.models.discriminators import Discriminator
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from e4e_core.training.augment import Augment
from e4e_core.training.data import EndlessOrder, Pictures
from e4e_core.training.encoder import CodePool, EncoderTraining, active_deltas, train_encoder
from e4e_core.training.generator import GeneratorTraining, draw_codes, load_generator, start_from, train_generator
from e4e_core.training.losses import (
    DiscriminatorFeatures,
    delta_penalty,
    discriminator_loss,
    gradient_penalty,
    non_saturating,
)
from e4e_core.training.run import Run, load_state
from errors import TrainingError

CHANNELS = (8, 8, 8, 8)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of twelve smooth 32 px pictures."""
    path = tmp_path_factory.mktemp("data") / "blobs.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(12):
            picture = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
            content = BytesIO()
            picture.save(content, "PNG")
            archive.writestr(f"{i:02d}.png", content.getvalue())
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
        stages=(8, 8, 16, 16),
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
        workers=0,
    )


def test_delta_penalty_is_the_summed_length_of_the_offsets():
    codes = torch.zeros(2, 3, 4)
    codes[0, 1, 0] = 3.0
    codes[0, 2, 1] = 4.0
    codes[:, :] += torch.tensor([5.0, -2.0, 0.0, 1.0])
    codes.requires_grad_(True)
    penalty = delta_penalty(codes)
    penalty.backward()
    assert penalty.item() == pytest.approx((3 + 4) / 2)
    assert codes.grad.isfinite().all()


def test_adversarial_losses_match_their_formulas():
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([0.7, 2.0])
    expected = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(non_saturating(fake), -torch.sigmoid(fake).log().mean())


def test_gradient_penalty_of_a_linear_critic_is_its_squared_norm():
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1, bias=False))
    penalty = gradient_penalty(critic, torch.randn(5, 3, 2, 2))
    torch.testing.assert_close(penalty, critic[1].weight.square().sum())


def test_perceptual_distance_is_zero_for_the_same_picture_and_ignores_feature_scale():
    torch.manual_seed(0)
    distance = DiscriminatorFeatures(Discriminator(CHANNELS))
    a, b = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    assert distance(a, a).item() == 0
    assert 0 < distance(a, b).item() <= 4  # unit vectors are at most 2 apart


def test_progressive_schedule(blobs: Path, small_run: Path, tmp_path: Path):
    settings = encoder_settings(blobs, small_run, tmp_path, 100)
    assert [active_deltas(settings, n, num_layers=8) for n in (0, 7, 8, 11, 12, 32, 1000)] == [0, 0, 1, 1, 2, 7, 7]


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
    assert len(Pictures(blobs, 32, holdout=2)) == 10


def test_unusable_data_is_named(tmp_path: Path):
    with pytest.raises(TrainingError, match="neither a folder nor a zip"):
        Pictures(tmp_path / "missing", 32)
    with pytest.raises(TrainingError, match="too few pictures"):
        Pictures(tmp_path, 32)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match=r"broken\.png .* remove it"):
        Pictures(tmp_path, 32)[0]


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


def test_a_killed_encoder_run_continues_as_if_it_had_not_stopped(
    blobs: Path, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_encoder(encoder_settings(blobs, small_run, tmp_path / "whole", images=24))
    settings = encoder_settings(blobs, small_run, tmp_path / "split", images=24)
    save = Run.save

    def save_and_die(run: Run) -> None:
        save(run)
        if run.parts["progress"].images == 16:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", save_and_die)
        train_encoder(settings)
    train_encoder(settings)
    assert_same_state(load_state(tmp_path / "whole/state.pt"), load_state(tmp_path / "split/state.pt"))


def test_a_broken_state_and_other_settings_are_named(blobs: Path, small_run: Path, tmp_path: Path):
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(TrainingError, match="cannot be read as a saved run"):
        train_generator(generator_settings(blobs, tmp_path, images=8))


def test_growing_keeps_the_pictures(small_run: Path):
    small, _ = load_generator(small_run)
    channels = (*CHANNELS, 4)
    large, critic = Generator(GeneratorConfig(64, 16, 2, channels)), Discriminator(channels)
    start_from(small_run, large, critic)
    codes = draw_codes(large, 2, mixing=0.0)
    with torch.no_grad():
        enlarged = large.to_rgbs[-1].upsample(small(codes[:, :8]))
        torch.testing.assert_close(large(codes), enlarged)


def test_starting_from_other_widths_is_refused(small_run: Path):
    wide = (16, 16, 16, 16)
    with pytest.raises(TrainingError, match="does not fit"):
        start_from(small_run, Generator(GeneratorConfig(32, 16, 2, wide)), Discriminator(wide))


def test_generators_without_noise_render_the_same_every_time(blobs: Path, tmp_path: Path):
    train_generator(replace(generator_settings(blobs, tmp_path, images=8), noise=False))
    generator, _ = load_generator(tmp_path)
    codes = draw_codes(generator, 2, mixing=0.0)
    torch.testing.assert_close(generator(codes, random_noise=True), generator(codes, random_noise=True))
