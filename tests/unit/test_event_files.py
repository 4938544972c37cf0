"""Formats of event recordings: what is written as their descriptions say is read, and damage is named."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunecli.data.event_files import MOST_BYTES, UnreadableRecording, read_recording
from prunecli.data.events import Events, Size
from tests.unit.event_formats import AEDAT2_HEADER, AEDAT3_HEADER, Event, aedat2, aedat3, aedat3_packet, atis

SOME: list[Event] = [(3, 7, 100, 1), (0, 33, 250, 0), (33, 0, 250, 1), (12, 12, 9000, 0)]
NMNIST = (34, 34)
DVS128 = (128, 128)


def recordings(width: int, height: int, longest_step: int) -> st.SearchStrategy[list[Event]]:
    """Events in order of time."""
    event = st.tuples(
        st.integers(0, width - 1), st.integers(0, height - 1), st.integers(0, longest_step), st.integers(0, 1)
    )

    def in_time(steps: list[Event]) -> list[Event]:
        times = np.cumsum([step for _, _, step, _ in steps]).tolist()
        return [(x, y, t, p) for (x, y, _, p), t in zip(steps, times, strict=True)]

    return st.lists(event, min_size=1, max_size=40).map(in_time)


def as_list(events: object) -> list[Event]:
    assert isinstance(events, Events)
    return list(zip(events.x.tolist(), events.y.tolist(), events.t.tolist(), events.p.tolist(), strict=True))


def read(path: Path, content: bytes, sensor: Size | None = NMNIST, **how: Any) -> Any:
    path.write_bytes(content)
    return read_recording(path, sensor, **how)


shared = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared
@given(events=recordings(240, 180, 2**21))  # so that the 23 bits of the time wrap
def test_atis_events_are_read_as_they_were_written(tmp_path: Path, events: list[Event]) -> None:
    events_read = as_list(read(tmp_path / "a.bin", atis(events), (180, 240)))
    begin = events[0][2] % 2**23
    assert events_read == [(x, y, t - events[0][2] + begin, p) for x, y, t, p in events]


@shared
@given(events=recordings(128, 128, 2**28), others=st.integers(1, 3))  # so that the 32 bits of the time wrap
def test_aedat2_events_are_read_as_they_were_written(tmp_path: Path, events: list[Event], others: int) -> None:
    begin = events[0][2] % 2**32
    expected = [(x, y, t - events[0][2] + begin, p) for x, y, t, p in events]
    external = struct.pack(">II", 1 << 15, events[-1][2] % 2**32) * others
    assert as_list(read(tmp_path / "a.aedat", aedat2(events) + external, DVS128)) == expected


@shared
@given(events=recordings(128, 128, 2**20), cut=st.integers(0, 40))
def test_aedat3_events_are_read_as_they_were_written(tmp_path: Path, events: list[Event], cut: int) -> None:
    packets = aedat3_packet(events[:cut]), aedat3_packet([(0, 0, 0, 0)], kind=0), aedat3_packet(events[cut:])
    assert as_list(read(tmp_path / "a.aedat", aedat3(*packets), DVS128)) == events
    start, end = events[0][2], events[-1][2] + 1
    middle = (start + end) // 2
    parts = []
    for interval in ((start, middle), (middle, end)):
        inside = [event for event in events if interval[0] <= event[2] < interval[1]]
        if inside:
            assert as_list(read_recording(tmp_path / "a.aedat", DVS128, interval=interval)) == inside
        parts += inside
    assert parts == events


def test_aedat3_counts_overflows_of_the_time_and_leaves_out_invalid_events(tmp_path: Path) -> None:
    content = aedat3(aedat3_packet(SOME), aedat3_packet(SOME, valid=0), aedat3_packet(SOME, overflow=1))
    later = [(x, y, t + 2**31, p) for x, y, t, p in SOME]
    assert as_list(read(tmp_path / "a.aedat", content)) == SOME + later


def test_a_row_of_240_is_no_event_but_advances_the_clock(tmp_path: Path) -> None:
    content = atis([(1, 2, 10, 1), (0, 240, 20, 0), (3, 4, 30, 0)])
    assert as_list(read(tmp_path / "a.bin", content)) == [(1, 2, 10, 1), (3, 4, 30 + 2**13, 0)]


def test_the_real_recording(data_root: Path) -> None:
    events = read_recording(data_root / "events" / "nmnist_sample.bin", NMNIST)
    assert isinstance(events, Events) and len(events) == 4325
    assert (events.x.max(), events.y.max()) == (33, 33)
    assert (np.diff(events.t) >= 0).all() and 300_000 < events.t[-1] < 320_000  # three saccades of 100 ms
    assert 0.4 < events.p.mean() < 0.6


def arrays(**named: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **named)
    return stream.getvalue()


def fields(events: Sequence[Event]) -> dict[str, np.ndarray]:
    x, y, t, p = np.array(events).T
    return {"t": t.astype(np.uint64), "x": x.astype(np.int16), "y": y.astype(np.int16), "p": p.astype(bool)}


def structured() -> bytes:
    array = np.array(SOME, dtype=[(name, "<i8") for name in "xytp"])
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_arrays_are_read(tmp_path: Path) -> None:
    assert as_list(read(tmp_path / "a.npz", arrays(**fields(SOME)))) == SOME
    assert as_list(read(tmp_path / "a.npy", structured())) == SOME
    signed = fields(SOME) | {"p": np.array([1, -1, 1, -1])}
    assert as_list(read(tmp_path / "a.npz", arrays(**signed))) == SOME
    frames = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    content = read(tmp_path / "a.npz", arrays(frames=frames))
    assert content.dtype == np.float32 and np.array_equal(content, frames)


def _bomb(frames: int) -> bytes:
    """A zip of frames that are all zero: 1,000 times smaller than what it unpacks to."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("frames.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (frames, 2, 128, 128)}
        )
        for _ in range(frames):
            member.write(bytes(2 * 128 * 128))
    return stream.getvalue()


