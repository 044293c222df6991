"""What comes from outside is shown on one line, without control codes, at a bounded length."""

from __future__ import annotations

import pytest

from sysout_jax.errors import InputError
from sysout_jax.notices import warn_once
from sysout_jax.printable import LONGEST, printable, printable_name
from sysout_jax.storage.serialise import read_json_object


@pytest.mark.parametrize(
    "given, shown",
    [
        ("plain text, 3 × τ", "plain text, 3 × τ"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("two\nlines\tand  spaces", "two lines and spaces"),
        ("back\u202ewards", "back\\u202ewards"),
        ("half \ud800 pair", "half \\ud800 pair"),
        ("bell\a", "bell\\x07"),
    ],
)
def test_nothing_reaches_the_terminal_raw(given, shown):
    assert printable(given) == shown


def test_warnings_are_shown_like_that_too(caplog):
    warn_once("a directory called a\x1b[31mred\n" + "x" * 10**6)
    (line,) = caplog.messages
    assert line.startswith("a directory called a\\x1b[31mred xxx") and len(line) <= LONGEST


def test_long_names_are_cut_in_the_middle():
    name = "a" * 500_000 + "b" * 500_000
    assert len(printable_name(name)) <= 120
    assert printable_name(name).startswith("aaa") and printable_name(name).endswith("bbb")
    assert len(printable("x\x1b" * 2000)) <= LONGEST


@pytest.mark.parametrize(
    "content, says",
    [
        (b"[1, 2]", "got list"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not readable JSON"),
        (b"", "not readable JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable JSON"),
    ],
)
def test_json_that_is_none(tmp_path, content, says):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json_object(path, "download it again")
    message = str(caught.value)
    assert says in message and message.endswith("download it again") and "\n" not in message


def test_json_that_is_not_there_or_a_directory(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_json_object(tmp_path / "none.json", "do this")
    with pytest.raises(InputError, match="not a file"):
        read_json_object(tmp_path, "do this")
