"""Linear probe: a one-layer classifier on a network's frozen features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunecli.data.splits import Split
from prunecli.engine.resources import resource_errors
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import DataError, ModelError
from prunecli.inputs import cast_inputs
from prunecli.pipeline.workspace import Workspace

_STRENGTH = 1.0
_ITERATIONS = 1000


def linear_probe(space: Workspace, split: Split) -> dict[str, Any]:
    """Fits scikit-learn's logistic regression on features of the training images, and evaluates it on `split`.

    Features are scaled to mean zero and deviation one over the training images; C is 1. Only features are kept, one
    vector for each image.

    Returns:
        Accuracies by their names in a report.

    Raises:
        DataError: There are no training images, or none of them could be read, or they have no classes to tell apart.
        ModelError: The network gives no features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    training, task = space.data().training_split(), space.judging.task()
    if not isinstance(task, Classification) or len(np.unique(training.labels)) < 2:
        raise DataError(f"{space.data().name}: a linear probe needs training images of two classes or more")
    features, labels = _features(space, training, "features")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=_ITERATIONS))
    probe.fit(features, labels)
    tested, test_labels = _features(space, split, "linear probe")
    scores = torch.full((len(test_labels), space.data().num_classes), -torch.inf)
    scores[:, torch.from_numpy(probe.classes_)] = torch.from_numpy(probe.predict_log_proba(tested)).float()
    meter = task.meter(torch.device("cpu"))
    meter.update(scores.clamp_min(-1e4), torch.from_numpy(test_labels))
    return task.named(meter.compute())


def _image_features(model: nn.Module, images: Tensor) -> Tensor:
    """Features of images: those before the classifier, or those of the image tower; shape (N, D).

    Raises:
        ModelError: It is neither timm's nor has an image tower.
    """
    network: Any = model
    if hasattr(network, "encode_image"):
        return network.encode_image(images)  # type: ignore[no-any-return]
    if hasattr(network, "forward_features") and hasattr(network, "forward_head"):
        return network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[no-any-return]
    raise ModelError(
        f"a {type(model).__name__} does not give features apart from scores; a linear probe takes networks of timm and "
        "open_clip"
    )


def _features(space: Workspace, split: Split, title: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    model = space.model().model.to(space.device).eval()
    features: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.int64]] = []
    done = 0
    with (
        resource_errors(space.recipe.data.batch_size),
        space.sink.progress(f"{title} {space.data().name}", len(split.labels)) as advance,
        torch.inference_mode(),
    ):
        for batch, classes in space.inputs.batches(split):
            features.append(_image_features(model, cast_inputs(batch, space.device)).double().cpu().numpy())
            labels.append(classes.numpy())
            done += len(classes)
            advance(done, f"{done} images")
    if not done:
        raise DataError(f"{space.data().name}: none of its images could be read")
    return np.concatenate(features), np.concatenate(labels)
