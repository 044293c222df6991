"""A prefix to absorb, as flags give it."""

from __future__ import annotations

import re

import sysout_jax as so
from analyze.limits import prompt_text

_IDS = re.compile(r"\d+([ ,]+\d+)*")


def prefix_tokens(flag: str, given: str, lm: so.LanguageModel) -> list[int]:
    """Token ids from text, in which \\n and \\t are written out, or from ids. InputError for ids beyond the vocabulary and for no token."""
    if _IDS.fullmatch(given):
        ids = [int(token) for token in re.findall(r"\d+", given)]
        if max(ids) >= lm.config.vocab_size:
            raise so.InputError(
                f"{flag} {given}: the model's vocabulary has {lm.config.vocab_size:,} entries, from 0 on"
            )
        return ids
    assert lm.tokenizer is not None
    text = prompt_text(given).replace("\\n", "\n").replace("\\t", "\t")
    ids = lm.tokenizer.encode(text)
    if not ids:
        raise so.InputError(f"{flag}: gives no token; expected some text or token ids")
    return ids
