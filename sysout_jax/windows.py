"""`so.tokens`: the windows of a text that the commands cut."""

from __future__ import annotations

import numpy as np

from sysout_jax.calls import check_arguments
from sysout_jax.checks import Flag, Whole, check, scalar, shown
from sysout_jax.data.text import text_windows
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel


def tokens(
    lm: LanguageModel, text: str, num_seqs: int = 10, seq_len: int = 1024, bos: bool = False
) -> np.ndarray:
    """The first windows of a text that do not overlap, (N, T) int32, of at most the model's context; with `bos` each starts with BOS.

    Fewer where the text is shorter, and one shorter window where it does not fill one. Raises InputError for a model without a
    tokenizer (or BOS, where it is asked for) and for a text that gives no token.
    """
    check_arguments(lm)
    if not isinstance(text, str):
        raise InputError(f"text is {shown(text)}; expected a str")
    check("num_seqs", scalar(num_seqs), Whole())
    check("seq_len", scalar(seq_len), Whole())
    check("bos", bos, Flag())
    if lm.tokenizer is None:
        raise InputError(f"{lm.name}: has no tokenizer, so no text can be read; load it with one")
    return text_windows(
        lm.tokenizer, text, int(num_seqs), min(int(seq_len), lm.config.context_length), bos
    )
