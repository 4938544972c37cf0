"""Saved states of a stage that is not finished: atomic, checked by hash, the newest few kept."""

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

from prunecli.checkpoint.durable import current_umask, reach, sync, sync_folder
from prunecli.checkpoint.io import file_sha256
from prunecli.checkpoint.torch_files import read_torch_file
from prunecli.errors import Interrupted, ModelError, RecipeError, ResourceError

STATE_SCHEMA = "prunecli.state/1"
State = dict[str, Any]
"""Numbers, texts, tensors, and lists, tuples and dictionaries of them."""

_PREFIX, _STAGED, _DAMAGED = "state-", ".staged-", "damaged-"
_BESIDE = "beside"
_TENSORS, _MANIFEST = "state.pt", "manifest.json"
_MAX_MANIFEST = 10_000_000
_SHARE = 20
"""Saving takes no more than about one part in this many of the time."""
_SIGNALS = {1: "SIGHUP", 2: "Ctrl-C", 15: "SIGTERM"}


class StateManifest(BaseModel):
    """What a saved state belongs to, and the hash of its content."""

    model_config = ConfigDict(extra="forbid")

    schema_name: str = Field(STATE_SCHEMA, alias="schema", pattern=f"^{STATE_SCHEMA}$")
    identity: dict[str, JsonValue]
    environment: dict[str, JsonValue]
    place: str
    sha256: str


@dataclass(frozen=True)
class Ownership:
    """What a run is, so that a state is never resumed by another one.

    Attributes:
        identity: Everything that decides what is computed; a state with another identity is refused.
        environment: Versions, device and threads; where they differ the last bits may, which is said.
    """

    identity: Mapping[str, JsonValue]
    environment: Mapping[str, JsonValue]


@dataclass(frozen=True)
class Beside:
    """A part of a run's state that training knows nothing of.

    Attributes:
        get: Gives it, as plain data.
        put: Takes it back.
    """

    get: Callable[[], Any]
    put: Callable[[Any], None]


