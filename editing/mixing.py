"""Mixing two photos: a morph between their codes, and the styles of some layers from the second one."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from errors import DirectionError

# StyleGAN's groups of styles (Karras et al. 2019, section 3.1): coarse are the layers that draw 4² and 8², middle
# those of 16² and 32², fine those from 64² on. StyleGAN2 has one layer at 4² and two at every size after it, so that
# these are the layers pSp (Richardson et al. 2021) calls coarse, medium and fine, whatever the model's resolution.
GROUPS = {"coarse": (0, 3), "middle": (3, 7), "fine": (7, None)}


@dataclass(frozen=True)
class Mix:
    """How much of a second photo is in the first: all numbers from 0, nothing of it, to 1.

    Attributes:
        morph: how far on the straight way from the first photo's codes to the second's.
        coarse, middle, fine: how much further each group of layers goes the rest of that way.
    Raises: DirectionError for other numbers.
    """

    morph: float = 0.0
    coarse: float = 0.0
    middle: float = 0.0
    fine: float = 0.0

    def __post_init__(self):
        for name, amount in asdict(self).items():
            if not 0 <= amount <= 1:  # NaN fails it too
                raise DirectionError(f"The amount of {name} cannot be {amount}; give a number from 0 to 1.")

    def __bool__(self) -> bool:
        """Whether anything of the second photo is taken."""
        return any(asdict(self).values())

    def blend(self, codes: Tensor, other: Tensor) -> Tensor:
        """The mixed codes: on layer l of group g, lerp(codes, other, morph + (1 − morph) · g).

        Args: codes, other: float32 [n, L, D], of the first and the second photo, from the same model.
        Returns: float32 [n, L, D]; exactly `codes` where nothing is taken and exactly `other` where all is.
        Raises: DirectionError for codes of different models.
        """
        if codes.shape != other.shape:
            raise DirectionError("The two photos were opened with different models; open the second one again.")
        weights = torch.full((codes.shape[1], 1), self.morph)  # [L, 1]
        for group, (first, end) in GROUPS.items():
            weights[first:end] += (1 - self.morph) * getattr(self, group)
        return torch.lerp(codes, other.to(codes), weights.clamp(0, 1).to(codes))
