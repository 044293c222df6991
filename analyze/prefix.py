"""A prefix to absorb, as flags give it."""

from __future__ import annotations

import re

import sysout_jax as so
from analyze.limits import flag_text
from sysout_jax.printable import printable_name

_ID = "[0-9]{1,18}"
_IDS = re.compile(f"{_ID}([ ,]+{_ID})*")
_NEARLY_IDS = re.compile("[-+ ,;0-9]*[0-9][-+ ,;]*")


def prefix_tokens(flag: str, given: str, lm: so.LanguageModel) -> list[int]:
    """Token ids from text, in which \\n and \\t are written out, or from ids. InputError for ids beyond the vocabulary, for what is
    nearly a list of ids, and for no token."""
    if _IDS.fullmatch(given):
        ids = [int(token) for token in re.findall(_ID, given)]
        if max(ids) >= lm.config.vocab_size:
            raise so.InputError(
                f"{flag} {printable_name(given)}: the model's vocabulary has {lm.config.vocab_size:,} entries, from 0 on"
            )
        return ids
    if _NEARLY_IDS.fullmatch(given):
        raise so.InputError(
            f"{flag} {printable_name(given)}: neither token ids nor a text; write ids as 198 or 0,198"
        )
    assert lm.tokenizer is not None
    text = flag_text(flag, given).replace("\\n", "\n").replace("\\t", "\t")
    ids = lm.tokenizer.encode(text)
    if not ids:
        raise so.InputError(f"{flag}: gives no token; expected some text or token ids")
    return ids
