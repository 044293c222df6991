"""Tokens as a reader sees them: what a terminal would obey is escaped, whatever a vocabulary holds."""

from __future__ import annotations

import pytest
import tokenizers

from sysout_jax.data.tokenizers import Tokenizer, byte_tokenizer

SHOWN = {
    " and": "_and",
    "\n": "\\n",
    "a\x1b[2Jb": "a\\x1b[2Jb",
    "\x07": "\\x07",
    "\x9b1m": "\\x9b1m",
    "back\u202ewards": "back\\u202ewards",
    "non\u00a0breaking": "non\\xa0breaking",
    "\u2028": "\\u2028",
    "naïve 河": "naïve_河",
}


@pytest.mark.parametrize("piece", SHOWN)
def test_shown(piece):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({piece: 0}, unk_token=piece))
    assert Tokenizer(backend).token(0) == SHOWN[piece]


def test_control_codes_of_a_byte_vocabulary():
    assert [byte_tokenizer().token(i) for i in (0, 27, 127)] == ["\\x00", "\\x1b", "\\x7f"]


def test_a_token_of_a_megabyte_is_cut():
    piece = "x" * 2**20
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({piece: 0}, unk_token=piece))
    assert len(Tokenizer(backend).token(0)) <= 120
