"""Closer to the photo: codes optimised, generators tuned, ReStyle's passes."""

import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from e4e_core import load_model
from e4e_core.checkpoints import CHECKPOINTS, registry
from e4e_core.formats import export_published
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from editing import Editor, Session, refine
from errors import ModelError
from page import studio

ASTRONAUT = CHECKPOINTS.parent / "examples" / "astronaut.png"


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(load_model("demo", device="cpu", precision="float32"))


@pytest.fixture(scope="module")
def session(editor: Editor) -> Session:
    return editor.open(ASTRONAUT)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in ("CODE_STEPS", "TUNING_STEPS"):
        monkeypatch.setattr(refine, steps, 15)


def offsets(codes: Tensor) -> Tensor:
    return (codes[:, 1:] - codes[:, :1]).norm(dim=2)


def test_refined_codes_are_closer_to_the_photo_and_still_near_w(editor: Editor, session: Session):
    seen = []
    refined = refine.refine_codes(editor, session, lambda *step: seen.append(step))
    assert refined.after.psnr > refined.before.psnr + 1
    assert refined.before == refine.closeness(editor, session)
    assert refined.after == refine.closeness(editor, refined.session)
    assert refined.before.identity > 0 and refined.after.identity > 0
    assert [step[:2] for step in seen] == [(done, 15) for done in range(1, 16)]
    assert seen[0][2] > seen[-1][2] == 0  # seconds left
    codes = refined.session.codes
    assert codes.shape == session.codes.shape and codes.device.type == "cpu" and not codes.requires_grad
    radius = editor.model.map(torch.randn(500, editor.model.latent_dim)).sub(editor.model.latent_avg[0]).norm(dim=1)
    grown = (offsets(codes) - offsets(session.codes)).mean()
    assert grown < 0.5 * radius.mean()
    assert str(refined).startswith(f"PSNR {refined.before.psnr:.1f} dB, identity ")


def test_the_penalty_keeps_the_offsets_from_growing(editor: Editor, session: Session, monkeypatch: pytest.MonkeyPatch):
    grown = []
    for weight in (0.0, 10.0):
        monkeypatch.setattr(refine, "TOWARDS_W", weight)
        refined = refine.refine_codes(editor, session).session
        grown.append((offsets(refined.codes) - offsets(session.codes)).relu().mean())
    assert grown[1] < 0.7 * grown[0]


def test_a_tuned_generator_is_its_sessions_alone(editor: Editor, session: Session):
    other = editor.open(ASTRONAUT)
    before, weights = editor.render(other, {}).tobytes(), [p.clone() for p in editor.model.parameters()]
    tuned = refine.tune_generator(editor, session)
    assert tuned.after.psnr > tuned.before.psnr + 1
    assert torch.equal(tuned.session.codes, session.codes)
    closer = editor.render(tuned.session, {})
    assert closer.tobytes() != before
    assert editor.render(other, {}).tobytes() == before
    assert editor.render(tuned.session, {}).tobytes() == closer.tobytes()
    assert all(torch.equal(a, b) for a, b in zip(editor.model.parameters(), weights, strict=True))
    assert editor.render(tuned.session, {"smile": 1} if "smile" in editor.directions else {}, size=32).size == (32, 32)
    assert editor.paste(tuned.session, closer).tobytes() == session.photo.tobytes()  # no edit, and compared with itself
    # Random faces are rendered much as the model renders them: locality.
    w = editor.model.map(torch.randn(4, editor.model.latent_dim, generator=torch.Generator().manual_seed(5)))
    codes = w[:, None].expand(-1, editor.model.num_layers, -1)
    faces = editor.model.synthesize(codes)
    changed = tuned.session.generator(codes) - faces
    assert changed.square().mean() < 0.15 * faces.var(0).mean()  # of how much they differ from each other

    travelled = pickle.loads(pickle.dumps(tuned.session))  # as to and from ZeroGPU's worker
    assert editor.render(travelled, {}).tobytes() == closer.tobytes()


def test_a_tuned_generator_goes_with_its_session(editor: Editor, session: Session):
    tuned = refine.tune_generator(editor, session).session
    editor.render(tuned, {})
    generator = weakref.ref(tuned.generator)
    del tuned
    gc.collect()
    assert generator() is None


@pytest.mark.parametrize("improve", [refine.refine_codes, refine.tune_generator])
def test_cancelling_gives_the_session_back(editor: Editor, session: Session, improve: Callable):
    asked = iter([False, False, True])
    refined = improve(editor, session, cancelled=lambda: next(asked))
    assert refined.session is session and refined.steps == 2
    assert refined.after == refined.before


@pytest.mark.parametrize("improve", [refine.refine_codes, refine.tune_generator])
def test_out_of_time_keeps_what_was_reached(editor: Editor, session: Session, improve: Callable):
    refined = improve(editor, session, seconds=0)
    assert refined.steps == 0 and torch.equal(refined.session.codes, session.codes)


