"""From the codes that a mapping network makes to those that an encoder sees in photos: an affine map of W."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder
from e4e_core.models.ops import EqualLinear, ModulatedConv2d
from e4e_core.models.stylegan2 import Generator
from e4e_core.training.latents import RecentCodes

NARROWEST = 1e-4  # of the widest variance: codes that vary less in some direction are taken to vary by this
MAPPED = 20_000  # codes by which a mapping network is known
RECENT = 4_096  # w of photos by which an encoder is known
FEWEST = 4  # of them, in widths of w: before, nothing is moved


@dataclass(frozen=True)
class Transport:
    """w -> matrix · w + shift, on codes float32 [..., D]; matrix [D, D], shift [D]."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, codes: Tensor) -> Tensor:
        return codes @ self.matrix.T + self.shift


def transport(source: Tensor, target: Tensor) -> Transport:
    """The optimal transport of the Gaussian of `source` to that of `target` (Peyré & Cuturi 2019, remark 2.31).

    It gives codes like `source` the mean and the covariance of `target`, and moves them no farther than that takes.
    Args: float [n, D] and [m, D], some times more codes than they are wide.
    """
    have, wanted = (_widened(torch.cov(codes.T.double())) for codes in (source, target))
    half, inverse = _power(have, 0.5), _power(have, -0.5)
    matrix = inverse @ _power(half @ wanted @ half, 0.5) @ inverse
    shift = target.double().mean(0) - matrix @ source.double().mean(0)
    return Transport(matrix.float(), shift.float())


def _widened(covariance: Tensor) -> Tensor:
    """float64 [D, D], with no variance below NARROWEST of the widest."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=NARROWEST * values[-1].item())) @ vectors.T


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a positive definite float64 [D, D]."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


class Mover:
    """Moves mapped codes to where the encoder has lately seen photos; without many of these it leaves them."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.recent = RecentCodes(RECENT)
        self.transport: Transport | None = None

    def __call__(self, codes: Tensor) -> Tensor:
        """Mapped codes float [..., D] -> the same shape."""
        return codes if self.transport is None else self.transport(codes)

    def learn(self) -> None:
        """Follow the encoder: from now on move to the recent codes as they are."""
        recent = self.recent.codes
        if recent is not None and len(recent) >= FEWEST * recent.shape[1]:
            self.transport = self.to(recent)

    @torch.no_grad()
    def to(self, w: Tensor) -> Transport:
        """What moves mapped codes to w float [n, D] of photos."""
        z = torch.randn(MAPPED, w.shape[1], generator=torch.Generator().manual_seed(0))
        return transport(self.generator.map(z.to(w.device)), w)

    def state_dict(self) -> dict[str, Any]:
        moves = self.transport and (self.transport.matrix, self.transport.shift)
        return {"recent": self.recent.state_dict(), "transport": moves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent.load_state_dict(state["recent"])
        moves = state["transport"]
        self.transport = moves and Transport(*(tensor.to(self.generator.input.input.device) for tensor in moves))


@torch.no_grad()
def in_mapped_coordinates(encoder: Encoder, generator: Generator, center: Tensor, moved: Transport, **domain) -> E4E:
    """A model whose mapping network makes the codes that `moved` makes of this generator's.

    W gets other coordinates: its modulations begin with `moved`, the encoder's heads end with its inverse. So photos
    have the same inversions, and mapped codes give the pictures that they gave when they were moved.
    Args: center: float [D], the latent average of `encoder`. domain: what else describes an `E4E`.
    """
    with torch.random.fork_rng(devices=[]):  # their first weights are replaced and must not move a run's random state
        seeing, painting = Encoder(encoder.config), Generator(generator.config)
    for network, weights in ((seeing, encoder), (painting, generator)):
        network.to(center.device).load_state_dict(weights.state_dict())
    seeing.num_deltas = encoder.num_deltas
    for module in painting.modules():
        if isinstance(module, ModulatedConv2d):
            linear = module.modulation
            linear.bias += linear.scale / linear.lr_mul * linear.weight @ moved.shift
            linear.weight.copy_(linear.weight @ moved.matrix)
    back = torch.linalg.inv(moved.matrix.double())
    for head in (module for module in seeing.modules() if isinstance(module, EqualLinear)):
        head.weight.copy_(back @ head.weight.double())
        head.bias.copy_(back @ head.bias.double())
    center = (back @ (center - moved.shift).double()).float()
    return E4E(seeing, painting, center, **domain).requires_grad_(False)
