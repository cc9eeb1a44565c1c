"""Sliders from words: closed forms with a stand-in for CLIP whose view of a picture is known, and a random CLIP."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from test_editing import LAYERS, WIDTH, noise_photo, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core import checkpoints
from e4e_core.checkpoints import save_model
from e4e_core.images import to_tensor
from e4e_core.models.ops import EqualLinear
from editing import DirectionSet, Editor, text
from errors import DirectionError, DownloadError, ModelError

CHANNELS, VIEW = 8, 12  # of each layer, and numbers with which the stand-in sees a picture


class StylesAsPixels(nn.Module):
    """A generator whose picture is the styles of its layers, a row for each."""

    def __init__(self):
        super().__init__()
        self.modulations = nn.ModuleList(EqualLinear(WIDTH, CHANNELS) for _ in range(LAYERS))

    @property
    def conv1(self):
        return SimpleNamespace(conv=SimpleNamespace(modulation=self.modulations[0]))

    @property
    def convs(self):
        return [SimpleNamespace(conv=SimpleNamespace(modulation=each)) for each in self.modulations[1 : LAYERS - 1]]

    def forward(self, codes: Tensor, size: int | None = None) -> Tensor:
        styles = [self.modulations[layer](codes[:, layer]) for layer in range(LAYERS)]
        return torch.stack(styles, 1)[:, None].expand(-1, 3, -1, -1) / 100  # [n, 3, L, CHANNELS]


class LinearClip:
    """Sees a picture as `matrix` times its pixels; from "a face" to "a beard", the first two numbers change."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix  # [VIEW, LAYERS * CHANNELS]

    def sentences(self, sentences: list[str]) -> Tensor:
        views = torch.eye(VIEW)[[1] * len(sentences)]
        views[:, 0] = torch.tensor([float("beard" in sentence) for sentence in sentences])
        return F.normalize(views, dim=1)

    def pictures(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1) @ self.matrix.T


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Editor:
    """Of a model whose pictures are its styles."""
    editor = Editor(tiny_model(template=None), {})
    torch.manual_seed(2)
    stand_in = StylesAsPixels().requires_grad_(False)
    stand_in.map, stand_in.config = editor.model.decoder.map, editor.model.decoder.config
    monkeypatch.setattr(editor.model, "decoder", stand_in)
    monkeypatch.setattr(text, "content", lambda images, aspect: images)
    return editor


def test_the_relevance_of_a_channel_is_the_cosine_of_what_it_does_and_what_is_wanted(editor, monkeypatch):
    monkeypatch.setattr(text, "PROBES", VIEW)  # all there are, so that lengths are exact
    matrix = torch.randn(VIEW, LAYERS * CHANNELS)
    towards = F.normalize(torch.randn(VIEW), dim=0)
    seen = []
    found = text.relevances(editor, LinearClip(matrix), towards, lambda done, total: seen.append((done, total)))
    assert [len(each) for each in found] == [CHANNELS] * (LAYERS - 1)  # the last layer has only a to_rgb
    expected = F.normalize(matrix, dim=0).T @ towards
    torch.testing.assert_close(torch.cat(found), expected[: -CHANNELS or None], rtol=1e-3, atol=1e-3)
    assert seen[-1] == (text.FACES, text.FACES)
    assert text.relevances(editor, LinearClip(matrix), towards, cancelled=lambda: True) is None


def test_codes_move_the_most_relevant_channels_by_their_deviations_and_no_others(editor, monkeypatch):
    monkeypatch.setattr(text, "FAINTEST", 1e-9)  # eight channels of sixteen numbers can be met exactly
    relevances = [torch.zeros(CHANNELS) for _ in range(LAYERS - 1)]
    relevances[2][5], relevances[2][1], relevances[4][0], relevances[6][3] = 0.8, -0.4, 0.4, 0.1
    vectors = text.in_codes(editor.model, relevances, channels=3)
    assert vectors.any(1).nonzero().flatten().tolist() == [2, 4]
    w = text.mapped(editor.model, text.SAMPLES, seed=0)
    moved = {}
    for layer, convolution in enumerate(text.styled_convs(editor.model.decoder)):
        weight = convolution.conv.modulation.weight.double()
        moved[layer] = (weight @ vectors[layer].double()) / (w @ weight.T).std(0)
    assert moved[2][5] > 0
    torch.testing.assert_close(
        moved[2] / moved[2][5], torch.eye(8).double()[5] - 0.5 * torch.eye(8)[1], atol=1e-3, rtol=0
    )
    assert (moved[4][0] / moved[2][5]).item() == pytest.approx(0.5, abs=1e-3)
    inverse = torch.linalg.inv(w.T.cov())
    lengths = [(vector @ inverse @ vector).sqrt().item() for vector in vectors.double()]
    assert max(lengths) == pytest.approx(1, rel=1e-3)  # one standard deviation of W