def _claiming(shape: tuple[int, ...]) -> bytes:
    """An array whose header says more than follows."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(80)


def _full(count: int) -> bytes:
    """An array of `count` bytes, all zero."""
    stream = io.BytesIO()
    np.save(stream, np.zeros(count, np.uint8))
    return stream.getvalue()


def _zipped(*members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in zip("xytp", members, strict=True):
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


_BACK = [(1, 1, 50_000, 1), (1, 1, 39_000, 1)]
_PACKET = aedat3_packet(SOME)
BAD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.bin", lambda: b"", "the file is empty"),
    "cut": ("a.bin", lambda: atis(SOME)[:-2], "its last event is cut: 18 bytes are not a multiple of 5"),
    "outside": ("a.bin", lambda: atis([*SOME, (34, 5, 9001, 1)]), "event 4 lies at column 34, row 5, outside"),
    "backwards": ("a.bin", lambda: atis(_BACK), "event 1 lies 11,000 microseconds before the last"),
    "only marks": ("a.bin", lambda: atis([(0, 240, 5, 0)]), "it has no events"),
    "aedat as atis": ("a.bin", lambda: aedat2(SOME), "it is an AEDAT file, expected ATIS events"),
    "atis as aedat": ("a.aedat", lambda: atis(SOME), "it does not begin as an AEDAT file does"),
    "another version": ("v3.aedat", lambda: aedat2(SOME), "it is AEDAT 2.0, expected 3.1"),
    "the other version": ("v2.aedat", lambda: aedat3(_PACKET), "it is AEDAT 3.1, expected 2.0"),
    "a new version": ("a.aedat", lambda: b"#!AER-DAT4.0\r\n" + bytes(64), "it is AEDAT 4.0; 2.0 and 3.1 are read"),
    "cut aedat2": ("a.aedat", lambda: aedat2(SOME)[:-3], "its last event is cut: 29 bytes of events"),
    "another camera": (
        "a.aedat",
        lambda: aedat2(SOME, header=AEDAT2_HEADER + b"# AEChip: eu.seebetter.ini.chips.davis.Davis240C\r\n"),
        "it comes from a Davis240C",
    ),
    "another camera's addresses": (
        "a.aedat",
        lambda: AEDAT2_HEADER + struct.pack(">II", 100 << 22 | 50 << 12, 5) * 3,
        "its addresses are not those of a DVS128",
    ),
    "only a header": ("a.aedat", lambda: AEDAT3_HEADER, "it has no events"),
    "endless header": ("a.aedat", lambda: AEDAT3_HEADER[:-16] + _PACKET, "its header has no end"),
    "cut head": ("a.aedat", lambda: aedat3(_PACKET) + _PACKET[:9], "its last packet is cut"),
    "claiming packet": (
        "a.aedat",
        lambda: aedat3(_PACKET, struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, 2**27, 2**27, 2**27), bytes(64)),
        "claims 1,073,741,824 bytes and the file has 64 more",
    ),
    "negative packet": (
        "a.aedat", lambda: aedat3(struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, -5, -5, 0)), "at byte 105 is damaged"
    ),
    "no zip": ("a.npz", lambda: b"PK\x03\x04" + bytes(50), "not a zip file"),
    "no arrays": ("a.npz", lambda: arrays(z=np.zeros(3)), "it has no x; expected x, y, t and p, or frames"),
    "no time": ("a.npz", lambda: arrays(x=np.zeros(3, int), y=np.zeros(3, int), p=np.zeros(3, int)), "it has no t"),
    "lengths": ("a.npz", lambda: arrays(**fields(SOME) | {"p": np.ones(3, int)}), "x 4, y 4, t 4, p 3"),
    "floats": ("a.npz", lambda: arrays(**fields(SOME) | {"x": np.ones(4)}), r"its x is float64\[4\], expected int"),
    "polarity": ("a.npz", lambda: arrays(**fields(SOME) | {"p": np.full(4, 2)}), "its p holds more than 0 and 1"),
    "below": ("a.npz", lambda: arrays(**fields(SOME) | {"y": np.array([1, 2, -1, 0])}), "lies at column 33, row -1"),
    "pickle": ("a.npz", lambda: arrays(frames=np.array([{}], dtype=object)), "Object arrays cannot be loaded"),
    "flat frames": ("a.npz", lambda: arrays(frames=np.zeros((4, 8, 8))), r"its frames are float64\[4, 8, 8\]"),
    "nan frames": ("a.npz", lambda: arrays(frames=np.full((4, 2, 8, 8), np.nan)), "NaN"),
    "bomb": ("a.npz", lambda: _bomb(MOST_BYTES // (2 * 128 * 128) + 1), "frames.npy would take 128 MiB"),
    "claiming member": (
        "a.npz", lambda: _zipped(*[_claiming((2**40,))] * 4), "x.npy announces 8,796,093,022,208"
    ),
    "large together": ("a.npz", lambda: _zipped(*[_full(MOST_BYTES // 4 + 1)] * 4), "it would take 128 MiB"),
    "claiming array": ("a.npy", lambda: _claiming((2**40,)), "the array announces 8,796,093,022,208 bytes"),
    "plain array": ("a.npy", lambda: structured()[:6] + _claiming((10,))[6:], r"it holds int64\[10\], expected fields"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_recording_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    name, make, reason = BAD[case]
    path = tmp_path / name
    content = make()
    version = {"v2": "2.0", "v3": "3.1"}.get(path.stem)
    tracemalloc.start()
    with pytest.raises(UnreadableRecording, match=rf"^{path}: not a readable recording \([^\n]*{reason}[^\n]*\); repl"):
        read(path, content, aedat=version)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20  # whatever it claims
    tracemalloc.stop()


def test_folders_pipes_and_dead_links_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.bin").mkdir()
    (tmp_path / "link.bin").symlink_to("nowhere")
    for name, reason in (("folder.bin", "a folder"), ("link.bin", "a link to a file that does not exist")):
        with pytest.raises(UnreadableRecording, match=reason):
            read_recording(tmp_path / name, NMNIST)


def test_a_little_disorder_is_left_as_it_is(tmp_path: Path) -> None:
    events = [(1, 1, 50_000, 1), (1, 1, 45_000, 1), (2, 2, 50_001, 0)]
    assert as_list(read(tmp_path / "a.bin", atis(events))) == events
