"""Documents of random tokens for the training benchmarks: speed doesn't depend on which tokens they are."""

from __future__ import annotations

import numpy as np

from train.examples import Encoded


def documents(
    longest: int,
    vocabulary: int,
    count: int = 8192,
    median: int = 350,
    sigma: float = 0.8,
    share: float = 0.5,
) -> list[Encoded]:
    """Rows of log-normal lengths, as a chat data set's, up to `longest`; the last `share` is trained."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(median), sigma, count).astype(int), 16, longest)
    rows = [random.integers(3, vocabulary - 100, length).tolist() for length in lengths]
    return [_row(ids, round(len(ids) * share)) for ids in rows]


def _row(ids: list[int], trained: int) -> Encoded:
    return Encoded(ids, [0] * (len(ids) - trained) + [1] * trained, [])
