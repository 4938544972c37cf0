"""Writes a run with a tracker in two parts and reads it back with the tracker's own library.

A process of its own: trackers read their environment when they are imported. It prints what was read, and trackers
have to print nothing.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunecli.engine.trackers.base import TrackedRun
from prunecli.engine.trackers.index import make_trackers
from prunecli.engine.tracking import MetricsLog, Tracking

_BLOCK, _FULL, _LAST = 32768, 1, 4
SETTINGS = {"command": "prune train x", "train.lr": 0.1, "data.name": "digits"}


class Crash(Exception):
    """The end of the first part."""


def write(name: str, folder: Path) -> None:
    """Epochs 1 and 2, a crash, and then, from a state after the first epoch, 2 again and 3."""
    for first, last, continued in ((1, 2, False), (2, 3, True)):
        run = TrackedRun("dense", folder, SETTINGS)
        tracking = Tracking(make_trackers([name]), run, folder / "known.json", fail)
        try:
            with MetricsLog(folder / "dense.metrics.jsonl", tracking=tracking, continued=continued, warn=fail) as log:
                for epoch in range(first, last + 1):
                    log.write({"epoch": epoch, "train_loss": 1.0 / epoch, "lr": None}, [{"title": "a table"}])
                if not continued:
                    raise Crash
        except Crash:
            pass


def fail(text: str) -> None:
    """Nothing may be warned about."""
    raise AssertionError(text)


def read_tensorboard(folder: Path) -> dict[str, Any]:
    """Points and settings in event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "dense"))
    events.Reload()
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    points = [(event.step, event.value) for event in events.Scalars("train_loss")]
    return {"runs": 1, "names": events.Tags()["scalars"], "points": points, "settings": json.loads(text[4:-4])}


def read_trackio(folder: Path) -> dict[str, Any]:
    """Points and settings in trackio's database."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(trackio.Api().runs("prune"))
    logs = SQLiteStorage.get_logs("prune", runs[0].name)
    kept = {key: value for key, value in runs[0].config.items() if not key.startswith("_")}
    names = sorted({key for row in logs for key in row} - {"step", "timestamp"})
    points = [(row["step"], row["train_loss"]) for row in logs]
    return {"runs": len(runs), "names": names, "points": points, "settings": kept}


def read_mlflow(folder: Path) -> dict[str, Any]:
    """Points and settings in MLflow's database."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("prune")
    runs = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(runs[0].info.run_id, "train_loss")
    return {
        "runs": len(runs),
        "names": list(runs[0].data.metrics),
        "points": [(metric.step, metric.value) for metric in history],
        "settings": runs[0].data.params,
        "ended": runs[0].info.status,
    }


def _leveldb_records(content: bytes, place: int) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it, in blocks of 32 KiB, after a header of `place` bytes."""
    whole, at = b"", 0
    while at + 7 <= len(content):
        rest = _BLOCK - (at + place) % _BLOCK
        if rest < 7:
            at += rest
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (_FULL, _LAST):
            yield whole
            whole = b""


def read_wandb(folder: Path) -> dict[str, Any]:
    """Points and settings in wandb's files, one for each part of a run.

    They are written by a process of wandb's own, which is complete only when it has ended.
    """
    import wandb

    wandb.teardown()
    from wandb.proto.wandb_internal_pb2 import Record

    numbers, settings, points, names, codes = set(), {}, [], set(), []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        for data in _leveldb_records(file.read_bytes()[7:], 7):
            record = Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                numbers.add(record.run.run_id)
                settings |= {entry.key: json.loads(entry.value_json) for entry in record.run.config.update}
            elif kind == "history":
                row = {e.key or ".".join(e.nested_key): json.loads(e.value_json) for e in record.history.item}
                names |= {key for key in row if not key.startswith("_")}
                points.append((row["_step"], row["train_loss"]))
            elif kind == "exit":
                codes.append(record.exit.exit_code)
    kept = {key: value for key, value in settings.items() if key != "_wandb"}
    return {"runs": len(numbers), "names": sorted(names), "points": points, "settings": kept, "ended": codes}


READERS = {"tensorboard": read_tensorboard, "trackio": read_trackio, "mlflow": read_mlflow, "wandb": read_wandb}

if __name__ == "__main__":
    tracker, place = sys.argv[1], Path(sys.argv[2])
    write(tracker, place)
    print(json.dumps(READERS[tracker](place)))
