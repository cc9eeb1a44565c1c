"""The models against the reference's numbers, and against the papers' equations written out naively."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from e4e_core.formats import from_published
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.ops import ModulatedConv2d
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from errors import ModelError

KIT = Path(__file__).parent / "conformance"
sys.path.insert(0, str(KIT))
import weights as kit  # noqa: E402

TOLERANCE = 1e-4


@cache
def tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One tensor of the kit; the layouts share most of theirs, so a gigabyte is made and held only once."""
    return kit.make_tensor(key, list(shape), seed)


def published(domain: str, seed: int = 0) -> E4E:
    schema = kit.schema(domain)
    state = {key: tensor(key, tuple(shape), seed) for key, shape in schema["state_dict"].items()}
    latent_avg = kit.make_latent_avg(domain, seed)
    return from_published({"state_dict": state, "latent_avg": latent_avg, "opts": schema["opts"]}, domain)


@pytest.fixture(scope="module", autouse=True)
def forget_tensors():
    yield
    tensor.cache_clear()


def golden(domain: str) -> dict[str, np.ndarray]:
    return dict(np.load(KIT / f"golden_{domain}_seed0.npz"))


def error(ours: Tensor, theirs: np.ndarray | Tensor) -> float:
    """‖a − b‖ / ‖b‖"""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("domain", ["ffhq1024", "church256"])
def test_conformance_with_the_reference(domain: str):
    model, expected = published(domain), golden(domain)
    images = kit.make_image(domain, 0, batch=2)
    codes = model.invert(images)
    errors = {"latents": error(codes, expected["latents"])}
    for stage in (0, 1, 5, 9):
        model.encoder.num_deltas = stage
        errors[f"stage {stage}"] = error(model.invert(images[:1]), expected[f"latents_stage{stage}"])
    image = model.synthesize(kit.make_codes(domain, 0))
    errors["image"] = error(F.adaptive_avg_pool2d(image, 64), expected["image_pool64"])
    errors["pixels"] = error(image[0][:, expected["pixel_y"], expected["pixel_x"]], expected["image_pixels"])
    errors["recon"] = error(F.adaptive_avg_pool2d(model.synthesize(codes[:1]), 64), expected["recon_pool64"])
    z = torch.from_numpy(kit._rng("z", 0).standard_normal((4, 512)).astype(np.float32))
    errors["map"] = error(model.map(z), expected["mapping_w"])
    print(domain, {key: f"{value:.1e}" for key, value in errors.items()})
    assert max(errors.values()) < TOLERANCE


def test_psp_heads_are_the_e4e_heads_without_the_first_code():
    """The kit's pSp layout holds the same tensors as its e4e one, so the golden codes tell what it must say."""
    model, e4e = published("church256_psp"), golden("church256")["latents"][:1]
    expected = e4e - e4e[:, :1] + model.latent_avg.numpy()
    expected[:, 0] = e4e[:, 0]
    assert model.encoder.config.kind == "psp"
    assert error(model.invert(kit.make_image("church256", 0, batch=2)[:1]), expected) < TOLERANCE


def test_cars_take_wide_pictures_and_share_the_faces_numbers():
    """The first 16 layers of the kit's ffhq1024 and cars512 are the same tensors."""
    model, faces = published("cars512"), published("ffhq1024")
    assert (model.aspect, model.template, model.resolution, model.num_layers) == ((4, 3), None, 512, 16)
    square = kit.make_image("cars512", 0, batch=2)[:1]
    assert error(model.invert(square), golden("ffhq1024")["latents"][:1, :16]) < TOLERANCE
    wide = F.interpolate(square, size=(192, 256), mode="area")
    assert error(model.invert(wide), naive_encoder(model, wide)) < TOLERANCE
    codes = kit.make_codes("ffhq1024", 0)
    assert error(model.synthesize(codes[:, :16], size=128), faces.synthesize(codes, size=128)) < TOLERANCE


def test_another_seed_agrees_with_the_naive_computation():
    model = published("church256", seed=1)
    images, codes = kit.make_image("church256", 1), kit.make_codes("church256", 1)
    assert error(model.invert(images), naive_encoder(model, images)) < TOLERANCE
    assert error(model.synthesize(codes, size=64), naive_generator(model, codes, 64)) < TOLERANCE


def small(kind: str = "e4e", pyramid: int = 20) -> E4E:
    torch.manual_seed(0)
    encoder = EncoderConfig(kind, 64, 8, 16, stem=8, stages=(8, 12, 16, 20), blocks=(1, 2, 2, 1), pyramid=pyramid)
    model = E4E(Encoder(encoder), Generator(GeneratorConfig(32, 16, 3, (16, 16, 12, 8))), torch.randn(16), name="small")
    for name, buffer in model.named_buffers():  # as after training
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if "noise" in name or name.endswith("bias"):
            parameter.data.normal_()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["e4e", "psp", "w"])
