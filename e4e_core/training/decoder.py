"""A generator that learns while an encoder is trained on it."""

import copy

import torch
from torch import Tensor

from e4e_core.models.discriminators import Discriminator
from e4e_core.models.stylegan2 import Generator, NoiseInjection
from e4e_core.training.generator import blend
from e4e_core.training.losses import discriminator_loss, gradient_penalty, non_saturating
from e4e_core.training.processes import Precision, Processes
from e4e_core.training.projected import FaceCritic
from e4e_core.training.run import Stateful
from e4e_core.training.settings import EncoderTraining
from e4e_core.training.transport import Mover

EMA_IMAGES = 200  # half-life of the average, in pictures: the encoder follows the generator itself, not its past


class LearningDecoder:
    """A generator that learns beside its encoder: to show the inverted photos, and to stay a generator.

    It is trained on the encoder's reconstruction terms and on the non-saturating loss of inversions and samples, by one
    discriminator or by two. Its mapping network stays as it is; the codes it makes are moved to where the w of photos
    are. Half of the photos are shown by their w alone, so that the generator knows W as well as W^k.

    Attributes:
        generator, discriminator: the networks that learn.
        face_critic: the second discriminator, if there is one.
        mover: brings mapped codes to the w of photos.
        average: the generator's moving average, the one that is saved.
    """

    def __init__(
        self,
        config: EncoderTraining,
        generator: Generator,
        discriminator: Discriminator,
        processes: Processes,
        precision: Precision,
    ):
        self.config = config
        self.processes = processes
        self.precision = precision
        self.generator, self.discriminator = generator.requires_grad_(True), discriminator
        generator.style.requires_grad_(False)
        self.average = copy.deepcopy(generator).requires_grad_(False)
        for noise in (module for module in generator.modules() if isinstance(module, NoiseInjection)):
            noise.requires_grad_(noise.weight.item() != 0)  # a generator trained without noise stays without
        rate, betas = config.decoder_rate, (0.0, 0.99)
        synthesis = [parameter for parameter in generator.parameters() if parameter.requires_grad]
        self.g_optimizer = torch.optim.Adam(synthesis, rate, betas)
        self.d_optimizer = torch.optim.Adam(discriminator.parameters(), rate, betas)
        self.face_critic = FaceCritic(config, processes, precision) if config.looks_at_faces else None
        self.mover = Mover(generator)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.g_optimizer, self.d_optimizer, *([self.face_critic.optimizer] if self.config.projected else [])]

    def parts(self) -> dict[str, Stateful]:
        """What a stopped run needs of it."""
        return {
            "g": self.generator,
            "g_ema": self.average,
            "d": self.discriminator,
            "g_optim": self.g_optimizer,
            "d_optim": self.d_optimizer,
            "mover": self.mover,
            **(self.face_critic.parts() if self.face_critic else {}),
        }

    def half_in_w(self, codes: Tensor) -> Tensor:
        """Codes float [n, L, D] of photos, the first half of them without their offsets."""
        half = len(codes) // 2
        return torch.cat([codes[:half, :1].expand(-1, codes.shape[1], -1), codes[half:]])

    def realism(self, fake_maps: list[Tensor], count: int) -> Tensor:
        """What the generator pays for its first `count` pictures, the inversions, and for the rest, its samples.

        Args: fake_maps: the discriminator's features of both.
        """
        fakes = fake_maps[-1]
        judged = [non_saturating(self.discriminator.judge(part)) for part in (fakes[:count], fakes[count:])]
        return torch.stack(judged).mean()

    def criticise(self, real_maps: list[Tensor], fakes: Tensor) -> None:
        """Add the discriminator's gradients for a part of the batch, after those of the encoder and the generator.

        Args:
            real_maps: its features of photos, with their gradients' graph.
            fakes: the photos' inversions and random samples, float [n + s, 3, R, R].
        """
        self.discriminator.requires_grad_(True)
        count = len(real_maps[-1])
        with self.precision.autocast:
            real_logits = self.discriminator.judge(real_maps[-1])
            fake_maps = self.discriminator.features(fakes)[-1].split([count, len(fakes) - count])
            losses = [discriminator_loss(real_logits, self.discriminator.judge(maps)) for maps in fake_maps]
        self.precision.backward(torch.stack(losses).mean() / self.config.accumulate)
        self.discriminator.requires_grad_(False)

    def finish_gradients(self, reals: Tensor, penalize: bool) -> None:
        """Before the optimizers' step: R1 on `reals` float [n, 3, R, R] if it is due, and the mean over processes."""
        if penalize:
            weight = self.config.decoder_r1 / 2 * self.config.r1_every / self.config.accumulate
            self.discriminator.requires_grad_(True)
            for part in reals.chunk(self.config.accumulate):
                self.precision.backward(weight * gradient_penalty(self.discriminator, part))
            self.discriminator.requires_grad_(False)
        self.processes.average_gradients(self.generator.parameters())
        self.processes.average_gradients(self.discriminator.parameters())
        if self.face_critic:
            self.face_critic.average_gradients()

    def follow(self) -> None:
        """After the optimizers' step: the generator's average."""
        blend(self.average, self.generator, 0.5 ** (self.config.batch / EMA_IMAGES))

    def set_rates(self, share: float) -> None:
        """Let everything here learn at this share of its first rate."""
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = share * self.config.decoder_rate
        if self.face_critic:
            self.face_critic.set_rate(share)
