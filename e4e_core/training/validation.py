"""How well an encoder does on pictures it was never shown; measuring changes nothing of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures
from e4e_core.training.generator import AT_ONCE

PICTURES = 256  # at most, held out, for each measurement
BATCH = 16


@contextmanager
def measuring(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and without compilation, which another batch size would start again."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train(training)


class Validation:
    """Figures of a model on held-out pictures and on codes of which the truth is known.

    Args:
        pictures: held out, of the generator's size.
        invert: float [n, 3, h, w] of that size -> codes float [n, L, D].
        render: codes -> float [n, 3, h, w].
        distances: (images, targets) -> named distances, weighted as in the training.
    """

    def __init__(
        self,
        pictures: Pictures,
        invert: Callable[[Tensor], Tensor],
        render: Callable[[Tensor], Tensor],
        distances: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ):
        self.pictures = pictures
        self.invert, self.render, self.distances = invert, render, distances

    def batches(self, model: E4E) -> Iterator[Tensor]:
        """The pictures, float [≤ BATCH, 3, h, w], on the model's device."""
        count = min(len(self.pictures), PICTURES)
        for first in range(0, count, BATCH):
            batch = [self.pictures[i] for i in range(first, min(first + BATCH, count))]
            yield torch.stack(batch).to(model.device)

    def measure(self, model: E4E) -> dict[str, float]:
        """Each distance, their sum `score` (lower is better), and two facts about the codes.

        `offset` is the mean length of the offsets. `known_w` is the root mean square difference between the code w
        that a picture of the generator's own was made from and the codes found for it.
        """
        figures: dict[str, float] = {}

        def add(name: str, value: Tensor, count: int) -> None:
            figures[name] = figures.get(name, 0.0) + value.item() * count

        total, layers = 0, model.num_layers
        random = torch.Generator().manual_seed(0)  # of its own: the run's must not move
        with measuring(model):
            for reals in self.batches(model):
                n, codes = len(reals), self.invert(reals)
                distances = self.distances(self.render(codes), reals)
                for name, value in distances.items():
                    add(name, value, n)
                add("score", sum(distances.values()), n)
                add("offset", (codes[:, 1:] - codes[:, :1]).norm(dim=-1).mean(), n)
                w = model.map(torch.randn(n, model.latent_dim, generator=random))[:, None].expand(-1, layers, -1)
                add("known_w", F.mse_loss(self.invert(self.render(w)), w), n)
                total += n
        figures = {name: value / total for name, value in figures.items()}
        figures["known_w"] = figures["known_w"] ** 0.5
        return figures

    def sheet(self, model: E4E, reals: Tensor, edits: list[Tensor]) -> Tensor:
        """[n, 3, h, w] -> [n · (2 + edits), 3, h, w]: each picture, its inversion, and the inversion's edits.

        Args: edits: directions float [L, D], shown at strength 2.
        Returns: on the CPU, a few rendered at a time.
        """
        rows = []
        with measuring(model):
            for few in reals.split(AT_ONCE):
                codes = self.invert(few)
                shown = [few, self.render(codes), *(self.render(codes + 2 * d.to(codes)) for d in edits)]
                rows.append(torch.stack(shown, 1).flatten(0, 1).cpu())
        return torch.cat(rows)