def test_small_models_agree_with_the_naive_computation(kind: str):
    model = small(kind)
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    codes = model.invert(images)
    assert error(codes, naive_encoder(model, images)) < TOLERANCE
    for size in (4, 16, 32):
        assert error(model.synthesize(codes, size=size), naive_generator(model, codes, size)) < TOLERANCE
    assert torch.equal(model.synthesize(codes), model.synthesize(codes)), "the noise is fixed"
    assert error(torch.cat([model.invert(image) for image in images.split(1)]), codes) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 48, 64), (1, 3, 40, 64)])
def test_heads_say_the_same_with_and_without_gradients(shape: tuple[int, ...]):
    encoder, images = small().encoder, torch.rand(shape)
    assert error(encoder(images), encoder(images.clone().requires_grad_(True)).detach()) < 1e-5


def test_a_pyramid_narrower_than_the_trunk_and_every_stage():
    model = small(pyramid=10)
    images = torch.rand(1, 3, 64, 64)
    full = model.invert(images)
    for stage in range(8):
        model.encoder.num_deltas = stage
        expected = torch.cat([full[:, : stage + 1], full[:, :1].expand(-1, 7 - stage, -1)], 1)
        rest = model.latent_avg[0] - model.latent_avg  # zero, the mean latent is the same for every layer
        assert error(model.invert(images), expected - rest) < 1e-5


def test_precision_casts_the_weights_once_and_answers_in_float32():
    model = small()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    codes = model.invert(images)
    pictures = model.synthesize(codes)
    model.set_precision("bfloat16")
    assert model.decoder.convs[0].conv.weight.dtype == torch.bfloat16
    assert model.invert(images).dtype == model.synthesize(codes).dtype == torch.float32
    assert error(model.synthesize(codes), pictures) < 0.03
    assert error(model.invert(images), codes) < 0.03
    with pytest.raises(ModelError, match="float16 needs a GPU"):
        model.set_precision("float16")
    assert model.precision == "bfloat16"
    with pytest.raises(ModelError, match="use auto, float32, bfloat16, float16"):
        model.set_precision("float8")


def test_gradients_reach_the_codes_but_no_parameter():
    model = small()
    codes = model.latent_avg[None].clone().requires_grad_(True)
    model.synthesize(codes).square().mean().backward()
    assert codes.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_wrong_shapes_are_named():
    model = small()
    with pytest.raises(ValueError, match=r"takes pictures of shape \[n, 3, 64, 64\], not \[1, 3, 32, 32\]"):
        model.invert(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"takes codes of shape \[n, 8, 16\]"):
        model.synthesize(torch.zeros(1, 16))
    with pytest.raises(ValueError, match="power of two from 4 to 32, not 24"):
        model.synthesize(torch.zeros(1, 8, 16), size=24)
    with pytest.raises(ValueError, match="num_deltas must be from 0 to 7, not 8"):
        model.encoder.num_deltas = 8
    assert model.synthesize(torch.zeros(1, 8, 16), size=256).shape == (1, 3, 32, 32)


# ---- the papers' equations, as naively as they can be written, from a model's tensors ----


def naive_upfirdn(x: Tensor, up: int, kernel: Tensor, pad: int) -> Tensor:
    """Zeros between the pixels, `pad` around them, then a true convolution with the FIR kernel per channel."""
    n, c, h, w = x.shape
    wide = x.new_zeros(n, c, h * up, w * up)
    wide[:, :, ::up, ::up] = x
    low = (kernel.shape[0] + up - 1) // 2
    wide = F.pad(wide, (low, pad - low, low, pad - low))
    return F.conv2d(wide, kernel.flip(0, 1).expand(c, 1, -1, -1), groups=c)


def naive_linear(x: Tensor, layer: dict[str, Tensor], lr_mul: float = 1.0) -> Tensor:
    return x @ layer["weight"].T * (lr_mul / layer["weight"].shape[1] ** 0.5) + layer["bias"] * lr_mul


def naive_modulated(x: Tensor, w: Tensor, t: "Tensors", up: bool, demodulate: bool) -> Tensor:
    """Karras et al. 2020, eq. 1–3: every sample has weights of its own, run as groups of one convolution."""
    n, c, h, width = x.shape
    style = naive_linear(w, t("modulation."))
    weight = t["weight"] * style[:, None, :, None, None] / (c * t["weight"].shape[-1] ** 2) ** 0.5  # [n, o, i, k, k]
    if demodulate:
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    if up:
        zeros = x.new_zeros(n, c, 2 * h - 1, 2 * width - 1)
        zeros[:, :, ::2, ::2] = x
        x, weight = F.pad(zeros, (2, 2, 2, 2)), weight.flip(3, 4)
    y = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), groups=n, padding=0 if up else weight.shape[-1] // 2)
    y = y.reshape(n, -1, *y.shape[2:])
    if up:
        kernel = t["blur.kernel"]
        y = F.conv2d(F.pad(y, (1, 1, 1, 1)), kernel.expand(y.shape[1], 1, -1, -1), groups=y.shape[1])
    return y


