"""What the numbers or colours in masks mean: which is which class, and which are void.

What somebody declared is taken at its word. A layout's own convention is used only where the masks fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prunecli.data.class_lists import CLASSES_FILE, DeclaredClasses, color_name, declared_in, read_classes
from prunecli.data.label_map import VALUES, VOID, LabelMap
from prunecli.data.mask_survey import Survey
from prunecli.data.splits import ClassLabel, read_lines
from prunecli.errors import DataError, unknown

_MOST_CLASSES = 255
_COUNTED = "numbers"
_SHOWN = 8
_CAMVID = "sky building pole road pavement tree sign-symbol fence car pedestrian bicyclist".split()
_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
CONVENTIONS: dict[str, DeclaredClasses] = {
    "camvid": DeclaredClasses(dict(enumerate(_CAMVID)), void=(len(_CAMVID), VOID)),
    "voc": DeclaredClasses(dict(enumerate(_VOC))),
    "ade20k": DeclaredClasses({number: str(number) for number in range(1, 151)}, void=(0, VOID)),
}
"""The classes of data sets that are laid out in a way of their own."""


@dataclass(frozen=True)
class MaskReading:
    """What somebody says about masks.

    Attributes:
        classes: A file of classes, a name in `CONVENTIONS`, or "numbers"; None: the folder's own file, else what fits.
        void: Numbers that are void; None: 255, if it is no class.
        reduce_zero_label: Whether 0 is void and the first class has the number 1.
        recorded: What values meant when a checkpoint was made; nothing else is asked then.
    """

    classes: str | None = None
    void: tuple[int, ...] | None = None
    reduce_zero_label: bool = False
    recorded: tuple[ClassLabel, ...] = ()

    @property
    def declared(self) -> bool:
        """Whether the user said anything."""
        return self.classes is not None or self.void is not None or self.reduce_zero_label


def parse_void(text: str | int | None) -> tuple[int, ...] | None:
    """Numbers of `--void`: "255", "0,255" or "none".

    Raises:
        DataError: It is something else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in str(text).split(",")]
    if parts == ["none"]:
        return ()
    if not all(part.isdigit() and int(part) < VALUES for part in parts):
        raise DataError(f"--void {text}: write numbers in masks, for instance --void 255 or --void 0,255, or none")
    return tuple(map(int, parts))


def label_map(folder: Path, convention: str | None, reading: MaskReading, survey: Callable[[bool], Survey]) -> LabelMap:
    """Decides what mask values mean.

    Args:
        folder: The data set, which may have a `classes.txt`.
        convention: The layout's name in `CONVENTIONS`.
        reading: What the user says.
        survey: Counts values; called with whether they are colours.

    Raises:
        DataError: It is not clear, or what is declared does not fit the masks.
    """
    if reading.recorded:
        recorded = _recorded(reading.recorded)
        if reading.void is not None:
            names = {value: name for value, name in recorded.names.items() if value not in reading.void}
            recorded = DeclaredClasses(names, reading.void, recorded.colored)
        return _finished(folder, recorded, survey(recorded.colored), ())
    declared, origin = _declared(folder, convention, reading)
    counted = survey(declared.colored if declared is not None else False)
    if not counted.pixels:
        if counted.coloured is not None:
            raise _which_colors(folder, survey(True))
        declared = declared or CONVENTIONS.get(convention or "", DeclaredClasses({0: "0", 1: "1"}))
        return _finished(folder, declared, counted, ())  # nothing could be read; loading the images says so
    if counted.coloured is not None and not (declared and declared.colored):
        raise DataError(
            f"{counted.coloured}: has colours, and other masks hold class numbers; write class numbers into it, or say "
            f"in {CLASSES_FILE} what the colours of all masks mean, `red,green,blue: name` on each line"
        )
    notes: tuple[str, ...] = ()
    if declared is not None and declared.by_order:
        declared, notes = _two_shades(folder, declared, counted, reading)
    elif (
        declared is None
        and reading.classes is None
        and convention is not None
        and reading.void is None
        and not reading.reduce_zero_label
    ):
        declared, notes = _by_layout(folder, convention, counted)
    elif declared is None:
        declared = _by_numbers(folder, counted, reading)
    declared = _with_void(folder, declared, reading, origin)
    return _finished(folder, declared, counted, notes)


