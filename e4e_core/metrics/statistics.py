"""A figure with its uncertainty, and the distance of two sets of features."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure: its value, the ends of its 95% bootstrap interval, and on how many pictures it rests.

    All NaN where nothing could be measured (then `count` is 0).
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "–"
        return f"{self.value:.3g} ({self.low:.3g} … {self.high:.3g})"


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], float] = np.mean, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The statistic of one value per picture, with a percentile interval (Efron 1979).

    Args:
        values: float [n]; NaN marks pictures that could not be measured, which are left out.
        statistic: from float [n] to a number.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    replicates = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(resamples)]
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(statistic(values)), float(low), float(high), len(values))


def middle_mean(values: np.ndarray) -> float:
    """Mean of the values [n] from the 1st to the 99th percentile: the filter of Tov et al. 2021, over all pictures."""
    low, high = np.percentile(values, [1, 99])
    return float(values[(values >= low) & (values <= high)].mean())


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features, float64 [n, d] and [m, d] (Heusel et al. 2017).

    Biased upwards for few features: compare only distances of equally many.
    """
    return frechet_of_moments(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


def frechet_of_moments(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|μₐ − μ_b|² + tr(Cₐ + C_b − 2·(Cₐ C_b)^½), means [d] and covariances [d, d] (Dowson & Landau 1982)."""
    # Cₐ C_b has the eigenvalues of the symmetric Cₐ^½ C_b Cₐ^½, for which eigvalsh is exact and never complex.
    eigenvalues, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(eigenvalues.clip(0)) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * common)


def frechet_estimate(a: np.ndarray, b: np.ndarray, resamples: int = 200, seed: int = 0) -> Estimate:
    """`frechet` with an interval: both sets resampled, the interval moved to lie around the distance itself.

    (A resampled set repeats features, which adds the same bias to every replicate.)
    """
    if min(len(a), len(b)) < 2:
        return Estimate(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    replicates = [
        frechet(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))]) for _ in range(resamples)
    ]
    value = frechet(a, b)
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.mean(replicates)
    return Estimate(value, max(0.0, value + float(low)), value + float(high), min(len(a), len(b)))
