"""Progress of training: bar, lines, live tables and log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from prunecli.engine.fit import Epoch
from prunecli.engine.tracking import MetricsLog
from prunecli.pipeline.sink import Advance, Sink
from prunecli.report.scores import score_named
from prunecli.report.table import Table


class FitProgress:
    """Turns what `fit` reports into a log, a bar, lines and live tables.

    Args:
        sink: Where lines and tables go.
        advance: Moves the bar, whose total is the batches of all epochs.
        title: Prefix of the lines, or empty.
        epochs: Number of epochs.
        log: Gets a row for each epoch.
        before: Epochs that the log has of earlier trainings of the same stage.
        samples: How many there are in a batch, and what they are called; for their number per second.
    """

    def __init__(
        self,
        sink: Sink,
        advance: Advance,
        title: str,
        epochs: int,
        log: MetricsLog | None = None,
        before: int = 0,
        samples: tuple[int, str] | None = None,
    ) -> None:
        self._sink, self._advance, self._log = sink, advance, log
        self._title, self._epochs, self._before = title, epochs, before
        self._samples = samples
        self._epoch, self._first, self._began = 0, 0, 0.0  # where the present epoch was entered, and when

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Moves the bar."""
        text = f"epoch {epoch}/{self._epochs} loss {loss:.4f}, batch {step}/{steps}{self._speed(epoch, step)}"
        self._advance((epoch - 1) * steps + step, text)

    def _speed(self, epoch: int, step: int) -> str:
        """Samples per second since the first step of the epoch; without validation and the start of an epoch."""
        now = time.perf_counter()
        if epoch != self._epoch:
            self._epoch, self._first, self._began = epoch, step, now
        if self._samples is None or step == self._first:
            return ""
        count, noun = self._samples
        return f", {(step - self._first) * count / max(now - self._began, 1e-9):.0f} {noun}/s"

    def on_epoch(self, epoch: Epoch, tables: Sequence[Table]) -> None:
        """Writes a row and a line, and shows the tables."""
        validation = epoch.validation
        if self._log is not None:
            logged = validation.logged if validation is not None else {}
            self._log.write(
                {
                    "epoch": self._before + epoch.epoch,
                    "lr": epoch.lr,
                    "train_loss": epoch.loss,
                    **{f"validation_{name}": value for name, value in logged.items()},
                    "seconds": round(epoch.seconds, 3),
                },
                [asdict(table) for table in tables],
            )
        score = ""
        if validation is not None:
            text = score_named(validation.score_name).text(validation.score)
            score = f", validation {validation.score_label} {text}"
        title = f"{self._title}, " if self._title else ""
        self._sink.note(
            f"{title}epoch {epoch.epoch}/{self._epochs}: loss {epoch.loss:.4f}{score}, {epoch.seconds:.1f} s"
        )
        for table in tables:
            self._sink.live(table)