def _declared(folder: Path, convention: str | None, reading: MaskReading) -> tuple[DeclaredClasses | None, str]:
    """What the user or the folder declares, and where."""
    if reading.classes is None:
        own = declared_in(folder)
        if own is None and convention == "ade20k" and (folder / "objectInfo150.txt").is_file():
            return _ade20k(folder), "objectInfo150.txt"
        if own is None:
            return None, ""
        return read_classes(own, reduce_zero_label=reading.reduce_zero_label), own.name
    if reading.classes == _COUNTED:
        return None, ""
    if reading.classes in CONVENTIONS:
        named = _ade20k(folder) if reading.classes == "ade20k" else CONVENTIONS[reading.classes]
        return named, f"--classes {reading.classes}"
    file = Path(reading.classes).expanduser()
    if not file.is_file():
        choices = [*CONVENTIONS, _COUNTED]
        raise DataError(
            f"--classes {reading.classes}: no such file; {unknown('name of classes', reading.classes, choices)}"
        )
    return read_classes(file, reduce_zero_label=reading.reduce_zero_label), str(file)


def _ade20k(folder: Path) -> DeclaredClasses:
    """ADE20K's classes, with their names if the folder has the official list."""
    plain, file = CONVENTIONS["ade20k"], folder / "objectInfo150.txt"
    names = [line.split("\t")[-1].strip() for line in read_lines(file)[1:]] if file.is_file() else []
    if len(names) != len(plain.names):
        return plain
    return DeclaredClasses(dict(enumerate(names, start=1)), void=plain.void)


def _by_layout(folder: Path, convention: str, counted: Survey) -> tuple[DeclaredClasses, tuple[str, ...]]:
    """The layout's convention, if the masks fit it.

    Raises:
        DataError: They do not.
    """
    known = _ade20k(folder) if convention == "ade20k" else CONVENTIONS[convention]
    other = [value for value in counted.values if value not in known.names and value not in (*known.void, VOID)]
    occurring = sum(value in known.names for value in counted.values)
    if other or 2 * occurring < len(known.names):
        holds = f"hold {_numbers(other)}" if other else f"hold {occurring} of its {len(known.names)} classes"
        raise DataError(
            f"{folder}: is laid out as {convention}, but its masks {holds}, so what their numbers mean is not clear; "
            f"say --classes {convention}, --classes {_COUNTED} (the first class is 0), or write a name for each number "
            f"into {CLASSES_FILE}, a line each"
        )
    return known, (
        f"{folder}: masks are read as {convention}'s {len(known.names)} classes, as their layout and numbers suggest; "
        f"other classes: --classes or {CLASSES_FILE}",
    )


def _by_numbers(folder: Path, counted: Survey, reading: MaskReading) -> DeclaredClasses:
    """Classes counted in the masks: 0 is the first.

    Raises:
        DataError: The numbers have gaps, or are not those of classes.
    """
    void = set(reading.void if reading.void is not None else (VOID,))
    first = int(reading.reduce_zero_label)
    numbers = [value for value in counted.values if value not in void and value >= first]
    if counted.values == [0, VOID] and reading.void is None:
        raise DataError(
            f"{folder}: its masks hold 0 and 255 alone; a mask holds class numbers from 0, not 0 and 255, unless "
            f"{CLASSES_FILE} names two classes: write two names into it, a line each"
        )
    if counted.lossy is not None:
        raise _lossy(folder, counted)
    highest = numbers[-1] if numbers else 0
    if highest - first < 1 or highest - first >= _MOST_CLASSES:
        raise DataError(
            f"{folder}: its masks hold {_numbers(counted.values)}, which is not 2 to {_MOST_CLASSES} classes; a mask "
            f"holds class numbers from {first}, or {CLASSES_FILE} says what they mean, `number: name` on each line"
        )
    if 2 * len(numbers) <= highest - first + 1:
        raise DataError(
            f"{folder}: its masks hold {_numbers(numbers)}, which would be {highest + 1 - first} classes, most of them "
            f"without a pixel; say in {CLASSES_FILE} what they mean, a line `{numbers[0]}: name` for each"
        )
    classes = {number: str(number) for number in range(first, highest + 1) if number not in void}
    return DeclaredClasses(classes, void=(0,) * first)


