"""Sliders from words: the global directions of StyleCLIP (Patashnik et al. 2021, section 6), with CLIP from open_clip.

    python -m editing.text "a face with a beard" --model runs/encoder/model --out runs/encoder/model

adds a slider to the directions in the folder `--out`; those it holds already stay, unless they have the same name.

CLIP puts sentences and pictures into one space. Each channel of the generator's styles moves pictures some way in it;
those that move them from one sentence towards another are moved together. Two things are not as in the paper:

- How a channel moves pictures is the derivative of CLIP's view, not two pictures of every channel: what takes hours for
  the 6,048 channels of a 1024 px generator takes as long as some hundred pictures.
- Our sliders move codes, from which all styles follow: the codes move so that the styles come as near as they can.
"""

import argparse
import copy
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core import load_model
from e4e_core.checkpoints import CHECKPOINTS, networks, published_file
from e4e_core.downloads import Progress, is_at_hand
from e4e_core.images import content
from e4e_core.models.e4e import E4E
from e4e_core.models.stylegan2 import Generator
from editing.directions import Direction, DirectionSet, check_name, directions_to_extend
from editing.editor import Editor
from editing.unsupervised import SAMPLES, mapped
from errors import DirectionError, E4EError, ModelError

NETWORK = "ViT-B-32-quickgelu"  # open_clip's name for the CLIP that StyleCLIP uses
TEMPLATES = ("{}", "a photo of {}", "a portrait of {}", "a close-up of {}", "a bright picture of {}")
FACES = 32  # invented ones, over which the channels' effects are averaged
TRUNCATION = 0.7  # of these, towards the centre of W
BATCH = 2  # more would take gigabytes with a 1024 px generator
LARGEST = 256  # px; CLIP looks at 224
PROBES = 8  # random directions of CLIP's space, from which the whole effect of a channel is estimated
CHANNELS = 100  # the most relevant ones, which move; the paper's threshold β as a number
FAINTEST = 0.1  # of what a style responds to most; to move along fainter axes, codes would have to leave W
REACH = 3.0  # a slider's ends, in standard deviations of W
LONGEST = 200  # letters of a description
SAME = "The two descriptions mean the same; describe what should change."