class StateStore:
    """The saved states of one stage, in a folder of their own.

    A state is staged under another name, synced, given its manifest last, and renamed, so that whatever is called
    `state-...` was complete. A damaged one is set aside as `damaged-state-...` and the one before it is used.

    Args:
        folder: Where they lie; it exists and nobody else writes to it.
        owner: Whose states they are.
        keep: How many to keep.
        every: Seconds between states; 0: `due` is always true.
        warn: Told what was set aside, what differs, and when a state could not be saved.
        tell: Told which state is gone on from.
        command: How to go on, for the message of an interrupt.
        beside: What else belongs to a state, and what takes it back.
        in_run: Whether there are finished stages to go on from even without a state.
    """

    def __init__(
        self,
        folder: Path,
        owner: Ownership,
        *,
        keep: int = 2,
        every: float = 60.0,
        warn: Callable[[str], None] = lambda text: None,
        tell: Callable[[str], None] = lambda text: None,
        command: str = "",
        in_run: bool = False,
        beside: Beside | None = None,
    ) -> None:
        self.folder = folder
        self._owner, self._keep, self._every, self._warn, self._command = owner, keep, every, warn, command
        self._tell = tell
        self._last = time.monotonic()
        self._took = 0.0
        self._failing = False
        self._in_run = in_run
        self._beside = beside
        for leftover in folder.glob(f"{_STAGED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def exists(self) -> bool:
        """Whether there is a state, good or not."""
        return bool(self._folders() or self._set_aside())

    def load(self) -> State | None:
        """The newest state that is whole; None when there never was one.

        Raises:
            RecipeError: It belongs to another run; the message names a setting that differs. Or none is whole.
            ResourceError: The disk or the memory fails.
        """
        folders = self._folders()
        for folder in reversed(folders):
            try:
                manifest = _read_manifest(folder)
                self._compare(folder, manifest)
                content = _read_content(folder, manifest.sha256)
            except _Damaged as error:
                aside = folder.with_name(f"{_DAMAGED}{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self._warn(f"{folder} is damaged ({error}); set aside as {aside.name}, going back to the one before")
                continue
            except OSError as error:
                raise ResourceError(f"{folder}: cannot be read ({error.strerror or error}); try again") from error
            beside = content.pop(_BESIDE, None)
            if self._beside is not None and beside is not None:
                self._beside.put(beside)
            self._tell(f"going on from {folder}: {manifest.place}")
            self._last = time.monotonic()
            return content
        lost = len(self._set_aside())
        if lost:
            raise RecipeError(f"{self.folder}: none of its {lost} states is whole; begin anew with --force")
        return None

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._last >= max(self._every, _SHARE * self._took if self._every else 0)

    def save(self, content: State, place: str) -> bool:
        """Saves a state; what was saved before stays until it is on the disk.

        Args:
            content: The state.
            place: Where the run is, for instance "epoch 3, batch 20".

        Returns:
            Whether it was saved: a full disk costs the state, with a warning, but not the run.
        """
        start = time.monotonic()
        if self._beside is not None:
            content = content | {_BESIDE: self._beside.get()}
        try:
            self._write(content, place)
        except (OSError, RuntimeError, pickle.PickleError) as error:  # torch.save has RuntimeError for a failed write
            cause = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            if "inline_container" in cause:  # where torch counts what was written
                cause = "the disk is full or failing"
            if not self._failing:  # once is enough, until it works again
                self._warn(f"{self.folder}: the state at {place} could not be saved ({cause}); the run goes on without")
            self._failing = True
            return False
        finally:
            self._last = time.monotonic()
            self._took = self._last - start
        self._failing = False
        return True

    def interrupted(self, signal: int, content: State, place: str) -> Interrupted:
        """Saves a state because of a signal, and words what to do next."""
        saved = self.save(content, place)
        return self.aborted(signal, f" at {place}" if saved else f" at {place}, which could not be saved")

    def aborted(self, signal: int, place: str = "") -> Interrupted:
        """Words what to do next after a signal, without saving anything more."""
        name = _SIGNALS.get(signal, f"signal {signal}")
        folders = self._folders()
        if not folders and not self._in_run:
            return Interrupted(f"stopped by {name}{place}; no state was saved", signal)
        there = f"the last state is {folders[-1]}" if folders else "the stages before this one are saved"
        return Interrupted(f"stopped by {name}{place}; {there}. Go on with: {self._command}", signal)

    def discard(self) -> None:
        """Removes all states, also damaged ones: the stage is finished, or begins anew."""
        for folder in (*self._set_aside(), *self._folders()):  # the newest last
            _remove(folder)
            reach("state:discarding")

    def _write(self, content: State, place: str) -> None:
        folders = self._folders()
        number = int(folders[-1].name.removeprefix(_PREFIX)) + 1 if folders else 1
        reach("state:begin")
        self.folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=self.folder, prefix=_STAGED))
        try:
            staged.chmod(0o777 & ~current_umask())
            with (staged / _TENSORS).open("wb") as file:
                torch.save(content, file)
            # What is saved has to be readable later; mapped, so that only the outline is read.
            torch.load(staged / _TENSORS, map_location="cpu", weights_only=True, mmap=True)
            sync(staged / _TENSORS)
            reach("state:tensors")
            manifest = StateManifest(
                schema=STATE_SCHEMA,
                identity=dict(self._owner.identity),
                environment=dict(self._owner.environment),
                place=place,
                sha256=file_sha256(staged / _TENSORS),
            )
            (staged / _MANIFEST).write_text(manifest.model_dump_json(by_alias=True), encoding="utf-8")
            sync(staged / _MANIFEST)
            sync_folder(staged)
            reach("state:manifest")
            staged.rename(self.folder / f"{_PREFIX}{number:08d}")
            sync_folder(self.folder)
            reach("state:renamed")
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        for old in folders[: max(0, len(folders) + 1 - self._keep)]:
            _remove(old)
        reach("state:pruned")

    def _set_aside(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_DAMAGED}*"))

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit())

    def _compare(self, folder: Path, manifest: StateManifest) -> None:
        ours = dict(self._owner.identity)
        for key in sorted(ours.keys() | manifest.identity.keys()):
            here, there = ours.get(key), manifest.identity.get(key)
            if here != there:
                raise RecipeError(
                    f"{folder}: was saved with {key} {_short(there)}, not {_short(here)}; give the same settings to "
                    "--resume, or begin anew with --force"
                )
        environment = dict(self._owner.environment)
        for key in sorted(environment.keys() | manifest.environment.keys()):
            if environment.get(key) != manifest.environment.get(key):
                here, there = environment.get(key), manifest.environment.get(key)
                self._warn(f"{folder}: was saved with {key} {there}, now {here}; the last bits may differ")


class _Damaged(Exception):
    """A state that is not whole, with the reason."""


def _read_manifest(folder: Path) -> StateManifest:
    path = folder / _MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise _Damaged(f"{_MANIFEST} has over {_MAX_MANIFEST:,} bytes")
        return StateManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise _Damaged(f"{_MANIFEST} is gone") from error
    except ValidationError as error:
        raise _Damaged(f"{_MANIFEST}: {error.errors(include_input=False)[0]['msg']}") from error


def _read_content(folder: Path, sha256: str) -> State:
    path = folder / _TENSORS
    try:
        if file_sha256(path) != sha256:
            raise _Damaged(f"{_TENSORS} has another sha256 than its manifest says")
        with path.open("rb") as file:
            content = read_torch_file(file, path, legacy=False)
    except FileNotFoundError as error:
        raise _Damaged(f"{_TENSORS} is gone") from error
    except ModelError as error:  # the hash is right, so somebody made it so
        raise _Damaged(str(error)) from error
    if not isinstance(content, dict):
        raise _Damaged(f"{_TENSORS} holds no state")
    return content


def _remove(folder: Path) -> None:
    """Removes a state so that a part of it is never taken for one."""
    staged = folder.with_name(f"{_STAGED}{folder.name}")
    with suppress(OSError):
        folder.rename(staged)
        shutil.rmtree(staged, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
