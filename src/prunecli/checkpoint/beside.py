"""What programs of training keep beside a network, told by its name: losses, metrics, averages, teachers."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*")

_AVERAGES = frozenset({"ema", "ewma", "swa", "avg", "average", "averaged", "averaging", "polyak", "shadow"})
_TEACHERS = frozenset({"teacher", "teachers"})
_LOSSES = frozenset({"criterion", "criteria", "crit", "loss", "losses", "objective"})
_METRICS = frozenset(
    {
        *("metric", "metrics", "acc", "acc1", "acc5", "accuracy", "auc", "auroc", "f1", "precision", "recall", "score"),
        *("top1", "top5", "iou", "miou", "dice", "jaccard", "confmat", "confusion", "matrix", "mse", "rmse", "mae"),
        *("psnr", "ssim", "lpips", "fid", "perplexity", "bleu", "rouge", "wer", "cer", "kappa"),
    }
)
_PHASES = frozenset({"train", "training", "val", "valid", "validation", "test", "eval"})
_COUNTS = frozenset(
    {"queue", "ptr", "step", "steps", "epoch", "counter", "count", "initted", "decay", "updates", "num"}
)
_WEIGHTED = frozenset({"class", "classes", "pos", "sample", "label", "weight", "weights"})
"""Words of which names such as `class_weights` and `pos_weight` consist."""
_NORMALISATION = frozenset({"mean", "std", "normalize", "normalizer", "normalise", "normaliser", "normalization"})
_IMAGES = frozenset({"image", "images", "img", "pixel", "pixels", "input", "inputs", "data"})


def words(part: str) -> frozenset[str]:
    """The words in a part of a name: "ema_net" and "emaNet" are ema and net."""
    return frozenset(word.lower() for word in _WORD.findall(part))


def is_average(part: str) -> bool:
    """Whether a part of a name says that weights are an average over the steps of training."""
    return not words(part).isdisjoint(_AVERAGES)


def is_teacher(part: str) -> bool:
    """Whether a part of a name says that a network is one that another learns from."""
    return not words(part).isdisjoint(_TEACHERS)


def is_normalisation(part: str) -> bool:
    """Whether a part of a name says that it holds what pixels are normalised with."""
    found = words(part)
    return not found.isdisjoint(_NORMALISATION) and found <= _NORMALISATION | _IMAGES


def is_beside(part: str, *, leaf: bool) -> bool:
    """Whether the first part of a name says that it is no part of a network: a loss, a metric, a counter.

    Args:
        part: For instance "criterion" or "train_acc".
        leaf: Whether it is the name of a tensor, and not of a module.
    """
    found = words(part)
    if not found:
        return False
    if not found.isdisjoint(_LOSSES) or is_normalisation(part):
        return True
    if not found.isdisjoint(_METRICS) and found <= _METRICS | _PHASES:
        return True
    return leaf and (found <= _COUNTS or (len(found) > 1 and found <= _WEIGHTED))