def _two_shades(
    folder: Path, declared: DeclaredClasses, counted: Survey, reading: MaskReading
) -> tuple[DeclaredClasses, tuple[str, ...]]:
    """Names without numbers: they are the numbers from 0 on, but two may also be the two shades of all masks.

    Raises:
        DataError: The masks hold other numbers.
    """
    names = list(declared.names.values())
    shades = {frozenset({0}), frozenset({VOID}), frozenset({0, VOID})}
    black_and_white = next((path for content, path in counted.contents.items() if VOID in content <= {0, VOID}), None)
    other = next((path for content, path in counted.contents.items() if content not in shades), None)
    settled = any(VOID in content and content not in shades for content in counted.contents)
    if reading.void is None and not reading.reduce_zero_label and black_and_white is not None and not settled:
        if len(names) == 2 and other is None:
            note = f"{folder}: its masks hold 0 and 255 alone, read as the classes {names[0]} and {names[1]}"
            return DeclaredClasses({0: names[0], VOID: names[1]}, void=()), (note,)
        if len(names) == 2:
            assert other is not None
            return declared, (
                f"{folder}: 255 counts as void, although {black_and_white.name} holds 0 and 255 alone; {other.name} "
                "holds other class numbers. If both mean the same, write the same numbers",
            )
        if other is None:
            raise DataError(
                f"{folder}: its masks hold 0 and 255 alone and its classes are {len(names)}, so that all but the first "
                f"would be missing; write class numbers into the masks, or two names into {CLASSES_FILE}"
            )
    void = set(reading.void or ()) | {VOID}
    values = [value for value in counted.values if value not in void]
    if counted.lossy is not None:
        raise _lossy(folder, counted)
    surplus = [value for value in values if value not in declared.names and value not in declared.void]
    if surplus and len(values) == len(names):
        lines = " and ".join(f"`{value}: {name}`" for value, name in zip(values, names, strict=True))
        raise DataError(
            f"{counted.first[surplus[0]]}: holds the number {surplus[0]}, which is not one of {len(names)} classes; "
            f"if the masks' numbers {_numbers(values)} are these classes, write them before the names: {_short(lines)}"
        )
    if surplus == [len(names)] and 0 in values and not reading.reduce_zero_label:
        raise DataError(
            f"{counted.first[surplus[0]]}: holds the number {surplus[0]}, which is not one of {len(names)} classes "
            f"from 0; if 0 is no class and 1 the first, add --reduce-zero-label; if {surplus[0]} is void, "
            f"--void {surplus[0]}"
        )
    return declared, ()


def _with_void(folder: Path, declared: DeclaredClasses, reading: MaskReading, origin: str) -> DeclaredClasses:
    """What the user says is void, or what is void by default."""
    if declared.colored and (reading.void is not None or reading.reduce_zero_label):
        option = "--void" if reading.void is not None else "--reduce-zero-label"
        raise DataError(
            f"{option}: is for class numbers, and {origin} names colours; write `red,green,blue: void` there"
        )
    void: Sequence[int] = reading.void if reading.void is not None else declared.void
    clash = [value for value in reading.void or () if value in declared.names]
    if clash and origin:
        name = declared.names[clash[0]]
        raise DataError(f"--void {clash[0]}: is {name} in {origin}; remove it there or leave it out")
    if reading.void is None and not declared.colored and VOID not in declared.names:
        void = (*void, VOID)
    if reading.reduce_zero_label and not declared.colored:
        if 0 in declared.names:
            raise DataError(f"--reduce-zero-label: 0 is {declared.names[0]} in {origin or folder}; leave it out")
        void = (*void, 0)
    return DeclaredClasses(declared.names, tuple(dict.fromkeys(void)), declared.colored)


