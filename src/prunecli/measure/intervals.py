"""95 % intervals of accuracies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy_interval(percent: float, images: int) -> tuple[float, float]:
    """Wilson's interval of a percentage that was found on so many images.

    Args:
        percent: Images that were right, of 100.
        images: How many were looked at, at least one.
    """
    from scipy.stats import norm

    # scipy's own takes whole numbers of images, and recalls of captions are fractions of them.
    share, z = percent / 100, float(norm.ppf(0.975))
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    reach = z * (share * (1 - share) / images + z * z / (4 * images * images)) ** 0.5 / (1 + z * z / images)
    return 100 * max(middle - reach, 0.0), 100 * min(middle + reach, 1.0)


def mean_recall_interval(hits: Sequence[int], images: Sequence[int]) -> tuple[float, float]:
    """Interval of the mean over classes of the share that was right, in percent.

    The variance of a class is that of Jeffreys' posterior, Beta(hits + 1/2, misses + 1/2), so that a class without
    mistakes is not taken for one that cannot have any.

    Args:
        hits: Images of each class that were right.
        images: Images of each class; classes without any count nowhere.
    """
    from scipy.stats import beta, norm

    counts = np.array([(h, n) for h, n in zip(hits, images, strict=True) if n])
    right, wrong = counts[:, 0], counts[:, 1] - counts[:, 0]
    mean = (right / counts[:, 1]).mean()
    reach = norm.ppf(0.975) * np.sqrt(beta.var(right + 0.5, wrong + 0.5).sum()) / len(counts)
    return 100 * max(float(mean - reach), 0.0), 100 * min(float(mean + reach), 1.0)
