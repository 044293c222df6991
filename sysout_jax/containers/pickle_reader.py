"""Reads the pickles of torch.save as data: a stack machine of the few opcodes they need, in which nothing can be executed.

Python's own unpickler calls what a pickle names and sets attributes of what it finds. Here a name is either in the table of
known ones or the end of the reading, the table's functions are all that is ever called, and no attribute is ever set.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_LITERALS = (
    """BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8""".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
MOST_OPCODES = 500_000  # GPT-2 XL with its optimiser takes 60,000; these take about a second
MOST_KEY = 2**60  # integers below hash to themselves: no choice of them makes a dict slow
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class ForbiddenName(Exception):
    """The pickle names something that is not in the table; the message is that name."""


def read_pickle(
    data: bytes, known: Mapping[str, Any], persistent_load: Callable[[Any], Any]
) -> Any:
    """The object that a pickle (protocol 2 or later) describes, of dicts, lists, tuples and scalars.

    `known` gives what stands for each name that may occur: a function that will be called with the arguments in the pickle,
    or a plain value. `persistent_load` gets every persistent id. Raises ForbiddenName for another name, and ValueError,
    TypeError, IndexError or KeyError for a damaged pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count >= MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _TUPLES:
            length = _TUPLES[name]
            stack[-length:] = [tuple(stack[-length:])]
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _set_items(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _of_type(stack[-1], list).extend(items)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_of_type(argument, int)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_of_type(argument, int)])
        elif name in ("GLOBAL", "INST"):
            stack.append(_known(known, str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_known(known, f"{_of_type(module, str)}.{_of_type(attribute, str)}"))
        elif name == "REDUCE":
            arguments, function = _of_type(stack.pop(), tuple), stack.pop()
            stack.append(function(*arguments))  # data is not callable, so it is one of the known
        elif name == "BUILD":
            stack.pop()  # the metadata of a state dict, which would become an attribute
        elif name == "BINPERSID":
            stack.append(persistent_load(stack.pop()))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"opcode {name} does not occur in torch files")
    (result,) = stack
    return result


def _known(known: Mapping[str, Any], name: str) -> Any:
    if name not in known:
        raise ForbiddenName(name)
    return known[name]


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            raise TypeError(f"{type(key).__name__} as a key")
        if isinstance(key, int) and abs(key) >= MOST_KEY:
            raise ValueError("a key beyond 2^60")
        _of_type(target, dict)[key] = value