class Clip:
    """CLIP's two ways into one space, in which what means the same lies close.

    Args:
        network: with `encode_text`, `encode_image` and `visual.image_size`, `.image_mean` and `.image_std`, as
            open_clip makes it.
        tokenizer: sentences -> int [n, length].
    """

    def __init__(self, network: nn.Module, tokenizer: Callable[[list[str]], Tensor]):
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def sentences(self, sentences: list[str]) -> Tensor:
        """-> unit vectors, float32 [n, E]."""
        tokens = self.tokenizer(sentences).to(next(self.network.parameters()).device)
        return F.normalize(self.network.encode_text(tokens).float(), dim=1)

    def pictures(self, images: Tensor) -> Tensor:
        """float [n, 3, h, w], RGB in [-1, 1] (clamped) -> unit vectors, float32 [n, E]; gradients flow through it."""
        visual = self.network.visual
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size, visual.image_size)
        images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(each, device=images.device) for each in (visual.image_mean, visual.image_std))
        images = ((images.clamp(-1, 1) + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        return F.normalize(self.network.encode_image(images).float(), dim=1)


def why_not() -> str:
    """Why sliders cannot be made from words here and what to do about it; empty if they can. Takes a second at most."""
    if importlib.util.find_spec("open_clip") is None:
        return "Sliders from words need one more package; run pip install -r requirements-text.txt and start again."
    entry = networks()["clip"]
    if not is_at_hand(entry, CHECKPOINTS):
        return (
            f"Sliders from words need the weights of CLIP, and there is no network to fetch them; put {entry['file']} "
            f"from {entry['page']} into {CHECKPOINTS.name}/ and start again."
        )
    return ""


def load_clip(device: torch.device | str, progress: Progress | None = None) -> Clip:
    """CLIP with its published weights, 605 MB that are downloaded once; `progress` as in `load_model`.

    Raises: ModelError without open_clip and for a file that is not CLIP's, DownloadError without the weights.
    """
    if reason := why_not():
        raise ModelError(reason)
    path = published_file("clip", progress)
    import open_clip

    try:
        network = open_clip.create_model(NETWORK, pretrained=str(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as CLIP's weights; remove it and try again.") from error
    return Clip(network.to(device), open_clip.get_tokenizer(NETWORK))


def describe(
    editor: Editor,
    clip: Clip,
    target: str,
    neutral: str = "a face",
    channels: int = CHANNELS,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Direction | None:
    """The slider that turns what one sentence describes into what another one does.

    Args:
        target, neutral: "a face with a beard", "a face".
        channels: how many of the styles' channels move, the most relevant ones; fewer change less besides.
        progress: called with (pictures looked at, pictures in all).
        cancelled: asked before every few pictures.
    Returns: a Direction whose strength 1 is one standard deviation of W on the layer that moves most; None once it is
        cancelled. `measured["towards"]` is how far invented faces move towards the target, of how far they move at all.
    Raises: DirectionError for empty and equal sentences, and if the model cannot move that way.
    """
    target, neutral = as_descriptions(target, neutral)
    towards = way(clip, neutral, target)
    found = relevances(editor, clip, towards, progress, cancelled)
    if found is None:
        return None
    vectors = in_codes(editor.model, found, channels)
    reached = _reached(editor.model, clip, towards, vectors)
    if not reached > 0:
        raise DirectionError(f"This model knows no way towards {target!r}; describe it in other words.")
    measured = {"towards": round(reached, 3), "channels": channels}
    source = f"StyleCLIP, from {neutral!r} to {target!r}"
    return Direction(target[:1].upper() + target[1:], "Text", -REACH, REACH, vectors, measured, source)


def as_descriptions(*texts: str) -> list[str]:
    """Two descriptions without superfluous spaces and length. Raises DirectionError if one is empty, or both equal."""
    texts = [" ".join(text.split())[:LONGEST] for text in texts]
    if not all(texts):
        raise DirectionError("One of the descriptions is empty; describe what the face is and what it should become.")
    if len({text.lower() for text in texts}) == 1:
        raise DirectionError(SAME)
    return texts


def way(clip: Clip, neutral: str, target: str) -> Tensor:
    """The unit vector from one sentence to another, each averaged over TEMPLATES: float32 [E] (Δt, section 6.1)."""
    start, end = (
        F.normalize(clip.sentences([template.format(text) for template in TEMPLATES]).mean(0), dim=0)
        for text in (neutral, target)
    )
    if (end - start).norm() < 1e-4:
        raise DirectionError(SAME)
    return F.normalize(end - start, dim=0)


def relevances(
    editor: Editor,
    clip: Clip,
    towards: Tensor,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Tensor] | None:
    """How much of what each channel of the styles does to pictures goes `towards` (Δi_c · Δi, section 6.2).

    That is the cosine of `towards` [E] and the mean derivative of CLIP's view of FACES invented faces by the channel.
    The length of that derivative is estimated from its components along PROBES random orthogonal vectors.

    Returns: for each layer but the last, which has only a `to_rgb`, float32 [channels] on the CPU; None if cancelled.
    """
    model = editor.model
    generator = copy.deepcopy(model.decoder).float()  # in half precision small gradients are lost; hooks stay here
    offsets = []
    for layer in styled_convs(generator):
        offset = torch.zeros(layer.conv.modulation.weight.shape[0], device=model.device, requires_grad=True)
        layer.conv.modulation.register_forward_hook(lambda _, __, style, offset=offset: style + offset)
        offsets.append(offset)
    random = torch.randn(len(towards), PROBES, generator=torch.Generator().manual_seed(0))
    probes = torch.cat([towards[None], torch.linalg.qr(random).Q.T.to(towards)])  # [1 + PROBES, E], at most E of them
    pulls = torch.zeros(len(probes), sum(map(len, offsets)), device=model.device)
    codes = _invented(model)
    for done in range(0, FACES, BATCH):
        if cancelled():
            return None
        editor.renderer.wait()
        with torch.enable_grad():
            images = generator(codes[done : done + BATCH], min(LARGEST, model.resolution))
            views = clip.pictures(content(images, model.aspect))  # [n, E]
            for pull, probe in zip(pulls, probes, strict=True):
                along = (views @ probe).sum()
                pull += torch.cat(torch.autograd.grad(along, offsets, retain_graph=True, materialize_grads=True))
        if progress:
            progress(done + BATCH, FACES)
    length = pulls[1:].square().mean(0).sqrt() * math.sqrt(len(towards))
    relevance = (pulls[0] / length.clamp_min(1e-12)).cpu()
    return list(relevance.split([len(offset) for offset in offsets]))


def in_codes(model: E4E, relevances: list[Tensor], channels: int = CHANNELS) -> Tensor:
    """What to add to codes so that the most relevant channels move, each by its relevance times its own deviation.

    On each layer the styles are affine in its code, so that the code's movement is a least-squares solution: the
    shortest one, counted in standard deviations of W, so that edited codes stay near those the generator knows.

    Returns: float32 [L, D]; on the layer that moves most it is one standard deviation of W long.
    """
    w = mapped(model, SAMPLES, seed=0)  # [samples, D]
    _, lengths, axes = torch.linalg.svd(w - w.mean(0), full_matrices=False)
    root = axes.T * (lengths / math.sqrt(len(w)))  # [D, D]: root rootᵀ is the covariance of W
    every = torch.cat(relevances).abs()
    least = every.topk(max(1, min(channels, len(every)))).values[-1]
    vectors, moves = torch.zeros(model.num_layers, model.latent_dim, dtype=torch.float64), []
    for row, layer, relevance in zip(vectors, styled_convs(model.decoder), relevances, strict=False):
        wanted = relevance.double() * (relevance.abs() >= least)  # [channels], in their standard deviations
        rows = F.normalize(layer.conv.modulation.weight.double().cpu() @ root, dim=1)  # of unit variance each
        move = torch.linalg.pinv(rows, rtol=FAINTEST) @ wanted  # [D], in standard deviations of W
        row += root @ move
        moves.append(move.norm())
    return (vectors / max(moves).clamp_min(1e-12)).float()


def styled_convs(generator: Generator) -> list[Any]:
    """The convolution that consumes the code of layer 0, 1, …; the last layer has none, only a `to_rgb`."""
    return [generator.conv1, *generator.convs]


@torch.no_grad()
def _reached(model: E4E, clip: Clip, towards: Tensor, vectors: Tensor) -> float:
    """The cosine of `towards` and what vectors [L, D] do to CLIP's view of invented faces, from strength −1 to 1."""
    change, size = torch.zeros_like(towards), min(LARGEST, model.resolution)
    for codes in _invented(model).split(BATCH):
        high, low = (model.synthesize(codes + sign * vectors.to(codes), size) for sign in (1, -1))
        change += (clip.pictures(content(high, model.aspect)) - clip.pictures(content(low, model.aspect))).sum(0)
    return float(F.normalize(change, dim=0) @ towards)


def _invented(model: E4E) -> Tensor:
    """float32 [FACES, L, D] on the model's device: codes of faces that do not exist, the same ones every time."""
    w = mapped(model, FACES, seed=1).float().to(model.device)[:, None]  # [FACES, 1, D]
    return torch.lerp(model.latent_avg, w.expand(-1, model.num_layers, -1), TRUNCATION)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when the direction was written."""
    parser = argparse.ArgumentParser(
        prog="python -m editing.text", description="Make a slider from two descriptions of a picture."
    )
    parser.add_argument("target", help="what the slider leads to, such as 'a face with a beard'")
    parser.add_argument("--neutral", default="a face", help="what it starts from (default: a face)")
    parser.add_argument("--model", required=True, help="name of a known model, a published .pt file, or a model folder")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder whose directions.safetensors and .json are made or added to; a model's own gives it a slider",
    )
    parser.add_argument("--name", help="of the slider, letters, digits, _ and -; made from the description by default")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="how many channels move; fewer change less else")
    settings = parser.parse_args(arguments)
    name = settings.name or re.sub(r"\W+", "_", settings.target.lower()).strip("_")
    try:
        check_name(name)  # this and what follows before anything large is loaded
        as_descriptions(settings.target, settings.neutral)
        if reason := why_not():
            raise ModelError(reason)
        model = load_model(settings.model)
        there = directions_to_extend(settings.out, model)
        clip = load_clip(model.device)
        found = describe(Editor(model, {}), clip, settings.target, settings.neutral, settings.channels)
        DirectionSet({**there, name: found}).save(settings.out)
    except (E4EError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{name:28s} {found.label:40s} {found.low:+g} … {found.high:+g} standard deviations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
