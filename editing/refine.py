"""Closer to the photo than the encoder alone: its codes optimised, then the generator tuned, for one session.

Both minimise `distance` to the aligned photo at the generator's own resolution. Neither changes the model: what was
found is in the session that comes back, and goes with it. Between their steps they give way to pictures of others.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import alignment
from e4e_core.images import content, to_picture, to_tensor
from editing.attributes import embed, find_aligned_face
from editing.editor import Editor, Session

if TYPE_CHECKING:
    from e4e_core.models.e4e import E4E

CODE_STEPS = 100
CODE_RATE = 0.05  # per step, in standard deviations of W
TOWARDS_W = 0.1  # what leaving the neighbourhood of W costs, against `distance`
TUNING_STEPS = 60
TUNING_RATE = 2e-3  # per step; the weights are of order one, being scaled at run time
LOCALITY = 0.5  # what changing other faces costs, against `distance`
WARM_UP = 5  # steps over which the rate rises, because Adam's first ones are as long as its longest
LEVELS = 3  # resolutions at which pictures are compared
EDGES = 0.5  # weight of differences between neighbouring pixels, without which optimised pictures are blurred

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, seconds left as the steps so far suggest)."""


@dataclass(frozen=True)
class Closeness:
    """How near a session's unedited picture comes to the photo.

    Attributes:
        psnr: dB, of 8-bit pictures at the generator's resolution.
        identity: distance of dlib's embeddings, below 0.6 usually the same person; None if there is no face in one.
    """

    psnr: float
    identity: float | None

    def __str__(self) -> str:
        return f"{self.psnr:.1f} dB" + ("" if self.identity is None else f", identity {self.identity:.2f}")


@dataclass(frozen=True)
class Refinement:
    """What came of it: the session to go on with, how close it was and is, and what that took."""

    session: Session
    before: Closeness
    after: Closeness
    steps: int
    seconds: float

    def __str__(self) -> str:
        return f"PSNR {self.before} → {self.after} ({self.steps} steps, {self.seconds:.1f} s)"


def refine_codes(
    editor: Editor,
    session: Session,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    seconds: float = math.inf,
) -> Refinement:
    """Optimise the codes of a session by gradient descent (Karras et al. 2020, appendix D), kept near W.

    The penalty is the growth of the offsets from w beyond the encoder's own, and how far the mean code moves, both
    in units of W's radius: so that sliders and the fidelity dial go on working (Tov et al. 2021, section 3).

    Args:
        progress: called after every step.
        cancelled: asked before every step; once it says so, the session given comes back as it was.
        seconds: after which no step begins; what was reached by then is kept.
    Returns: a Refinement whose session has other codes, never farther from the photo by the loss.
    """
    model = _float32(editor.model_of(session))
    target = _target(editor, session)
    start = session.codes.to(model.device)  # [1, L, D]
    with torch.no_grad():
        w = model.map(torch.randn(2000, model.latent_dim, generator=torch.Generator().manual_seed(0)))  # [2000, D]
    spread, radius = w.std(0), (w - w.mean(0)).norm(dim=1).mean().clamp_min(1e-6)  # [D], a scalar
    lengths = _offsets(start)
    moved = torch.zeros_like(start, requires_grad=True)  # in standard deviations of W

    def loss() -> Tensor:
        codes = start + moved * spread
        growth = F.relu(_offsets(codes) - lengths).div(radius).square().mean()
        drift = (codes - start).mean(1).norm(dim=1).div(radius).square().mean()
        picture = content(model.synthesize(codes), model.aspect)
        return distance(picture, target) + TOWARDS_W * (growth + drift)

    def result() -> Session:
        return replace(session, codes=(start + moved.detach() * spread).cpu())

    schedule = (CODE_STEPS, CODE_RATE)
    return _refined(editor, session, [moved], loss, result, schedule, progress, cancelled, seconds)


def tune_generator(
    editor: Editor,
    session: Session,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    seconds: float = math.inf,
) -> Refinement:
    """Pivotal tuning (Roich et al. 2021): a copy of the generator learns to render this photo at the session's codes.

    Locality (eq. 5): at codes between the pivot and random ones of W the copy has to render what the model renders.
    The paper takes codes at one distance from the pivot, here they lie anywhere on the way, as edited codes do.
    Refining the codes first leaves less to be learned. Arguments and cancelling as in `refine_codes`.

    Returns: a Refinement whose session has a generator of its own; the model and other sessions know nothing of it.
    """
    own = _float32(editor.model)
    pivot, target = session.codes.to(own.device), _target(editor, session)
    tuned = copy.deepcopy(_float32(editor.model_of(session)).decoder)
    weights = [weight for name, weight in tuned.named_parameters() if not name.startswith("style.")]  # not the mapping
    for weight in weights:
        weight.requires_grad_(True)
    noise = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        with torch.no_grad():
            w = own.map(torch.randn(1, own.latent_dim, generator=noise))[:, None]  # [1, 1, D]
            between = torch.lerp(pivot, w.expand_as(pivot), torch.rand((), generator=noise).item())
            expected = own.synthesize(between)
        pictures = tuned(torch.cat([pivot, between]))
        here, there = pictures.split(1)
        return distance(content(here, own.aspect), target) + LOCALITY * distance(there, expected)

    def result() -> Session:
        for weight, model_weight in zip(tuned.parameters(), editor.model.decoder.parameters(), strict=True):
            weight.requires_grad_(False).grad = None
            weight.data = weight.data.to(model_weight.dtype)
        return replace(session, generator=tuned.cpu())

    schedule = (TUNING_STEPS, TUNING_RATE)
    return _refined(editor, session, weights, loss, result, schedule, progress, cancelled, seconds)


