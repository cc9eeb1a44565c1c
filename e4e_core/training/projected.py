"""A second discriminator for faces, which sees them as dlib's face network does (Sauer et al. 2021)."""

import torch
from torch import Tensor

from e4e_core.models.discriminators import ProjectedDiscriminator
from e4e_core.training.losses import discriminator_loss, non_saturating
from e4e_core.training.perception import DlibIdentity, dlib_weights
from e4e_core.training.processes import Precision, Processes
from e4e_core.training.run import Stateful
from e4e_core.training.settings import EncoderTraining

RATE = 1e-3


class FaceCritic:
    """Heads on the features of a frozen network, which has learned from millions of faces where to look.

    It makes a small generator draw eyes and mouths long before a discriminator that learns from nothing would. The
    paper's networks are ImageNet's and mix their maps at random; here each map is judged as it is.
    """

    def __init__(self, config: EncoderTraining, processes: Processes, precision: Precision):
        self.processes, self.precision, self.parts_of_batch = processes, precision, config.accumulate
        self.sight = DlibIdentity(dlib_weights(), config.template).to(processes.device)
        self.heads = ProjectedDiscriminator(DlibIdentity.WIDTHS).to(processes.device).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), RATE, betas=(0.0, 0.99))

    def parts(self) -> dict[str, Stateful]:
        """What a stopped run needs of it."""
        return {"f": self.heads, "f_optim": self.optimizer}

    def realism(self, made: Tensor, reals: Tensor) -> Tensor:
        """What the generator pays for its pictures float [m, 3, R, R], next to photos [n, 3, R, R].

        Adds the gradients of its own heads, too.
        """
        fake_maps = self.sight.features(self.sight.chips(made.float()))
        with torch.no_grad():
            real_maps = self.sight.features(self.sight.chips(reals))
        self.heads.requires_grad_(True)
        judged = zip(self.heads(real_maps), self.heads([each.detach() for each in fake_maps]), strict=True)
        loss = torch.stack([discriminator_loss(real, fake) for real, fake in judged]).mean()
        self.precision.backward(loss / self.parts_of_batch)
        self.heads.requires_grad_(False)
        return torch.stack([non_saturating(logits) for logits in self.heads(fake_maps)]).mean()

    def average_gradients(self) -> None:
        """Before the optimizer's step: the mean over processes."""
        self.processes.average_gradients(self.heads.parameters())

    def set_rate(self, share: float) -> None:
        """Let it learn at this share of its first rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = share * RATE