def test_what_is_not_a_number_never_reaches_the_session(editor, session, monkeypatch: pytest.MonkeyPatch):
    distance, calls = refine.distance, iter(range(100))
    monkeypatch.setattr(refine, "distance", lambda a, b: distance(a, b) * (torch.nan if next(calls) == 5 else 1))
    refined = refine.refine_codes(editor, session)
    assert refined.steps == 5 and refined.session.codes.isfinite().all()
    assert refined.after.psnr > refined.before.psnr


def test_the_pages_refinements_can_be_computed_elsewhere_and_are_bounded(editor, monkeypatch: pytest.MonkeyPatch):
    """As ZeroGPU's worker gets and gives only what can be pickled; and so much memory for tuned generators."""

    def lent(function: Callable) -> Callable:
        return lambda *inputs: pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(inputs)))))

    page = studio.Studio("demo", editor, on_gpu=lent, live=False)
    visit = page.open(studio.Visit("demo"), ASTRONAUT)
    unedited = page.render(visit)[1].tobytes()
    found = page.refine(visit, True, 60, lambda *_: None, lambda: False)
    assert found.after.psnr > found.before.psnr
    refined = page.refined(visit, found.session)
    assert page.render(refined)[1].tobytes() != unedited
    assert page.render(page.refined(refined))[1].tobytes() == unedited
    monkeypatch.setattr(studio, "TUNED_BYTES", 0)
    with pytest.raises(ModelError, match="use Refine, or try again later"):
        page.refine(visit, True, 60, lambda *_: None, lambda: False)


# ReStyle

LAYERS, WIDTH, SIDE = 8, 16, 64
STAGES, BLOCKS = (8, 12, 16, 20), (2, 1, 2, 1)


