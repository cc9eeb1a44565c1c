"""The latent critic at work: it keeps an encoder's codes near those of the mapping network."""

import torch
from torch import Tensor

from e4e_core.models.discriminators import LatentDiscriminator
from e4e_core.training.losses import discriminator_loss, gradient_penalty, non_saturating
from e4e_core.training.processes import Processes
from e4e_core.training.run import Stateful
from e4e_core.training.settings import EncoderTraining


class CodePool:
    """Codes the encoder gave in the past; half of each answer is drawn from them (Shrivastava et al. 2017)."""

    def __init__(self, size: int):
        self.size = size
        self.codes: list[Tensor] = []

    def exchange(self, codes: Tensor) -> Tensor:
        """Takes float [n, d] and returns as many: new ones, or past ones whose place a new one takes."""
        answer = []
        for code in codes.detach():
            if len(self.codes) < self.size:
                self.codes.append(code)
                answer.append(code)
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                answer.append(self.codes[place].to(code.device))
                self.codes[place] = code
            else:
                answer.append(code)
        return torch.stack(answer)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"codes": self.codes}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.codes = list(state["codes"])


class RecentCodes:
    """The last `size` w that an encoder gave: what a learning generator's mapping network should give, too."""

    def __init__(self, size: int):
        self.size = size
        self.codes: Tensor | None = None  # float32 [up to size, D]

    def add(self, codes: Tensor) -> None:
        """Takes float [n, D]; the oldest ones make room."""
        codes = codes.detach()
        self.codes = codes if self.codes is None else torch.cat([self.codes.to(codes.device), codes])[-self.size :]

    def state_dict(self) -> dict[str, Tensor | None]:
        return {"codes": self.codes}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        self.codes = state["codes"]


class LatentCritic:
    """The latent discriminator, its optimizer and its pool of past codes (Tov et al. 2021, section 4.1)."""

    def __init__(self, config: EncoderTraining, latent_dim: int, processes: Processes):
        self.config = config
        self.processes = processes
        self.network = LatentDiscriminator(latent_dim).to(processes.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.discriminator_rate)
        self.pool = CodePool(config.pool)

    def parts(self) -> dict[str, Stateful]:
        """What a stopped run needs of it."""
        return {"latent_critic": self.network, "critic_optimizer": self.optimizer, "pool": self.pool}

    def doubt(self, codes: Tensor) -> Tensor:
        """What an encoder pays for codes float [n, k, D] that are told from mapped ones."""
        return non_saturating(self.network(codes.flatten(0, 1)))

    def step(self, real: Tensor, fake: Tensor, penalize: bool) -> None:
        """Learn to tell mapped codes float [n · k, D] of all processes from this process's inversions [n', k, D]."""
        fake = self.processes.share(self.pool.exchange(self.processes.gather(fake).flatten(0, 1)))
        real = self.processes.share(real)
        loss = discriminator_loss(self.network(real), self.network(fake))
        if penalize:
            loss = loss + self.config.r1 / 2 * self.config.r1_every * gradient_penalty(self.network, real)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average_gradients(self.network.parameters())
        self.optimizer.step()
