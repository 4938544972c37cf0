"""95 % intervals of accuracies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy_interval(percent: float, images: int) -> tuple[float, float]:
    """Wilson's interval of a percentage measured on a number of images.

    Args:
        percent: Share of correct images, in percent.
        images: Number of images, at least one.
    """
    from scipy.stats import norm

    # scipy's implementation needs a whole number of correct images, which recall over captions is not.
    share, z = percent / 100, float(norm.ppf(0.975))
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half_width = z * (share * (1 - share) / images + z * z / (4 * images * images)) ** 0.5 / (1 + z * z / images)
    return 100 * max(middle - half_width, 0.0), 100 * min(middle + half_width, 1.0)


def mean_recall_interval(hits: Sequence[int], images: Sequence[int]) -> tuple[float, float]:
    """Interval of the mean over classes of their recall, in percent.

    The variance of a class is that of Jeffreys' posterior, Beta(hits + 1/2, misses + 1/2), so that a class without
    mistakes still has a variance.

    Args:
        hits: Correct images of each class.
        images: Images of each class; classes without images are ignored.
    """
    from scipy.stats import beta, norm

    counts = np.array([(h, n) for h, n in zip(hits, images, strict=True) if n])
    correct, wrong = counts[:, 0], counts[:, 1] - counts[:, 0]
    mean = (correct / counts[:, 1]).mean()
    half_width = norm.ppf(0.975) * np.sqrt(beta.var(correct + 0.5, wrong + 0.5).sum()) / len(counts)
    return 100 * max(float(mean - half_width), 0.0), 100 * min(float(mean + half_width), 1.0)


def paired_drop_interval(lost: int, gained: int, images: int) -> tuple[float, float]:
    """Interval of the difference of two accuracies on the same images, in percentage points (Agresti and Min, 2005).

    Args:
        lost: Images that the first network has right and the second wrong.
        gained: Images that the second has right and the first wrong.
        images: All of them, at least one.
    """
    from scipy.stats import norm

    count, first, second = images + 2, lost + 0.5, gained + 0.5
    middle = (first - second) / count
    half_width = float(norm.ppf(0.975)) * max(first + second - (first - second) ** 2 / count, 0.0) ** 0.5 / count
    return 100 * max(middle - half_width, -1.0), 100 * min(middle + half_width, 1.0)