class Tensors(dict):
    """A state dict; calling it with a prefix gives the part below it."""

    def __call__(self, prefix: str) -> "Tensors":
        return Tensors({key[len(prefix) :]: value for key, value in self.items() if key.startswith(prefix)})


def naive_generator(model: E4E, codes: Tensor, size: int) -> Tensor:
    t = Tensors(model.state_dict())("decoder.")

    def styled(x: Tensor, layer: int, name: str, up: bool) -> Tensor:
        y = naive_modulated(x, codes[:, layer], t(f"{name}.conv."), up, demodulate=True)
        y = y + t[f"{name}.noise.weight"] * t[f"noises.noise_{layer}"] + t[f"{name}.activate.bias"][:, None, None]
        return torch.where(y > 0, y, 0.2 * y) * 2**0.5

    x = styled(t["input.input"].repeat(len(codes), 1, 1, 1), 0, "conv1", up=False)
    rgb = naive_modulated(x, codes[:, 1], t("to_rgb1.conv."), False, demodulate=False) + t["to_rgb1.bias"]
    level = 0
    while rgb.shape[-1] < size:
        x = styled(x, 2 * level + 1, f"convs.{2 * level}", up=True)
        x = styled(x, 2 * level + 2, f"convs.{2 * level + 1}", up=False)
        to_rgb = t(f"to_rgbs.{level}.")
        skip = naive_upfirdn(rgb, 2, to_rgb["upsample.kernel"], pad=3)
        rgb = naive_modulated(x, codes[:, 2 * level + 3], to_rgb("conv."), False, demodulate=False)
        rgb = rgb + to_rgb["bias"] + skip
        level += 1
    return rgb


def naive_encoder(model: E4E, images: Tensor) -> Tensor:
    t, config = Tensors(model.state_dict())("encoder."), model.encoder.config

    def norm(x: Tensor, p: Tensors) -> Tensor:
        mean, variance, weight, bias = (p[k][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def prelu(x: Tensor, slope: Tensor) -> Tensor:
        return x.clamp(min=0) + slope[:, None, None] * x.clamp(max=0)

    def conv(x: Tensor, p: Tensors, stride: int = 1) -> Tensor:
        return F.conv2d(x, p["weight"], p.get("bias"), stride, padding=p["weight"].shape[-1] // 2)

    stem = t("input_layer.")
    x = prelu(norm(conv(images, stem("0.")), stem("1.")), stem["2.weight"])
    taps, block = [], 0
    for count in config.blocks:
        for index in range(count):
            b, stride = t(f"body.{block}."), 2 if index == 0 else 1
            short = x[:, :, ::stride, ::stride]
            if "shortcut_layer.0.weight" in b:
                short = norm(conv(x, b("shortcut_layer.0."), stride), b("shortcut_layer.1."))
            r = b("res_layer.")
            y = prelu(conv(norm(x, r("0.")), r("1.")), r["2.weight"])
            y = norm(conv(y, r("3."), stride), r("4."))
            means = y.mean((2, 3), keepdim=True)
            x = y / (1 + torch.exp(-conv(conv(means, r("5.fc1.")).clamp(min=0), r("5.fc2.")))) + short
            block += 1
        taps.append(x)
    c1, c2, c3 = taps[-3:]
    if config.kind == "w":
        return naive_linear(c3.mean((2, 3)), t("linear."))[:, None] + model.latent_avg

    def add(x: Tensor, y: Tensor) -> Tensor:
        return F.interpolate(x, y.shape[2:], mode="bilinear", align_corners=True) + y

    p2 = add(c3, conv(c2, t("latlayer1.")))
    p1 = add(p2, conv(c1, t("latlayer2.")))
    codes = []
    for layer in range(config.num_layers):
        x, head = (c3 if layer < 3 else p2 if layer < 7 else p1), t(f"styles.{layer}.")
        step = 0
        while f"convs.{step}.weight" in head:
            x = conv(x, head(f"convs.{step}."), 2)
            x = torch.where(x > 0, x, 0.01 * x)
            step += 2
        codes.append(naive_linear(x[:, :, 0, 0], head("linear.")))
    if config.kind == "e4e":
        codes = [codes[0], *(codes[0] + delta for delta in codes[1:])]
    return torch.stack(codes, 1) + model.latent_avg


def test_large_styles_stay_in_the_range_of_half_precision():
    torch.manual_seed(0)
    layer = ModulatedConv2d(8, 4, 3, 16)
    x, w = 2000 * torch.rand(1, 8, 6, 6), 40 * torch.randn(1, 16)
    with torch.no_grad():
        assert (x.amax() * layer.modulation(w).abs().amax()) > torch.finfo(torch.float16).max
        expected, half = layer(x, w), layer(x.half(), w)
    assert half.isfinite().all() and (half.float() - expected).norm() < 0.01 * expected.norm()
