"""What the classes of a network are called: as the user, the data set, the network or its package says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.data.prompts import class_texts, read_names, read_templates, templates
from prunecli.engine.detectors.index import detector_of
from prunecli.errors import DataError, RecipeError
from prunecli.models.catalog import split_reference
from prunecli.models.scoring import Wordings
from prunecli.pipeline.workspace import Workspace

_UNNAMED = "LABEL_"
"""How transformers calls classes that nobody has named; ultralytics calls them by their numbers."""


@dataclass(frozen=True)
class ClassNames:
    """What classes are called.

    Attributes:
        names: One for each class.
        origin: Where they come from, for people; empty where they are mere numbers.
    """

    names: tuple[str, ...]
    origin: str = ""


def class_names(space: Workspace, count: int, file: str | None) -> ClassNames:
    """The names of the classes of the current network.

    Args:
        space: The workspace, with the network.
        count: How many classes there are.
        file: A file with a name on each line, or a JSON list.

    Raises:
        DataError: The names that were asked for are not as many, or cannot be read.
    """
    name, asked = space.model().name, space.recipe.data.name
    if file is not None:
        names = read_names(Path(file).expanduser(), "class names")
        return ClassNames(_checked(names, count, name, file, "--classes a file with one name for each"), file)
    if asked is not None:
        names = _of_data(space)
        return ClassNames(_checked(names, count, name, asked, "the data set it was trained on with --data"), asked)
    # Where a network has learned a data set, nothing else says what its classes are.
    learned = any(step.data is not None for step in space.model().manifest.history)
    for find in (_recorded, _used) if learned else (_configured, _published):
        found = find(space)
        if found is not None and len(found.names) == count:
            return ClassNames(_distinct(found.names), found.origin)
    return ClassNames(tuple(map(str, range(count))))


def wordings(space: Workspace, file: str | None) -> tuple[Wordings, ClassNames]:
    """Texts of classes for a network that compares images with texts, and prompts for them.

    Raises:
        DataError: A file cannot be read, or the data set has captions.
        RecipeError: There are no classes.
    """
    prompts = space.recipe.data.templates
    if file is not None:
        texts = read_names(Path(file).expanduser(), "class names")
        return Wordings(texts, read_templates(prompts)), ClassNames(texts, file)
    if space.data_name() is None:
        raise RecipeError(
            f"{space.model().name} compares images with texts: say which classes there are, with --classes FILE (a "
            "name on each line) or --data NAME"
        )
    data = space.data()
    if data.task == "retrieval" or not data.class_names:
        raise DataError(f"{data.name} has no classes: give a file with a name on each line, --classes FILE")
    texts = class_texts(data)
    return Wordings(texts, templates(data, prompts)), ClassNames(texts, data.name)


def _checked(names: Sequence[str], count: int, network: str, source: str, remedy: str) -> tuple[str, ...]:
    if len(names) != count:
        raise DataError(f"{network} has {count} classes and {source} names {len(names)}; give {remedy}")
    return _distinct(names)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names that occur twice, as two in ImageNet do, with their number."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))


def _of_data(space: Workspace) -> tuple[str, ...]:
    """Names of the data set's classes, by the numbers that the network has for them; words for WordNet ids."""
    return _spoken(tuple(space.inputs.labels().class_names))


def _spoken(names: tuple[str, ...]) -> tuple[str, ...]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    if names != tuple(info.label_names()):
        return names
    return tuple(info.label_descriptions())


def _recorded(space: Workspace) -> ClassNames | None:
    """Names that the manifest holds itself: those of masks."""
    for step in reversed(space.model().manifest.history):
        if step.data is not None and step.data.labels:
            names = tuple(dict.fromkeys(row.name for row in step.data.labels if row.name is not None))
            return ClassNames(names, f"{step.data.name}, as recorded in the checkpoint")
    return None


def _used(space: Workspace) -> ClassNames | None:
    """Names of the classes of the data set that the checkpoint was last used with, if it is here."""
    try:
        return ClassNames(_of_data(space), f"{space.data().name}, which the checkpoint was last used with")
    except (DataError, OSError) as error:
        space.sink.note(f"class names unknown: {error}")
        return None


def _configured(space: Workspace) -> ClassNames | None:
    """Names that the network carries: in a configuration of transformers, or in a network of ultralytics."""
    model: Any = space.model().model
    named = getattr(getattr(model, "config", None), "id2label", None) or getattr(model, "names", None)
    if not isinstance(named, Mapping) or sorted(named) != list(range(len(named))):
        return None
    names = tuple(str(named[number]) for number in range(len(named)))
    unnamed = all(name in (str(number), f"{_UNNAMED}{number}") for number, name in enumerate(names))
    return None if unnamed else ClassNames(names, "the network itself")


def _published(space: Workspace) -> ClassNames | None:
    """Names of the classes of published weights of the architecture, which others with as many classes mostly share."""
    loaded = space.model()
    source, _, name = loaded.manifest.architecture.ref.partition(":")
    find = _PUBLISHED.get(source)
    return find(split_reference(f"{source}:{name}")[1], loaded.model) if find is not None else None


def _of_timm(name: str, model: Any) -> ClassNames | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    return ClassNames(tuple(ImageNetInfo(subset).label_descriptions()), f"{subset}, which has as many classes")


def _of_torchvision(name: str, model: Any) -> ClassNames | None:
    from torchvision.models import get_model_weights

    categories = get_model_weights(name)["DEFAULT"].meta.get("categories")
    if categories is None:
        return None
    # Detectors count the background, which is no kind of object.
    names = tuple(categories[1:] if detector_of(model) is not None else categories)
    return ClassNames(names, "torchvision's weights of this architecture, which have as many classes")


_PUBLISHED: Mapping[str, Callable[[str, Any], ClassNames | None]] = {"timm": _of_timm, "torchvision": _of_torchvision}
