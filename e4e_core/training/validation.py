"""How well an encoder does on pictures it was never shown; measuring changes nothing of the run."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio

from e4e_core.metrics.edits import consistency
from e4e_core.models.e4e import E4E
from e4e_core.training.data import Pictures
from e4e_core.training.generator import AT_ONCE, for_sheet

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
        faces: float [n, 3, h, w] -> embeddings [n, d] that identify a person; None where there are no faces.
        directions: name -> float [L, D], of which LEC is measured.
        unscored: names of distances that have no part in the score, because what measures them learns, too.
    """

    def __init__(
        self,
        pictures: Pictures,
        invert: Callable[[Tensor], Tensor],
        render: Callable[[Tensor], Tensor],
        distances: Callable[[Tensor, Tensor], dict[str, Tensor]],
        faces: Callable[[Tensor], Tensor] | None,
        directions: Mapping[str, Tensor],
        unscored: Collection[str] = (),
    ):
        self.pictures = pictures
        self.invert, self.render, self.distances = invert, render, distances
        self.faces, self.directions, self.unscored = faces, directions, unscored

    def batches(self, model: E4E) -> Iterator[Tensor]:
        """The pictures, float [≤ BATCH, 3, h, w], on the model's device."""
        count = min(len(self.pictures), PICTURES)
        for first in range(0, count, BATCH):
            batch = [self.pictures[i] for i in range(first, min(first + BATCH, count))]
            yield torch.stack(batch).to(model.device)

    def measure(self, model: E4E) -> dict[str, float]:
        """Each distance, the sum `score` of those by fixed measures (lower is better), and what has no part in it.

        `psnr` is in dB. `face` is the distance of dlib's embeddings, below 0.6 for most pairs of pictures of one
        person. `offset` is the mean length of the offsets. `known_w` is the root mean square difference between the
        code w that a picture of the generator's own was made from and the codes found for it. `lec_…`, for each
        direction, is how far the codes of an edited picture, the edit undone, miss the first ones (Tov et al. 2021).
        """
        figures: dict[str, float] = {}

        def add(name: str, value: Tensor, count: int) -> None:
            figures[name] = figures.get(name, 0.0) + value.item() * count

        total, layers = 0, model.num_layers
        random = torch.Generator().manual_seed(0)  # of its own: the run's must not move
        with measuring(model):
            for reals in self.batches(model):
                n, codes = len(reals), self.invert(reals)
                made = self.render(codes)
                distances = self.distances(made, reals)
                for name, value in distances.items():
                    add(name, value, n)
                add("score", sum(value for name, value in distances.items() if name not in self.unscored), n)
                add("psnr", peak_signal_noise_ratio(made.clamp(-1, 1), reals, data_range=2.0, dim=(1, 2, 3)), n)
                if self.faces:
                    add("face", (self.faces(made) - self.faces(reals)).norm(dim=1).mean(), n)
                add("offset", (codes[:, 1:] - codes[:, :1]).norm(dim=-1).mean(), n)
                w = model.map(torch.randn(n, model.latent_dim, generator=random))[:, None].expand(-1, layers, -1)
                add("known_w", F.mse_loss(self.invert(self.render(w)), w), n)
                total += n
            few = self.invert(next(self.batches(model))).cpu() if self.directions else None
            lec = {f"lec_{k}": float(consistency(model, few, d).codes.mean()) for k, d in self.directions.items()}
        figures = {name: value / total for name, value in figures.items()}
        figures["known_w"] = figures["known_w"] ** 0.5
        return figures | lec

    def sheet(self, model: E4E, reals: Tensor, edits: list[Tensor]) -> Tensor:
        """[n, 3, h, w] -> [n · (2 + edits), 3, h, w]: each picture, its inversion, and the inversion's edits.

        Args: edits: directions float [L, D], shown at strength 2.
        Returns: on the CPU, a few rendered at a time, no wider than SHEET_SIDE.
        """
        rows = []
        with measuring(model):
            for few in reals.split(AT_ONCE):
                codes = self.invert(few)
                shown = [few, self.render(codes), *(self.render(codes + 2 * d.to(codes)) for d in edits)]
                rows.append(for_sheet(torch.stack(shown, 1).flatten(0, 1)))
        return torch.cat(rows)
