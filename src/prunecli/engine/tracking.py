"""The log of a training run: always metrics.jsonl, and TensorBoard on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from prunecli.checkpoint.durable import write_text_atomically
from prunecli.errors import RecipeError, ResourceError


class MetricsLog:
    """Writes one JSON object per epoch, and TensorBoard event files beside it on request.

    Args:
        path: The .jsonl file; a file that exists is replaced.
        tensorboard: Whether to write event files into a folder called tensorboard.
        continued: Whether to keep rows of earlier epochs.
        warn: Called when a row cannot be written; a full disk costs the log, not the training.

    Raises:
        RecipeError: TensorBoard is asked for but not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        tensorboard: bool = False,
        continued: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._path, self._continued, self._warn, self._failed = path, continued, warn, False
        self._file: IO[str] | None = None  # opened with the first row, so a run that cannot start leaves nothing
        self._writer: Any = None
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RecipeError("TensorBoard is not installed; pip install 'prunecli[tracking]'") from error
            self._writer = SummaryWriter

    def write(self, row: Mapping[str, float | int | None], tables: Sequence[Mapping[str, Any]] = ()) -> None:
        """Appends one row; its "epoch" is the step of the TensorBoard curves.

        Args:
            row: Numbers by name; those that are None are left out.
            tables: What training hooks have to show, as plain data.
        """
        if self._failed:
            return
        try:
            if self._file is None:
                self._file = self._open(int(row["epoch"] or 0))
            entry: dict[str, Any] = {key: value for key, value in row.items() if value is not None}
            self._file.write(json.dumps(entry | ({"tables": list(tables)} if tables else {})) + "\n")
            self._file.flush()
            if self._board is not None:
                for key, value in row.items():
                    if key != "epoch" and value is not None:
                        self._board.add_scalar(key, value, int(row["epoch"] or 0))
        except (OSError, ResourceError) as error:
            self._failed = True
            cause = getattr(error, "strerror", None) or error
            self._warn(f"{self._path}: could not be written ({cause}); training goes on without it")

    def _open(self, epoch: int) -> IO[str]:
        kept = _rows_before(self._path, epoch) if self._continued else ""
        if self._writer is not None:
            self._board = self._writer(str(self._path.parent / "tensorboard"), purge_step=epoch)
        write_text_atomically(self._path, kept)
        return self._path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be flushed has been warned about
                self._file.close()
        if self._board is not None:
            with suppress(OSError):
                self._board.close()


def _rows_before(path: Path, epoch: int) -> str:
    """The whole lines of earlier epochs; a line that a crash cut off is left out."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and line.endswith("\n") and row.get("epoch", epoch) < epoch:
                kept.append(line)
    return "".join(kept)
