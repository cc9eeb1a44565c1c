from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e4e_core.checkpoints import save_model
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from editing.directions import Direction, DirectionSet
from editing.unsupervised import ganspace, main, modulation, name_by_attribute, sefa
from errors import DirectionError

WIDTH, LAYERS = 16, 8


@pytest.fixture
def model() -> E4E:
    """A 32 px model with random weights."""
    torch.manual_seed(0)
    shape = {"stem": 8, "stages": (8, 8, 8, 8), "blocks": (1, 1, 1, 1), "pyramid": 8}
    encoder = Encoder(EncoderConfig(input_size=32, num_layers=LAYERS, latent_dim=WIDTH, **shape))
    return E4E(encoder, Generator(GeneratorConfig(32, WIDTH, 2, (8, 8, 8, 8)))).eval().requires_grad_(False)


def test_ganspace_finds_the_planted_axes_and_their_lengths(model: E4E, monkeypatch: pytest.MonkeyPatch):
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q.T  # rows
    lengths = torch.tensor([5.0, 3.0, 2.0] + [0.1] * (WIDTH - 3))
    monkeypatch.setattr(model, "map", lambda z: (z * lengths) @ axes + 7.0)
    found = ganspace(model, count=3)
    assert list(found) == ["ganspace-0", "ganspace-1", "ganspace-2"]
    for direction, axis, length in zip(found.values(), axes, lengths, strict=False):
        assert (direction.low, direction.high, direction.layers) == (-3, 3, list(range(LAYERS)))
        step = direction.vectors[0]
        assert step.norm().item() == pytest.approx(length.item(), rel=0.03)
        assert abs(step @ axis).item() / step.norm().item() > 0.995
        assert step[step.abs().argmax()] > 0


def test_the_same_seed_gives_the_same_directions_and_the_layers_asked_for(model: E4E):
    first, second = (ganspace(model, 2, (2, 5), samples=500, seed=1) for _ in range(2))
    for name in first:
        assert torch.equal(first[name].vectors, second[name].vectors)
        assert first[name].layers == [2, 3, 4]


def test_the_modulation_of_a_layer_is_what_its_code_reaches(model: E4E):
    """Of a layer's code, the generator sees in that layer's style what the weights' rows span, and nothing else."""
    generator = model.decoder
    codes = torch.randn(1, LAYERS, WIDTH)
    for layer in range(LAYERS):
        axes = torch.linalg.svd(modulation(generator, layer)).Vh  # 8 styles of 16 numbers: half of them is unseen
        module = [generator.conv1, *generator.convs, generator.to_rgbs[-1]][layer].conv.modulation
        styles: list[torch.Tensor] = []
        hook = module.register_forward_hook(lambda _, __, style, styles=styles: styles.append(style))
        for step in (0 * axes[0], axes[-1], axes[0]):
            moved = codes.clone()
            moved[:, layer] += step
            generator(moved)
        hook.remove()
        torch.testing.assert_close(styles[1], styles[0], rtol=1e-4, atol=1e-5)
        assert (styles[2] - styles[0]).norm() > 0.1


def test_sefa_finds_what_the_right_layers_respond_to(model: E4E):
    planted = torch.eye(WIDTH)[[3, 11]]
    for layer, axis in zip((2, 7), planted, strict=True):  # the off-by-one would find them at layers 1 and 6
        modulation(model.decoder, layer).copy_(1e-2 * torch.randn(8, WIDTH) + torch.randn(8, 1) * axis)
    for layer, axis in zip((2, 7), planted, strict=True):
        direction = sefa(model, 1, (layer, layer + 1), samples=500)["sefa-0"]
        assert direction.layers == [layer]
        assert torch.nn.functional.normalize(direction.vectors[layer], dim=0) @ axis > 0.99
    rows = torch.cat([modulation(model.decoder, layer) for layer in range(2, 6)]).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    for direction in sefa(model, 3, (2, 6), samples=500).values():
        axis = direction.vectors[2].double() / direction.vectors[2].double().norm()
        image = rows.T @ (rows @ axis)  # an eigenvector of AᵀA
        torch.testing.assert_close(image, (axis @ image) * axis, atol=1e-5, rtol=0)


def test_a_unit_is_one_standard_deviation_of_the_coordinate(model: E4E):
    direction = sefa(model, 1, samples=2000, seed=3)["sefa-0"]
    step = direction.vectors[0].double()
    z = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(3))
    along = model.map(z).double() @ (step / step.norm())
    assert along.std().item() == pytest.approx(step.norm().item(), rel=1e-4)


def test_layers_that_do_not_exist_are_refused(model: E4E):
    with pytest.raises(DirectionError, match="between 0 and 8"):
        sefa(model, layers=(4, 9))


def test_directions_are_named_by_what_they_move_most(model: E4E, monkeypatch: pytest.MonkeyPatch):
    """A stand-in renders two coordinates of the code as brightness of the left and the right half."""

    def synthesize(codes: torch.Tensor) -> torch.Tensor:
        halves = torch.tanh(codes[:, 0, :2] / 4)[:, None, None, :]  # [n, 1, 1, 2]
        return halves.repeat_interleave(4, 3).expand(-1, 3, 8, -1)

    def look(picture: Image.Image) -> dict[str, float]:
        grey = np.asarray(picture.convert("L"), float)
        return {"left_side": grey[:, :4].mean(), "right_side": grey[:, 4:].mean()}

    monkeypatch.setattr(model, "synthesize", synthesize)
    steps = torch.zeros(3, LAYERS, WIDTH)
    steps[0, :, 1], steps[1, :, 0], steps[2, :, 5] = 0.8, -0.8, 0.8
    directions = DirectionSet({f"ganspace-{i}": Direction(f"GANSpace {i}", "", -2, 3, s) for i, s in enumerate(steps)})
    named = name_by_attribute(directions, model, look)
    assert list(named) == ["right_side-ganspace-0", "left_side-ganspace-1", "ganspace-2"]
    turned = named["left_side-ganspace-1"]
    assert (turned.low, turned.high, turned.label) == (-3, 2, "Left side (GANSpace 1)")
    torch.testing.assert_close(turned.vectors, -steps[1])
    assert turned.measured["effects"]["left_side"] > 0.3
    with pytest.raises(DirectionError, match="Only 0 of 16"):
        name_by_attribute(directions, model, lambda _: None)


def test_the_command_adds_to_the_directions_of_a_folder(model: E4E, tmp_path: Path, capsys: pytest.CaptureFixture):
    save_model(model, tmp_path)
    kept = Direction("Smile", "Expression", -1, 1, torch.ones(LAYERS, WIDTH))
    DirectionSet({"smile": kept}).save(tmp_path)
    assert main(["sefa", "--model", str(tmp_path), "--out", str(tmp_path), "--count", "2", "--layers", "0", "4"]) == 0
    assert list(DirectionSet.load(tmp_path)) == ["smile", "sefa-0", "sefa-1"]
    assert "SeFa 1" in capsys.readouterr().out
    assert main(["sefa", "--model", str(tmp_path), "--out", str(tmp_path), "--layers", "0", "40"]) == 1
