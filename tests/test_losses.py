"""The losses against closed forms, and the published networks with stand-ins of the same layout."""

from pathlib import Path

import dlib
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from alignment import align, find_faces
from e4e_core import checkpoints
from e4e_core.checkpoints import dlib_face_network, published_file
from e4e_core.images import to_tensor
from e4e_core.models import irse
from e4e_core.models.discriminators import Discriminator
from e4e_core.models.dlib_face import dlib_weights
from e4e_core.models.e4e import FFHQ_TEMPLATE
from e4e_core.training.losses import (
    PathLength,
    delta_penalty,
    discriminator_loss,
    feature_distance,
    gradient_penalty,
    non_saturating,
)
from e4e_core.training.perception import DlibIdentity, Identity, Lpips, Moco, load_losses
from e4e_core.training.processes import Precision, Processes
from e4e_core.training.projected import FaceCritic
from e4e_core.training.settings import EncoderTraining, FacesTraining
from e4e_core.training.transport import transport
from editing.attributes import embed
from errors import DownloadError, ModelError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FACES = FacesTraining(data=Path("data"), generator=Path("generator"), out=Path("out"))


def test_delta_penalty_is_the_summed_length_of_the_offsets():
    codes = torch.zeros(2, 3, 4)
    codes[0, 1, :2] = torch.tensor([3.0, -4.0])
    codes[0, 2, 1] = 4.0
    codes[:, :] += torch.tensor([5.0, -2.0, 0.0, 1.0])
    codes.requires_grad_(True)
    penalty = delta_penalty(codes)
    penalty.backward()
    assert penalty.item() == pytest.approx((5 + 4) / 2)
    assert codes.grad.isfinite().all()
    assert delta_penalty(codes, order=1).item() == pytest.approx((7 + 4) / 2)


def test_adversarial_losses_match_their_formulas():
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([0.7, 2.0])
    expected = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(non_saturating(fake), -torch.sigmoid(fake).log().mean())


def test_transport_gives_codes_another_mean_and_covariance():
    random = torch.Generator().manual_seed(0)
    source = torch.randn(5_000, 6, generator=random) @ torch.randn(6, 6, generator=random)
    target = torch.randn(5_000, 6, generator=random) @ torch.randn(6, 6, generator=random) + 3
    move = transport(source, target)
    torch.testing.assert_close(move(source).mean(0), target.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(move(source).T), torch.cov(target.T), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(move.matrix, move.matrix.T)  # the gradient of a convex function: nothing is turned
    assert torch.linalg.eigvalsh(move.matrix).min() > 0


def test_gradient_penalty_of_a_linear_critic_is_its_squared_norm():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False))
    penalty = gradient_penalty(critic, torch.randn(5, 3, 2, 2))
    torch.testing.assert_close(penalty, critic[1].weight.square().sum())


