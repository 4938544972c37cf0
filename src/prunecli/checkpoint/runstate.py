"""Saved states of an unfinished stage: written atomically, checked by hash, only the newest few kept."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from prunecli import ranks
from prunecli.checkpoint.durable import crash_point, current_umask, sync, sync_folder
from prunecli.checkpoint.io import file_sha256
from prunecli.checkpoint.torch_files import read_torch_file
from prunecli.errors import Interrupted, ModelError, RecipeError, ResourceError

_STATE_SCHEMA = "prunecli.state/1"
State = dict[str, Any]
"""Numbers, texts, tensors, and lists, tuples and dictionaries of them."""

_PREFIX, _STAGED, _DAMAGED = "state-", ".staged-", "damaged-"
_EXTRA = "beside"
"""Key of the extra state; its text is part of the format."""
_TENSORS, _MANIFEST = "state.pt", "manifest.json"
_MAX_MANIFEST = 10_000_000
_SHARE = 20
"""At most about one part in this many of the running time is spent on saving."""
_SIGNALS = {1: "SIGHUP", 2: "Ctrl-C", 15: "SIGTERM"}


class _StateManifest(BaseModel):
    """What a saved state belongs to, and the hash of its content."""

    model_config = ConfigDict(extra="forbid")

    schema_name: str = Field(_STATE_SCHEMA, alias="schema", pattern=f"^{_STATE_SCHEMA}$")
    identity: dict[str, JsonValue]
    environment: dict[str, JsonValue]
    position: str = Field(alias="place")
    sha256: str


@dataclass(frozen=True)
class RunIdentity:
    """What identifies a run, so that no other run resumes from its states.

    Attributes:
        settings: Everything that decides what is computed; a state saved with other settings is refused.
        environment: Versions, device and threads. A state from another environment is used with a warning, because
            the last bits of the result may differ.
    """

    settings: Mapping[str, JsonValue]
    environment: Mapping[str, JsonValue]


@dataclass(frozen=True)
class ExtraState:
    """State of a run that the training loop does not hold itself.

    Attributes:
        get: Returns it as plain data.
        restore: Restores it from that data.
    """

    get: Callable[[], Any]
    restore: Callable[[Any], None]


class StateStore:
    """The saved states of one stage, in a folder of their own.

    Of several processes that work together rank 0 writes for all of them, who read what it chose.

    A state is staged under another name and synced, its manifest is written last, and then it is renamed, so anything
    called `state-...` was complete. A damaged state is set aside as `damaged-state-...` and the previous one is used.

    Args:
        folder: Where states are saved; it exists and no other process writes to it.
        owner: The run that the states belong to.
        keep: How many states to keep.
        every: Seconds between states; with 0, `due` is always true.
        warn: Called with what was set aside, what differs, and when a state could not be saved.
        note: Called with the state that the run is resumed from.
        command: The command that resumes the run, for the message after an interrupt.
        in_run: Whether finished stages allow resuming even without a saved state.
        extra: State to save and restore along with what `save` is given.
    """

    def __init__(
        self,
        folder: Path,
        owner: RunIdentity,
        *,
        keep: int = 2,
        every: float = 60.0,
        warn: Callable[[str], None] = lambda text: None,
        note: Callable[[str], None] = lambda text: None,
        command: str = "",
        in_run: bool = False,
        extra: ExtraState | None = None,
    ) -> None:
        self.folder = folder
        self._owner, self._keep, self._every, self._warn, self._command = owner, keep, every, warn, command
        self._note = note
        self._last = time.monotonic()
        self._took = 0.0
        self._failing = False
        self._in_run = in_run
        self._extra = extra
        for leftover in folder.glob(f"{_STAGED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def exists(self) -> bool:
        """Whether there is any state, damaged ones included."""
        return bool(self._folders() or self._set_aside())

    def load(self) -> State | None:
        """Returns the newest intact state; None if none was ever saved.

        Raises:
            RecipeError: It belongs to another run (the message names a setting that differs), or all are damaged.
            ResourceError: The disk or the memory failed.
        """
        found: list[State] = []
        chosen = ranks.by_first(lambda: self._newest(found))
        if chosen is None:
            return None
        folder, sha256 = chosen
        try:
            content = found[0] if found else _read_content(folder, sha256)
        except (OSError, _Damaged) as error:
            raise ResourceError(f"{folder}: rank 0 can read it, and this process cannot ({error})") from error
        extra = content.pop(_EXTRA, None)
        if self._extra is not None and extra is not None:
            self._extra.restore(extra)
        self._last = time.monotonic()
        return content

    def _newest(self, found: list[State]) -> tuple[Path, str] | None:
        """The newest intact state and its hash; its content is appended to `found`."""
        for folder in reversed(self._folders()):
            try:
                manifest = _read_manifest(folder)
                self._compare(folder, manifest)
                found.append(_read_content(folder, manifest.sha256))
            except _Damaged as error:
                aside = folder.with_name(f"{_DAMAGED}{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self._warn(f"{folder} is damaged ({error}); set aside as {aside.name}; using the previous state")
                continue
            except OSError as error:
                raise ResourceError(f"{folder}: cannot be read ({error.strerror or error}); try again") from error
            self._note(f"resuming from {folder}: {manifest.position}")
            return folder, manifest.sha256
        damaged = len(self._set_aside())
        if damaged:
            states = "state is" if damaged == 1 else f"{damaged} states are"
            raise RecipeError(f"{self.folder}: its {states} damaged; start again with --force")
        return None

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._last >= max(self._every, _SHARE * self._took if self._every else 0)

    def save(self, content: State, position: str) -> bool:
        """Saves a state; earlier ones are kept until it is on the disk.

        Args:
            content: The state.
            position: How far the run has come, for instance "epoch 3, batch 20".

        Returns:
            Whether it was saved. A full disk leads to a warning and does not end the run.
        """
        if self._extra is not None:
            content = content | {_EXTRA: self._extra.get()}
        return ranks.by_first(lambda: self._saved(content, position))

    def _saved(self, content: State, position: str) -> bool:
        start = time.monotonic()
        try:
            self._write(content, position)
        except (OSError, RuntimeError, pickle.PickleError) as error:  # torch.save raises RuntimeError on a failed write
            cause = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            if "inline_container" in cause:  # torch counts the bytes written there
                cause = "the disk is full or failing"
            if not self._failing:  # warn once, until saving works again
                self._warn(f"{self.folder}: the state at {position} could not be saved ({cause}); the run continues")
            self._failing = True
            return False
        finally:
            self._last = time.monotonic()
            self._took = self._last - start
        self._failing = False
        return True

    def interrupted(self, signal: int, content: State, position: str) -> Interrupted:
        """Saves a state because of a signal, and returns the error that says how to resume."""
        saved = self.save(content, position)
        return self.aborted(signal, f" at {position}" if saved else f" at {position}, which could not be saved")

    def aborted(self, signal: int, position: str = "") -> Interrupted:
        """Returns the error that says how to resume after a signal, without saving anything."""
        name = _SIGNALS.get(signal, f"signal {signal}")
        folders = self._folders()
        if not folders and not self._in_run:
            return Interrupted(f"stopped by {name}{position}; no state was saved", signal)
        saved = f"the last state is {folders[-1]}" if folders else "the stages before this one are saved"
        return Interrupted(f"stopped by {name}{position}; {saved}. Resume with: {self._command}", signal)

    def discard(self) -> None:
        """Removes all states, damaged ones included: the stage is finished or starts again."""
        ranks.by_first(self._remove_all)

    def _remove_all(self) -> None:
        for folder in (*self._set_aside(), *self._folders()):  # the newest last
            _remove(folder)
            crash_point("state:discarding")

    def _write(self, content: State, position: str) -> None:
        folders = self._folders()
        number = int(folders[-1].name.removeprefix(_PREFIX)) + 1 if folders else 1
        crash_point("state:begin")
        self.folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=self.folder, prefix=_STAGED))
        try:
            staged.chmod(0o777 & ~current_umask())
            with (staged / _TENSORS).open("wb") as file:
                torch.save(content, file)
            # Make sure that it can be read back; mapped, so that only the outline is read.
            torch.load(staged / _TENSORS, map_location="cpu", weights_only=True, mmap=True)
            sync(staged / _TENSORS)
            crash_point("state:tensors")
            manifest = _StateManifest(
                schema=_STATE_SCHEMA,
                identity=dict(self._owner.settings),
                environment=dict(self._owner.environment),
                place=position,
                sha256=file_sha256(staged / _TENSORS),
            )
            (staged / _MANIFEST).write_text(manifest.model_dump_json(by_alias=True), encoding="utf-8")
            sync(staged / _MANIFEST)
            sync_folder(staged)
            crash_point("state:manifest")
            staged.rename(self.folder / f"{_PREFIX}{number:08d}")
            sync_folder(self.folder)
            crash_point("state:renamed")
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        for old in folders[: max(0, len(folders) + 1 - self._keep)]:
            _remove(old)
        crash_point("state:pruned")

    def _set_aside(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_DAMAGED}*"))

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit())

    def _compare(self, folder: Path, manifest: _StateManifest) -> None:
        settings = dict(self._owner.settings)
        for key in sorted(settings.keys() | manifest.identity.keys()):
            now, saved = settings.get(key), manifest.identity.get(key)
            if now != saved:
                raise RecipeError(
                    f"{folder}: was saved with {key} {_short(saved)}, not {_short(now)}; use the same settings with "
                    "--resume, or start again with --force"
                )
        environment = dict(self._owner.environment)
        for key in sorted(environment.keys() | manifest.environment.keys()):
            now, saved = environment.get(key), manifest.environment.get(key)
            if now != saved:
                self._warn(f"{folder}: was saved with {key} {saved}, now {now}; the last bits may differ")


class _Damaged(Exception):
    """A state is damaged; the text says why."""


def _read_manifest(folder: Path) -> _StateManifest:
    path = folder / _MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise _Damaged(f"{_MANIFEST} is over {_MAX_MANIFEST:,} bytes")
        return _StateManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise _Damaged(f"{_MANIFEST} is missing") from error
    except ValidationError as error:
        raise _Damaged(f"{_MANIFEST}: {error.errors(include_input=False)[0]['msg']}") from error


def _read_content(folder: Path, sha256: str) -> State:
    path = folder / _TENSORS
    try:
        if file_sha256(path) != sha256:
            raise _Damaged(f"the sha256 of {_TENSORS} is not that in the manifest")
        with path.open("rb") as file:
            content = read_torch_file(file, path, legacy=False)
    except FileNotFoundError as error:
        raise _Damaged(f"{_TENSORS} is missing") from error
    except ModelError as error:  # the hash is right, so the file was forged
        raise _Damaged(str(error)) from error
    if not isinstance(content, dict):
        raise _Damaged(f"{_TENSORS} does not hold a state")
    return content


def _remove(folder: Path) -> None:
    """Removes a state; renamed first, so that a half-removed one is never read."""
    staged = folder.with_name(f"{_STAGED}{folder.name}")
    with suppress(OSError):
        folder.rename(staged)
        shutil.rmtree(staged, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
