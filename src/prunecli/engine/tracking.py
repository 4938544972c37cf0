"""Where the figures of a training run go: always metrics.jsonl, TensorBoard when asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from prunecli.errors import RecipeError


class MetricsLog:
    """Writes one JSON object per epoch, and TensorBoard event files beside it when asked.

    Args:
        path: The .jsonl file; it is started anew.
        tensorboard: Whether to write event files into a folder called tensorboard.

    Raises:
        RecipeError: TensorBoard is asked for but not installed.
    """

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        self._path = path
        self._file: IO[str] | None = None  # opened with the first row, so a run that cannot start leaves nothing
        self._board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RecipeError("TensorBoard is not installed; pip install 'prunecli[tracking]'") from error
            self._board = SummaryWriter(str(path.parent / "tensorboard"))

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Appends one row; its "epoch" is the step of the TensorBoard curves."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        self._file.write(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in row.items():
                if key != "epoch" and value is not None:
                    self._board.add_scalar(key, value, int(row["epoch"] or 0))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