def _finished(folder: Path, declared: DeclaredClasses, counted: Survey, notes: tuple[str, ...]) -> LabelMap:
    names = tuple(dict.fromkeys(declared.names.values()))
    if not 2 <= len(names) <= _MOST_CLASSES:
        raise DataError(f"{folder}: {len(names)} classes are named; name 2 to {_MOST_CLASSES}")
    meaning = {value: names.index(name) for value, name in declared.names.items()}
    meaning |= {value: VOID for value in declared.void if value not in meaning}
    nearest = counted.lossy is not None
    if nearest and declared.colored:
        raise _lossy(folder, counted)
    codes = np.array(sorted(meaning), dtype=np.int64)
    indices = np.array([meaning[code] for code in codes.tolist()], dtype=np.int16)
    made = LabelMap(names, codes, indices, declared.colored, nearest)
    pixels: dict[int, int] = dict.fromkeys(codes.tolist(), 0)
    changed = 0
    for value, count in counted.pixels.items():
        exact = value
        if value not in meaning and nearest and value not in counted.exact:
            exact = int(codes[np.abs(codes - value).argmin()])
            changed += count
        if exact not in meaning:
            raise made.no_class(value, counted.exact.get(value, counted.first[value]))
        pixels[exact] += count
    total = max(1, sum(pixels.values()))
    rows = tuple(  # in the order of classes, which a checkpoint has to give back
        ClassLabel(
            color_name(value) if declared.colored else str(value),
            declared.names.get(value),
            round(pixels[value] / total, 6),
        )
        for value in dict.fromkeys((*declared.names, *declared.void))
    )
    notes += tuple(_remarks(folder, rows, counted, names))
    if nearest:
        notes += (
            f"{folder}: {_name(counted.lossy)} is in a lossy format; {changed / total:.1%} of the pixels have other "
            "values than those named and count as the nearest one",
        )
    return replace(made, notes=notes, rows=rows)


def _remarks(folder: Path, rows: Sequence[ClassLabel], counted: Survey, names: tuple[str, ...]) -> list[str]:
    """Classes without a pixel, and how much was looked at."""
    present = {row.name for row in rows if row.share or row.name is None}
    absent = [name for name in names if name not in present]
    remarks = []
    if absent and counted.pixels:
        looked = f"{counted.surveyed} of {counted.total}" if counted.surveyed < counted.total else str(counted.total)
        shown = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
        remarks.append(f"{folder}: {len(absent)} of {len(names)} classes without a pixel in {looked} masks: {shown}")
    return remarks


def _recorded(rows: Sequence[ClassLabel]) -> DeclaredClasses:
    colored = any("," in row.value for row in rows)
    coded = {_code(row.value): row.name for row in rows}
    names = {value: name for value, name in coded.items() if name is not None}
    return DeclaredClasses(names, tuple(value for value, name in coded.items() if name is None), colored)


def _code(value: str) -> int:
    red, *rest = (int(part) for part in value.split(","))
    return red << 16 | rest[0] << 8 | rest[1] if rest else red


def _which_colors(folder: Path, colors: Survey) -> DataError:
    found = sorted(colors.pixels, key=lambda value: -colors.pixels[value])
    lines = ", ".join(f"`{color_name(value)}: name`" for value in found[:_SHOWN])
    return DataError(
        f"{folder}: its masks hold {len(found)} colours; say in {CLASSES_FILE} which is which class, a line each "
        f"(`red,green,blue: void` for none): {lines}{' ...' if len(found) > _SHOWN else ''}"
    )


def _lossy(folder: Path, counted: Survey) -> DataError:
    values = len(counted.pixels)
    return DataError(
        f"{counted.lossy}: is in a lossy format, which has changed its values (the masks hold {values} of them); save "
        f"masks as PNG, or write the true numbers into {CLASSES_FILE}, `number: name` on each line"
    )


def _numbers(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown + (f" and {len(values) - _SHOWN} other numbers" if len(values) > _SHOWN else "")


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + " ..."


def _name(path: Path | None) -> str:
    return path.name if path is not None else ""