def test_path_length_of_a_linear_generator_is_the_length_of_its_noise():
    codes, factor = torch.randn(5, 3, 16, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    penalize = PathLength()
    torch.manual_seed(1)
    penalty = penalize((factor * codes).view(5, 3, 4, 4), codes)
    torch.manual_seed(1)
    noise = torch.randn(5, 3, 4, 4) / 4
    lengths = 2 * noise.flatten(2).square().sum(2).mean(1).sqrt()
    assert penalize.mean == pytest.approx(0.01 * lengths.mean().item())
    torch.testing.assert_close(penalty, (lengths - penalize.mean).square().mean())
    penalty.backward()
    assert factor.grad > 0


def test_feature_distance_is_zero_for_the_same_picture_and_ignores_feature_scale():
    torch.manual_seed(0)
    critic = Discriminator((8, 8, 8, 8))
    a, b = (critic.features(torch.randn(2, 3, 32, 32)) for _ in range(2))
    assert feature_distance(a, a).item() == 0
    assert 0 < feature_distance(a, b).item() <= 4  # unit vectors are at most 2 apart
    torch.testing.assert_close(feature_distance([3 * x for x in a], b), feature_distance(a, b))


def stand_in(network: nn.Module) -> dict[str, Tensor]:
    """Random tensors in the layout of a network on the meta device."""
    torch.manual_seed(0)
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            state[key] = torch.ones(value.shape)
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        else:
            state[key] = torch.randn(value.shape) * max(value[:1].numel(), 1) ** -0.5
    return state


def lpips_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with torch.device("meta"):
        features = torchvision.models.alexnet().features
    trunk = {f"features.{key}": value for key, value in stand_in(features).items()}
    widths = (64, 192, 384, 256, 256)
    return trunk, {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}


def test_lpips_is_its_formula():
    trunk, heads = lpips_weights()
    distance = Lpips(trunk, heads)
    a, b = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    b.requires_grad_(True)
    assert distance(a, a).item() == 0

    def features(image: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x, maps = (image - shift.view(3, 1, 1)) / scale.view(3, 1, 1), []
        network = torchvision.models.alexnet().features
        network.load_state_dict({key.removeprefix("features."): value for key, value in trunk.items()})
        for index, layer in enumerate(network):
            x = layer(x)
            if index in (1, 4, 7, 9, 11):
                maps.append(nn.functional.normalize(x, dim=1, eps=1e-10).clone())
        return maps

    pairs = zip(features(a), features(b), heads.values(), strict=True)
    expected = sum(((x - y).square() * head).sum(1).mean() for x, y, head in pairs)
    torch.testing.assert_close(distance(a, b), expected, rtol=1e-4, atol=1e-6)
    distance(a, b).backward()
    assert b.grad.abs().sum() > 0
    trunk["features.10.bias"] = torch.full([256], -1e4)  # the last features are all zero
    b.grad = None
    Lpips(trunk, heads)(a, b).backward()
    assert b.grad.isfinite().all() and b.grad.abs().sum() > 0
    del heads["lin3.model.1.weight"]
    with pytest.raises(ModelError, match="another layout"):
        Lpips(trunk, heads)


def test_identity_reads_the_published_layout_and_the_faces_middle():
    with torch.device("meta"):
        head = [nn.BatchNorm2d(512), nn.Dropout(), nn.Flatten(), nn.Linear(512 * 49, 512), nn.BatchNorm1d(512)]
        network = nn.Sequential()
        network.add_module("input_layer", irse.input_layer(64))
        network.add_module("body", irse.body(64, (64, 128, 256, 512), (3, 4, 14, 3)))
        network.add_module("output_layer", nn.Sequential(*head))
    weights = stand_in(network)
    assert {"input_layer.2.weight", "body.23.res_layer.5.fc2.weight", "output_layer.4.running_mean"} <= weights.keys()
    distance = Identity(weights)
    a, b = torch.rand(2, 1, 3, 256, 256) * 2 - 1
    assert distance(a, a).item() == pytest.approx(0, abs=1e-5)
    assert 0 < distance(a, b).item() <= 2
    margin = a.clone()
    margin[:, :, :35] = margin[:, :, 223:] = -1
    margin[..., :32] = margin[..., 220:] = -1
    torch.testing.assert_close(distance.embed(margin), distance.embed(a))
    tight = Identity(weights, template=(0.42, 0.62))
    assert not torch.allclose(tight.embed(margin), tight.embed(a))
    assert tight.embed(a).norm().item() == pytest.approx(1, abs=1e-5)


def test_dlibs_face_network_answers_as_dlib_does():
    astronaut = Image.open(EXAMPLES / "astronaut.png").convert("RGB")
    face = find_faces(astronaut)[0]
    points = dlib.points([dlib.point(round(float(x)), round(float(y))) for x, y in face.landmarks])
    shape = dlib.full_object_detection(dlib.rectangle(*(round(side) for side in face.box)), points)
    dlibs_own = dlib.face_recognition_model_v1(str(dlib_face_network()))
    expected = np.array(dlibs_own.compute_face_descriptor(np.asarray(astronaut), shape))
    np.testing.assert_allclose(embed(astronaut, face), expected, atol=1e-5)
    network = DlibIdentity(dlib_weights())
    for template in (FFHQ_TEMPLATE, (0.42, 0.62)):  # where the template puts the face is near where dlib looks
        aligned = to_tensor(align(astronaut, face, 256, template)[0])
        own = DlibIdentity(dlib_weights(), template).embed(aligned)[0].numpy()
        assert np.linalg.norm(own - expected) < 0.25  # 0.6 would be another person
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert network(a, a).item() == 0
    a.requires_grad_()
    network(a, b).backward()
    assert (a.grad.abs().sum((1, 2, 3)) > 0).all()
    with pytest.raises(ModelError, match="another layout"):
        DlibIdentity(dlib_weights()[:-1])


def test_samples_pay_what_brings_their_embeddings_nearer_to_those_of_photos():
    """The gradient is the energy distance's, but for each sample's distance 0 from itself among the recent ones."""
    config = EncoderTraining(data=Path("data"), generator=Path("generator"), out=Path("out"), variety=1.0)
    processes = Processes("cpu")
    critic = FaceCritic(config, processes, Precision("float32", processes.device))
    random = torch.Generator().manual_seed(0)
    inversions, photos = (torch.randn(5, 256, 2, 2, generator=random) for _ in range(2))
    samples = torch.randn(40, 256, 2, 2, generator=random, requires_grad=True)
    embed = critic.sight.embedding
    (expected,) = torch.autograd.grad(
        2 * torch.cdist(embed(samples), embed(photos)).mean() - 39 / 40 * F.pdist(embed(samples)).mean(), samples
    )
    (found,) = torch.autograd.grad(critic.variety([torch.cat([inversions, samples])], [photos]), samples)
    torch.testing.assert_close(found, expected)
    assert critic.likeness([photos] * 2, [photos] * 2).item() == 0


def test_moco_reads_the_published_layout():
    with torch.device("meta"):
        network = torchvision.models.resnet50()
        network.fc = nn.Identity()
    weights = {f"module.encoder_q.{key}": value for key, value in stand_in(network).items()}
    weights |= {"module.encoder_q.fc.0.weight": torch.zeros(2048, 2048), "module.queue": torch.zeros(128, 4)}
    distance = Moco(weights)
    a, b = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert distance(a, a).item() == pytest.approx(0, abs=1e-5)
    assert 0 < distance(a, b).item() <= 2
    with pytest.raises(ModelError, match="MoCo weights have another layout"):
        Moco({"encoder.conv1.weight": torch.zeros(1)})


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and no copies; returns the folder where a person would put files."""
    registry = (checkpoints.CHECKPOINTS / "networks.toml").read_text(encoding="utf-8")
    (tmp_path / "networks.toml").write_text(registry, encoding="utf-8")
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(checkpoints, "is_reachable", lambda url: False)
    monkeypatch.setattr("e4e_core.downloads.is_reachable", lambda url: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("E4E_CACHE", str(tmp_path / "cache/models"))
    return tmp_path


def test_missing_weights_cost_a_sentence_and_the_discriminator_stands_in(
    no_weights: Path, capsys: pytest.CaptureFixture[str]
):
    losses, perceptual = load_losses(FACES)
    assert losses.keys() == {"identity"} and perceptual == FACES.lpips
    weight, network = losses["identity"]
    assert weight == FACES.identity and isinstance(network, DlibIdentity)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("The weights of the lpips loss cannot be had, so the discriminator's features stand in")
    assert "identity loss cannot be had, so dlib's face network stands in for it" in lines[1]
    assert "model_ir_se50.pth" in lines[1]


def test_a_file_with_another_digest_is_not_opened(no_weights: Path):
    (no_weights / "alexnet-owt-7be5be79.pth").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="not the published file"):
        published_file("alexnet")
    with pytest.raises(DownloadError, match=r"moco_v2_800ep_pretrain\.pth\.tar from https"):
        published_file("moco")


def test_weights_put_beside_the_registry_are_used(no_weights: Path, monkeypatch: pytest.MonkeyPatch):
    trunk, heads = lpips_weights()
    for name, state in {"alexnet-owt-7be5be79.pth": trunk, "LPIPS_v0.1_alex-df73285e.pth": heads}.items():
        torch.save(state, no_weights / name)
    monkeypatch.setattr(checkpoints, "is_intact", lambda path, entry: True)
    monkeypatch.setattr("e4e_core.downloads.is_intact", lambda path, entry: True)
    losses, perceptual = load_losses(FACES)
    assert losses.keys() == {"lpips", "identity"} and perceptual == 0
    weight, network = losses["lpips"]
    assert weight == 0.8 and network(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)) > 0
