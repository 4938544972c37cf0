"""Which channels reach an output: those that no output depends on are left alone."""

from __future__ import annotations

from collections.abc import Sequence

from prunecli.surgery.axes import Axis, leaves
from prunecli.surgery.tracing.labels import Followed, Label, Record

_VIEWS = ("slice", "select", "view", "narrow", "transpose", "permute", "unsqueeze", "squeeze", "split", "unbind", "t",
          "split_with_sizes", "chunk", "diagonal", "expand", "as_strided", "alias", "detach")  # fmt: skip


def axes_that_count(followed: Followed) -> set[Axis]:
    """Axes of all tensors that an output of the network, in evaluation or in training mode, is computed from."""
    axes: set[Axis] = set()
    for records in (followed.records, followed.training or ()):
        for label in _needed(records, followed.results):
            axes.update(leaf for term in label.dims for leaf in leaves(term))
    return axes


def _needed(records: Sequence[Record], results: Sequence[Label]) -> set[Label]:
    needed = set(results)
    views = {label for record in records if record.operator in _VIEWS for label in record.outputs}
    for record in reversed(records):
        written = record.outputs or record.inputs[:1]
        # What is written into a view arrives in the tensor behind it.
        into_view = record.operator.endswith("_") and any(label in views for label in written)
        if into_view or not record.outputs or any(label in needed for label in record.outputs):
            needed.update(record.inputs)
            needed.update(record.outputs)
    return needed
