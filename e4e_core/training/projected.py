"""A second discriminator for faces, which sees them as dlib's face network does (Sauer et al. 2021)."""

import torch
from torch import Tensor

from e4e_core.models.discriminators import ProjectedDiscriminator
from e4e_core.models.dlib_face import dlib_weights
from e4e_core.training.latents import RecentCodes
from e4e_core.training.losses import discriminator_loss, feature_distance, non_saturating
from e4e_core.training.perception import DlibIdentity
from e4e_core.training.processes import Precision, Processes
from e4e_core.training.run import Stateful
from e4e_core.training.settings import EncoderTraining

RATE = 1e-3
RECENT = 512  # embeddings of samples, and of photos, that each sample is compared with


class FaceCritic:
    """Heads on the features of a frozen network, which has learned from millions of faces where to look.

    It makes a small generator draw eyes and mouths long before a discriminator that learns from nothing would. The
    paper's networks are ImageNet's and mix their maps at random; here each map is judged as it is.
    """

    def __init__(self, config: EncoderTraining, processes: Processes, precision: Precision):
        self.config, self.processes, self.precision = config, processes, precision
        self.sight = DlibIdentity(dlib_weights(), config.template).to(processes.device)
        self.heads = ProjectedDiscriminator(DlibIdentity.WIDTHS).to(processes.device).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), RATE, betas=(0.0, 0.99))
        self.photos, self.samples = RecentCodes(RECENT), RecentCodes(RECENT)  # embeddings float [m, 128]

    def parts(self) -> dict[str, Stateful]:
        """What a stopped run needs of it."""
        return {"f": self.heads, "f_optim": self.optimizer, "photos": self.photos, "faces": self.samples}

    def terms(self, made: Tensor, reals: Tensor) -> dict[str, Tensor]:
        """The losses that the settings ask for, weighted, of pictures float [m, 3, R, R] next to photos [n, 3, R, R].

        Args: made: the photos' inversions, then samples.
        """
        fake_maps = self.sight.features(self.sight.chips(made.float()))
        with torch.no_grad():
            real_maps = self.sight.features(self.sight.chips(reals))
        wanted = {
            "seen": (self.config.projected, self.realism),
            "like": (self.config.likeness, self.likeness),
            "variety": (self.config.variety, self.variety),
        }
        return {name: weight * judge(fake_maps, real_maps) for name, (weight, judge) in wanted.items() if weight}

    def realism(self, fake_maps: list[Tensor], real_maps: list[Tensor]) -> Tensor:
        """What the generator pays for pictures seen as `fake_maps`, next to photos. Adds its heads' gradients, too."""
        self.heads.requires_grad_(True)
        judged = zip(self.heads(real_maps), self.heads([each.detach() for each in fake_maps]), strict=True)
        loss = torch.stack([discriminator_loss(real, fake) for real, fake in judged]).mean()
        self.precision.backward(loss / self.config.accumulate)
        self.heads.requires_grad_(False)
        return torch.stack([non_saturating(logits) for logits in self.heads(fake_maps)]).mean()

    def likeness(self, fake_maps: list[Tensor], real_maps: list[Tensor]) -> Tensor:
        """How far inversions are from their photos [n]: the distance of features and the embeddings' squared one.

        Args: fake_maps: those of the inversions, and then of other pictures.
        """
        inverted = [each[: len(real)] for each, real in zip(fake_maps, real_maps, strict=True)]
        embeddings = self.sight.embedding(inverted[-1]) - self.sight.embedding(real_maps[-1])
        return feature_distance(inverted[:-1], real_maps[:-1]) + embeddings.square().sum(1).mean()

    def variety(self, fake_maps: list[Tensor], real_maps: list[Tensor]) -> Tensor:
        """How much samples would gain from being nearer to photos, and farther from samples, in dlib's embeddings.

        Its gradient is that of 2·E‖a - b‖ - E‖a - a'‖ - E‖b - b'‖ for samples a and photos b, the energy distance, zero
        only for equal distributions (Székely & Rizzo 2013, eq. 6). Each sample is held against the recent ones, so that
        several processes compute what one would.
        Args: fake_maps: those of as many inversions as `real_maps` has photos, and then of the samples.
        """
        embeddings = self.sight.embedding(fake_maps[-1][len(real_maps[-1]) :])
        self.photos.add(self.processes.gather(self.sight.embedding(real_maps[-1])))
        self.samples.add(self.processes.gather(embeddings))
        near, far = (torch.cdist(embeddings, recent.codes).mean() for recent in (self.photos, self.samples))
        return 2 * (near - far)

    def average_gradients(self) -> None:
        """Before the optimizer's step: the mean over processes."""
        self.processes.average_gradients(self.heads.parameters())

    def set_rate(self, share: float) -> None:
        """Let it learn at this share of its first rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = share * RATE
