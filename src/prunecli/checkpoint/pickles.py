"""Interpreting a pickle without creating its objects: what it would build, call and claim.

torch's `weights_only` reader runs nothing foreign, but it trusts sizes. This interpreter understands the same
instructions, builds inert records, and refuses anything that cannot be read in bounded time and memory. A file is only
passed on to torch after that.
"""

from __future__ import annotations

import pickle
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunecli.checkpoint.archive import Damaged
from prunecli.checkpoint.rebuilding import call
from prunecli.checkpoint.records import Global, ObjectRecord, Storage, TensorRecord, printable

_MAX_INSTRUCTIONS = 1_000_000
MAX_BYTES = 64 << 20
_MAX_GLOBALS = 2_000
_MAX_CONSTRUCTION_COST = 80_000_000
_MAX_NAME = 512
_MAX_DEPTH = 1_000
_MAX_TUPLE_KEYS = 1_000
_MAX_KEY_LENGTH = 8
_PLAIN = (str, bytes, int, float, bool, type(None))
_HASH_PERIOD = (1 << 61) - 1

MODULE_CLASS = "prunecli.module_class"
"""The call that `without_sources` inserts: it extracts a class from the entry that older torch.save wrote for it."""


@dataclass
class Contents:
    """What a pickle holds.

    Attributes:
        root: The pickled value, with records in place of objects.
        end: Position after its last byte, where another pickle may start.
        globals: Names of all classes and functions in it.
        mappings: Names of classes with instances that are filled like dictionaries.
        sequences: Names of classes with instances that are filled like lists.
        storages: Claimed storages by key.
        parts: Storages that are part of another one: the other one's key, the offset in it and the count.
        tensors: All tensors that are described.
        sources: For each class stored with its source code: the positions where that entry starts and where it is read.
    """

    root: Any = None
    end: int = 0
    globals: set[str] = field(default_factory=set)
    mappings: set[str] = field(default_factory=set)
    sequences: set[str] = field(default_factory=set)
    storages: dict[str, Storage] = field(default_factory=dict)
    parts: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    tensors: list[TensorRecord] = field(default_factory=list)
    sources: list[tuple[int, int]] = field(default_factory=list)


def examine(data: bytes, start: int = 0, *, legacy: bool = False, instructions: int = _MAX_INSTRUCTIONS) -> Contents:
    """Interprets one pickle.

    Args:
        data: The bytes that contain it.
        start: Position of its first byte.
        legacy: Whether persistent ids have the form that torch.save used before it wrote zip files.
        instructions: The most instructions that it may have.

    Raises:
        Damaged: torch does not read it with `weights_only`, or it is too large or too complex to be weights.
    """
    examiner = _Examiner(data, start, legacy)
    try:
        examiner.run(instructions)
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise Damaged("its list of tensors is cut short or damaged") from error
    return examiner.contents


def without_sources(data: bytes, start: int, contents: Contents) -> bytes:
    """Removes the source code of classes, which torch does not read with `weights_only`, from a pickle.

    Each such entry becomes a call of `MODULE_CLASS`, which returns the class.
    """
    head = f"c{MODULE_CLASS.replace('.', chr(10))}\n".encode()
    replacements: list[tuple[int, int, bytes]] = []
    for entry_start, read_at in contents.sources:
        replacements += [(entry_start, entry_start, head), (read_at, read_at + 1, pickle.REDUCE)]
    parts: list[bytes] = []
    position = start
    for first, end, new in sorted(replacements):
        parts += [data[position:first], new]
        position = end
    return b"".join([*parts, data[position : contents.end]])