def distance(images: Tensor, targets: Tensor) -> Tensor:
    """Squared differences of pixels and absolute ones of edges at LEVELS resolutions, a scalar.

    Needs no weights of a perceptual network: sharp edges are what plain squared differences lose first.
    Args: float [n, 3, h, w] each, RGB in [-1, 1].
    """
    total = torch.zeros((), device=images.device)
    for _ in range(LEVELS):
        edges = [F.l1_loss(images.diff(dim=dim), targets.diff(dim=dim)) for dim in (2, 3)]
        total = total + F.mse_loss(images, targets) + EDGES * sum(edges)
        images, targets = F.avg_pool2d(images, 2), F.avg_pool2d(targets, 2)
    return total / LEVELS


def closeness(editor: Editor, session: Session) -> Closeness:
    """How near the unedited picture of a session is to its photo."""
    pictures = [to_picture(_target(editor, session)), editor.render(session, {})]
    a, b = (np.asarray(picture, np.float64) for picture in pictures)
    psnr = 10 * math.log10(255**2 / max(np.square(a - b).mean(), 1e-4))  # of equal ones, 88 dB and not infinity
    faces = [find_aligned_face(picture) for picture in pictures] if session.faces else [None]
    if not all(faces):
        return Closeness(psnr, None)
    before, after = (embed(*face) for face in faces)
    return Closeness(psnr, float(np.linalg.norm(before - after)))


def _refined(
    editor: Editor,
    session: Session,
    parameters: list[Tensor],
    loss: Callable[[], Tensor],
    result: Callable[[], Session],
    schedule: tuple[int, float],
    progress: Progress | None,
    cancelled: Callable[[], bool],
    seconds: float,
) -> Refinement:
    """Adam on `loss`, with the best parameters it saw put back; a loss that is not a number ends it.

    Args: schedule: (steps, highest rate); the rate falls along a cosine.
    """
    (steps, rate), before, began = schedule, closeness(editor, session), time.monotonic()
    optimizer = torch.optim.Adam(parameters, rate)
    least, best = math.inf, [parameter.detach().clone() for parameter in parameters]
    taken = 0
    for step in range(steps + 1):  # the last one only looks at what the step before it reached
        if cancelled():
            return Refinement(session, before, before, taken, time.monotonic() - began)
        editor.renderer.wait()
        with torch.enable_grad():
            value = loss()
        if not value.isfinite():
            break
        if value.item() < least:
            least = value.item()
            _copy(parameters, best)
        spent = time.monotonic() - began
        if step == steps or spent > seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        taken = step + 1
        if progress:
            per_step = (time.monotonic() - began) / taken
            progress(taken, steps, min(per_step * (steps - taken), max(seconds - spent, 0)))
    _copy(best, parameters)
    better = result()
    return Refinement(better, before, closeness(editor, better), taken, time.monotonic() - began)


@torch.no_grad()
def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for a, b in zip(source, target, strict=True):
        b.copy_(a)


def _float32(model: "E4E") -> "E4E":
    """The model itself, or one with its generator in float32: in half precision small gradients are lost."""
    if model.precision == "float32":
        return model
    return model.with_generator(copy.deepcopy(model.decoder).float())


def _target(editor: Editor, session: Session) -> Tensor:
    """What the generator should render: the aligned photo, float32 [1, 3, R, R] or what the aspect leaves of it."""
    model = editor.model
    if session.faces:
        face = session.faces[session.face]
        picture, _ = alignment.align(session.photo, face, size=model.resolution, template=model.template)
    else:
        picture, _ = alignment.centre_crop(session.photo, model.resolution, model.aspect)
    return to_tensor(picture).to(model.device)


def _offsets(codes: Tensor) -> Tensor:
    """codes [1, L, D] -> the lengths of its offsets from w, [1, L - 1]."""
    return (codes[:, 1:] - codes[:, :1]).norm(dim=2)