def test_the_slider_moves_pictures_towards_the_text(editor):
    """One channel alone moves the stand-in's view along the text; the slider moves that one."""
    matrix = torch.randn(VIEW, LAYERS * CHANNELS)
    matrix[:2] = 0
    matrix[0, 3 * CHANNELS + 6] = 100.0
    clip = LinearClip(matrix)
    slider = text.describe(editor, clip, "  a face with a  beard ", channels=1)
    assert (slider.label, slider.layers, slider.low, slider.high) == ("A face with a beard", [3], -3, 3)
    assert slider.measured["towards"] > 0.9
    styles = editor.model.decoder.modulations[3].weight @ slider.vectors[3]
    assert styles.argmax() == 6 and styles[6] > 0


@pytest.mark.parametrize(
    "neutral, target, sentence",
    [("a face", " ", "is empty"), ("", "a beard", "is empty"), ("a face", "one face", "mean the same")],
)
def test_descriptions_that_say_nothing_are_refused(editor, neutral, target, sentence):
    with pytest.raises(DirectionError, match=sentence):
        text.describe(editor, LinearClip(torch.ones(VIEW, LAYERS * CHANNELS)), target, neutral)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([" "], "is empty"),
        (["A  face"], "mean the same"),
        (["a beard", "--name", "a beard"], "cannot name a direction"),
    ],
)
def test_the_command_refuses_descriptions_and_names_before_it_loads_anything(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(text, "load_model", lambda name: pytest.fail("loaded"))
    assert text.main([words[0], "--name", "x", *words[1:], "--model", "demo", "--out", "x"]) == 1
    assert sentence in capsys.readouterr().err


def test_a_model_that_cannot_move_there_says_so(editor):
    matrix = torch.randn(VIEW, LAYERS * CHANNELS)
    matrix[:2] = 0
    with pytest.raises(DirectionError, match="knows no way towards 'a beard'"):
        text.describe(editor, LinearClip(matrix), "a beard")


# With open_clip itself


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for a CLIP of 32 px, which open_clip knows as "tiny-clip" from here on."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch")
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    words = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": words}
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-clip").state_dict(), folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


@pytest.fixture
def tiny_clip(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny CLIP as if it were the published one, put there by hand."""
    monkeypatch.setattr(text, "NETWORK", "tiny-clip")
    monkeypatch.setattr(text, "CHECKPOINTS", weights.parent)
    monkeypatch.setattr(text, "published_file", lambda name, progress: weights)
    return weights


def test_clip_takes_pictures_and_sentences_as_open_clip_does(tiny_clip):
    import open_clip

    clip = text.load_clip("cpu")
    network, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(tiny_clip))
    photo = noise_photo(48, 48)
    expected = F.normalize(network.eval().encode_image(preprocess(photo)[None]), dim=1)
    torch.testing.assert_close(clip.pictures(to_tensor(photo)), expected, rtol=0, atol=0.02)  # theirs rounds to 8 bits
    tokens = open_clip.get_tokenizer("tiny-clip")(["a beard"])
    torch.testing.assert_close(clip.sentences(["a beard"]), F.normalize(network.encode_text(tokens), dim=1))


def test_only_an_unreadable_file_is_to_be_removed(tiny_clip, tmp_path, monkeypatch):
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    monkeypatch.setattr(text, "published_file", lambda name, progress: tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match="cannot be read as CLIP's weights; remove it"):
        text.load_clip("cpu")

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("open_clip.create_model", full)
    with pytest.raises(MemoryError):
        text.load_clip("cpu")


def test_the_command_adds_a_slider_to_a_folder(tiny_clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text, "FACES", 4)
    save_model(tiny_model(template=None), tmp_path)
    command = ["a face with a beard", "--model", str(tmp_path), "--out", str(tmp_path)]
    assert text.main(command) == 0
    assert text.main([*command, "--neutral", "a bald man", "--name", "hair", "--channels", "5"]) == 0
    assert "A face with a beard" in capsys.readouterr().out
    sliders = DirectionSet.load(tmp_path)
    assert list(sliders) == ["a_face_with_a_beard", "hair"]
    assert 0 < sliders["hair"].measured["towards"] <= 1


def test_without_the_package_or_the_weights_one_sentence_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert text.main(["a beard", "--model", "demo", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip().endswith("run pip install -r requirements-text.txt and start again.")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    known = checkpoints.networks()
    for module in (text, checkpoints):
        monkeypatch.setattr(module, "CHECKPOINTS", tmp_path)
        monkeypatch.setattr(module, "networks", lambda: known)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("e4e_core.downloads.is_reachable", lambda url: False)
    assert "put open_clip_model.safetensors from https://" in text.why_not()
    with pytest.raises(ModelError, match="there is no network to fetch them"):
        text.load_clip("cpu")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"something else")
    assert text.why_not() == ""
    with pytest.raises(DownloadError, match="is not the published file"):
        text.load_clip("cpu")