class _Examiner:
    """The state while one pickle is interpreted; each instruction is a method."""

    def __init__(self, data: bytes, start: int, legacy: bool) -> None:
        self.data, self.position, self.legacy = data, start, legacy
        self.contents = Contents()
        self.stack: list[Any] = []
        self.marks: list[tuple[list[Any], int]] = []
        self.memo: dict[int, Any] = {}
        self.tuple_starts: dict[int, tuple[Any, int]] = {}
        self.constructions = self.tuple_keys = 0

    def run(self, limit: int) -> None:
        """Runs to the end of the pickle."""
        instructions = _INSTRUCTIONS
        for _ in range(limit):
            code = self.data[self.position]
            self.position += 1
            if code == _STOP:
                self.contents.root, self.contents.end = self.stack.pop(), self.position
                return
            instruction = instructions.get(code)
            if instruction is None:
                raise Damaged(
                    f"its pickle has the instruction {bytes([code])!r}, which plain weights do not need",
                    "save `model.state_dict()` with torch.save and its default pickle_protocol",
                )
            instruction(self)
        raise Damaged(f"its pickle has over {limit:,} instructions", "save `model.state_dict()` alone with torch.save")

    def take(self, count: int) -> bytes:
        """The next bytes of the stream."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise IndexError
        return self.data[start : self.position]

    def number(self, layout: str) -> Any:
        """The next number of the stream."""
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + _MAX_NAME + 1)
        if end < 0:
            raise IndexError
        text = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return text

    def items(self) -> list[Any]:
        """The values pushed since the last mark."""
        items = self.stack
        self.stack, _ = self.marks.pop()
        return items

    # Values

    def constant(self, value: Any) -> None:
        self.stack.append(value)

    def text(self) -> None:
        self.stack.append(str(self.take(self.number("<I")), "utf-8", "surrogatepass"))

    def short_text(self) -> None:
        self.stack.append(self.take(self.take(1)[0]).decode("utf-8"))

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def protocol(self) -> None:
        self.take(1)

    def mark(self) -> None:
        if len(self.marks) >= _MAX_DEPTH:
            raise Damaged("it is nested too deeply", _STATE_DICT)
        self.marks.append((self.stack, self.position - 1))
        self.stack = []

    def tuple_of_items(self) -> None:
        start = self.marks[-1][1]
        value = tuple(self.items())
        if value and value[0] == "module":
            self.tuple_starts[id(value)] = (value, start)  # keep the value, so that its id stays unique
        self.stack.append(value)

    def short_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def get(self, layout: str) -> None:
        self.stack.append(self.memo[self.number(layout)])

    def put(self, layout: str) -> None:
        self.memo[self.number(layout)] = self.stack[-1]

    def name(self) -> None:
        module, name = self.line(), self.line()
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        path = f"{module}.{name}"
        self.contents.globals.add(path)
        if len(self.contents.globals) > _MAX_GLOBALS:
            raise Damaged(f"it names over {_MAX_GLOBALS:,} classes and functions", _STATE_DICT)
        self.stack.append(Global(path))

    # Containers

    def append(self) -> None:
        value = self.stack.pop()
        self.extended([value])

    def appends(self) -> None:
        self.extended(self.items())

    def extended(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, ObjectRecord) and target.foreign:
            self.contents.sequences.add(target.factory)
        else:
            raise Damaged("it fills something that is not a list", _STATE_DICT)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.filled([key, value])

    def set_items(self) -> None:
        self.filled(self.items())

    def filled(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise IndexError
        for key in items[::2]:
            self.check_key(key)
        if type(target) is dict:
            target.update(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, ObjectRecord) and target.values is not None:
            target.values.update(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, ObjectRecord) and target.foreign:
            self.contents.mappings.add(target.factory)
        else:
            raise Damaged("it fills something that is not a dictionary", _STATE_DICT)

    def check_key(self, key: Any) -> None:
        """Nested tuples that share parts take exponential time to hash, and numbers can be chosen to collide."""
        if isinstance(key, tuple):
            self.tuple_keys += 1
            if self.tuple_keys > _MAX_TUPLE_KEYS or len(key) > _MAX_KEY_LENGTH:
                raise Damaged("it has keys that do not belong in a state dict", _STATE_DICT)
            if not all(isinstance(part, _PLAIN) for part in key):
                raise Damaged("it has nested keys, which do not belong in a state dict", _STATE_DICT)
        elif isinstance(key, int):
            if not -_HASH_PERIOD < key < _HASH_PERIOD:
                raise Damaged("it has keys that do not belong in a state dict", _STATE_DICT)
        elif not isinstance(key, (*_PLAIN, Global, ObjectRecord)):
            raise Damaged("it has keys that do not belong in a state dict", _STATE_DICT)

    # Objects

    def reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        self.stack[-1] = self.construct(function, arguments, new=False)

    def new_object(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        self.stack.append(self.construct(cls, arguments, new=True))

    def construct(self, function: Any, arguments: Any, *, new: bool) -> Any:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Damaged("it calls something that is not a function", _STATE_DICT)
        self.count_construction()
        value = call(function, arguments, self.check_key, new=new)
        if isinstance(value, TensorRecord):
            self.contents.tensors.append(value)
        return value

    def count_construction(self) -> None:
        """torch searches all class names for every object that is created or filled."""
        self.constructions += 1
        if self.constructions * (200 + 4 * len(self.contents.globals)) > _MAX_CONSTRUCTION_COST:
            raise Damaged("it holds too many objects", _STATE_DICT)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self.count_construction()
        if not isinstance(target, ObjectRecord) or not (target.foreign or target.factory == "collections.OrderedDict"):
            raise Damaged("it sets the state of something that is not an object", _STATE_DICT)
        if target.foreign:
            target.state = state
        elif not isinstance(state, dict):
            raise Damaged("it sets the state of a dictionary to something else", _STATE_DICT)

    def persistent(self) -> None:
        reference = self.stack.pop()
        if self.legacy and isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
            if id(reference) not in self.tuple_starts or not isinstance(reference[1], Global):
                raise Damaged("a reference to a class in it is damaged", _STATE_DICT)
            self.contents.sources.append((self.tuple_starts[id(reference)][1], self.position - 1))
            self.stack.append(reference[1])
            return
        storage = Storage.from_persistent_id(reference, legacy=self.legacy)
        known = self.contents.storages.setdefault(storage.key, storage)
        if (known.type_name, known.count) != (storage.type_name, storage.count) and known.size + storage.size:
            raise Damaged(f"it claims storage {printable(storage.key)} twice, with different sizes")
        whole = not self.legacy or reference[5] is None
        self.stack.append(storage if whole else self.part(storage, reference[5]))

    def part(self, storage: Storage, view: Any) -> Storage:
        if not isinstance(view, tuple) or len(view) != 3 or not isinstance(view[0], str):
            raise Damaged("a reference to a storage in it is damaged")
        key, offset, count = view
        if self.contents.parts.setdefault(key, (storage.key, offset, count)) != (storage.key, offset, count):
            raise Damaged(f"it claims storage {printable(key)} twice, with different sizes")
        return storage.part(key, offset, count)


_STATE_DICT = "save `model.state_dict()` with torch.save and give that file"
_STOP = pickle.STOP[0]
_Instruction = Callable[[_Examiner], None]
_INSTRUCTIONS: Mapping[int, _Instruction] = {
    code[0]: instruction
    for code, instruction in (
        (pickle.PROTO, _Examiner.protocol),
        (pickle.MARK, _Examiner.mark),
        (pickle.GLOBAL, _Examiner.name),
        (pickle.REDUCE, _Examiner.reduce),
        (pickle.NEWOBJ, _Examiner.new_object),
        (pickle.BUILD, _Examiner.build),
        (pickle.BINPERSID, _Examiner.persistent),
        (pickle.APPEND, _Examiner.append),
        (pickle.APPENDS, _Examiner.appends),
        (pickle.SETITEM, _Examiner.set_item),
        (pickle.SETITEMS, _Examiner.set_items),
        (pickle.TUPLE, _Examiner.tuple_of_items),
        (pickle.TUPLE1, lambda self: self.short_tuple(1)),
        (pickle.TUPLE2, lambda self: self.short_tuple(2)),
        (pickle.TUPLE3, lambda self: self.short_tuple(3)),
        (pickle.NONE, lambda self: self.constant(None)),
        (pickle.NEWFALSE, lambda self: self.constant(False)),
        (pickle.NEWTRUE, lambda self: self.constant(True)),
        (pickle.EMPTY_TUPLE, lambda self: self.constant(())),
        (pickle.EMPTY_LIST, lambda self: self.constant([])),
        (pickle.EMPTY_DICT, lambda self: self.constant({})),
        (pickle.BININT, lambda self: self.constant(self.number("<i"))),
        (pickle.BININT1, lambda self: self.constant(self.number("<B"))),
        (pickle.BININT2, lambda self: self.constant(self.number("<H"))),
        (pickle.BINFLOAT, lambda self: self.constant(self.number(">d"))),
        (pickle.BINUNICODE, _Examiner.text),
        (pickle.SHORT_BINSTRING, _Examiner.short_text),
        (pickle.LONG1, _Examiner.long),
        (pickle.BINGET, lambda self: self.get("<B")),
        (pickle.LONG_BINGET, lambda self: self.get("<I")),
        (pickle.BINPUT, lambda self: self.put("<B")),
        (pickle.LONG_BINPUT, lambda self: self.put("<I")),
    )
}