def published_encoder(kind: str) -> dict[str, Tensor]:
    """Random tensors under the keys of `restyle_e4e_*_encode.pt`, in a small size."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv(key: str, outputs: int, inputs: int, side: int) -> None:
        state[f"{key}.weight"] = torch.randn(outputs, inputs, side, side) / (inputs * side**2) ** 0.5

    def norm(key: str, channels: int) -> None:
        values = {"weight": torch.rand(channels) + 0.5, "bias": torch.randn(channels) * 0.1}
        values |= {"running_mean": torch.randn(channels) * 0.1, "running_var": torch.rand(channels) + 0.5}
        state.update({f"{key}.{name}": value for name, value in values.items()})
        state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    faces = kind == "ProgressiveBackboneEncoder"
    stem = ("input_layer.0", "input_layer.1", "input_layer.2") if faces else ("conv1", "bn1", "relu")
    conv(stem[0], 8, 6, 3 if faces else 7)
    norm(stem[1], 8)
    state[f"{stem[2]}.weight"] = torch.rand(8)
    channels, index = 8, 0
    for stage, (width, count) in enumerate(zip(STAGES, BLOCKS, strict=True)):
        for block in range(count):
            key, shrinks = f"body.{index}", channels != width or (not faces and stage > 0 and block == 0)
            if faces:
                norm(f"{key}.res_layer.0", channels)
                conv(f"{key}.res_layer.1", width, channels, 3)
                state[f"{key}.res_layer.2.weight"] = torch.rand(width)
                conv(f"{key}.res_layer.3", width, width, 3)
                norm(f"{key}.res_layer.4", width)
                conv(f"{key}.res_layer.5.fc1", max(width // 16, 1), width, 1)
                conv(f"{key}.res_layer.5.fc2", width, max(width // 16, 1), 1)
            else:
                conv(f"{key}.conv1", width, channels, 3)
                norm(f"{key}.bn1", width)
                conv(f"{key}.conv2", width, width, 3)
                norm(f"{key}.bn2", width)
            if shrinks:
                short = f"{key}.shortcut_layer" if faces else f"{key}.downsample"
                conv(f"{short}.0", width, channels, 1)
                norm(f"{short}.1", width)
            channels, index = width, index + 1
    for layer in range(LAYERS):
        for halving in range(2):  # the last stage is 4 pixels high
            conv(f"styles.{layer}.convs.{2 * halving}", 20, 20, 3)
            state[f"styles.{layer}.convs.{2 * halving}.bias"] = torch.randn(20) * 0.1
        state[f"styles.{layer}.linear.weight"] = torch.randn(WIDTH, 20)
        state[f"styles.{layer}.linear.bias"] = torch.randn(WIDTH) * 0.1
    return state


def naive_pass(state: dict[str, Tensor], faces: bool, x: Tensor) -> Tensor:
    """[n, 6, h, w] -> [n, L, D], from the keys alone."""

    def conv(key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{key}.weight"]
        return F.conv2d(x, weight, state.get(f"{key}.bias"), stride, weight.shape[-1] // 2)

    def norm(key: str, x: Tensor) -> Tensor:
        parts = [state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    stem = ("input_layer.0", "input_layer.1", "input_layer.2") if faces else ("conv1", "bn1", "relu")
    x = F.prelu(norm(stem[1], conv(stem[0], x, 1 if faces else 2)), state[f"{stem[2]}.weight"])
    index = 0
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            key, stride = f"body.{index}", 2 if block == 0 and (faces or stage > 0) else 1
            short = f"{key}.shortcut_layer" if faces else f"{key}.downsample"
            has_short = f"{short}.0.weight" in state
            shortcut = norm(f"{short}.1", conv(f"{short}.0", x, stride)) if has_short else x[..., ::stride, ::stride]
            if faces:
                y = conv(f"{key}.res_layer.1", norm(f"{key}.res_layer.0", x))
                y = conv(f"{key}.res_layer.3", F.prelu(y, state[f"{key}.res_layer.2.weight"]), stride)
                y = norm(f"{key}.res_layer.4", y)
                hidden = conv(f"{key}.res_layer.5.fc1", y.mean((2, 3), keepdim=True)).relu()
                x = y * conv(f"{key}.res_layer.5.fc2", hidden).sigmoid() + shortcut
            else:
                y = norm(f"{key}.bn1", conv(f"{key}.conv1", x, stride)).relu()
                x = (norm(f"{key}.bn2", conv(f"{key}.conv2", y)) + shortcut).relu()
            index += 1
    codes = []
    for layer in range(LAYERS):
        y = x
        for halving in range(2):
            y = F.leaky_relu(conv(f"styles.{layer}.convs.{2 * halving}", y, 2), 0.01)
        weight, bias = state[f"styles.{layer}.linear.weight"], state[f"styles.{layer}.linear.bias"]
        codes.append(y.flatten(1) @ weight.T / 20**0.5 + bias)
    return torch.stack([codes[0]] + [codes[0] + offset for offset in codes[1:]], 1)


@pytest.mark.parametrize("kind", ["ProgressiveBackboneEncoder", "ResNetProgressiveBackboneEncoder"])
def test_restyle_makes_its_passes_as_a_plain_loop_does(kind, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("E4E_CACHE", str(tmp_path / "cache"))
    faces = kind == "ProgressiveBackboneEncoder"
    encoder = published_encoder(kind)
    torch.manual_seed(1)
    generator = Generator(GeneratorConfig(32, WIDTH, 2, (8, 8, 8, 8)))
    state = {f"encoder.{key}": value for key, value in encoder.items()}
    state |= {f"decoder.{key}": value for key, value in generator.state_dict().items()}
    opts = {"encoder_type": kind, "input_nc": 6, "n_iters_per_batch": 3, "output_size": 32, "device": "cuda:0"}
    opts |= {"dataset_type": "ffhq_encode" if faces else "cars_encode", "start_from_latent_avg": True}
    latent_avg = torch.randn(WIDTH)
    content = {"state_dict": state, "latent_avg": latent_avg, "opts": opts, "global_step": 1, "best_val_loss": 0.5}
    torch.save(content, tmp_path / "restyle.pt")
    model = load_model(tmp_path / "restyle.pt", device="cpu", precision="float32")
    assert (model.passes, model.input_size, model.aspect) == (3, SIDE, (1, 1) if faces else (4, 3))

    height = SIDE if faces else 48
    images, codes = torch.rand(2, 3, height, SIDE) * 2 - 1, latent_avg.expand(2, LAYERS, -1)
    rows = slice(None) if faces else slice(4, 28)  # cars fill the middle
    for _ in range(3):
        seen = F.adaptive_avg_pool2d(generator(codes)[:, :, rows], (height, SIDE))
        codes = codes + naive_pass(encoder, faces, torch.cat([images, seen], 1))
    torch.testing.assert_close(model.invert(images), codes, rtol=1e-3, atol=1e-3)

    export_published(model, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again["state_dict"].keys() == state.keys()
    assert again["opts"].items() >= {k: opts[k] for k in ("encoder_type", "input_nc", "n_iters_per_batch")}.items()


def test_restyle_is_in_the_registry_and_its_passes_are_bounded():
    entry = registry()["restyle"]
    assert entry["directions"] == "ffhq" and "non-commercial" in entry["licence"]
    shape = EncoderConfig("e4e", SIDE, LAYERS, WIDTH, 8, STAGES, BLOCKS, 20, coarse=LAYERS, middle=0, inputs=6)
    with pytest.raises(ModelError, match="1 to 100 passes, not 0"):
        E4E(Encoder(shape), Generator(GeneratorConfig(32, WIDTH, 2, (8, 8, 8, 8))), passes=0)
