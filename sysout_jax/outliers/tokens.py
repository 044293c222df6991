"""Classes of tokens: where a token stands and what it means, because outliers choose tokens that mean little.

Sun et al. 2024 find massive activations at the initial token, at strong delimiters and at words of weak semantics; An et al. 2025
(Figures 3b and 6b) count start tokens, "." and "▁". Both count the same here, in one list that can be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.storage.serialise import read_json_object

#: (sequence, position) → the token there as a reader should see it.
TokenText = Callable[[int, int], str]

INITIAL, OTHER = "initial", "other"
#: Class → texts that belong to it. " " stands for any blank without a line end, "\n" for any blank with one.
LISTS: dict[str, tuple[str, ...]] = {
    "strong delimiter": (".", "\n", "!", "?", ";", ":", "</s>", "<|endoftext|>"),
    "weak semantic": (
        *(" ", ",", "_", "-", "--", "–", "—", "'", '"', "’", "“", "”", "(", ")", "'s", "’s"),
        *"a an the and or but nor so of in on at to for from by with as into than that this these those".split(),
        *"it its is are was were be been being am do does did has have had will would".split(),
    ),
}


@dataclass(frozen=True)
class TokenClasses:
    """The classes in order of precedence: initial, those of `lists`, other.

    A text belongs to a class when its list holds it, surrounding spaces and case aside; a sign repeated counts as one. Words count
    only where they are whole words: the "a" of "cat" does not.
    """

    lists: Mapping[str, Sequence[str]] = field(default_factory=lambda: LISTS)

    def __post_init__(self) -> None:
        taken = [name for name in (INITIAL, OTHER) if name in self.lists]
        if taken:
            raise InputError(
                f"token class {taken[0]!r} is reserved: it is defined by where a token stands; name another one"
            )

    @classmethod
    def from_file(cls, path: Path) -> TokenClasses:
        """A JSON object, class → list of texts. Raises InputError when it is anything else."""
        lists = read_json_object(path, "expected a JSON object of lists of texts")
        if not (
            all(isinstance(texts, list) for texts in lists.values())
            and all(isinstance(text, str) and text for texts in lists.values() for text in texts)
        ):
            raise InputError(
                f'{path}: expected a JSON object of lists of texts, like {{"delimiter": [".", "\\n"]}}'
            )
        return cls(lists)

    @property
    def names(self) -> tuple[str, ...]:
        return (INITIAL, *self.lists, OTHER)

    def of_text(self, text: str) -> str:
        """The class of a token that is not the first of its sequence and stands as a whole word."""
        key = text.strip(" ").casefold() or " "
        if not text.strip():
            key = "\n" if "\n" in text else " "
        elif len(set(key)) == 1 and not key[0].isalnum():
            key = key[0]
        classes = (n for n, texts in self.lists.items() if key in {t.casefold() for t in texts})
        return next(classes, OTHER)

    def classify(self, tokens_NxT: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """(N, T) int: index into `names`. A token is initial at position 0, and wherever it is BOS."""
        tokens = np.asarray(tokens_NxT)
        ids, at = np.unique(tokens, return_inverse=True)
        texts = [tokenizer.text(i) for i in ids]

        def of_tokens(values) -> np.ndarray:
            return np.array(list(values))[at].reshape(tokens.shape)

        classes = of_tokens(self.names.index(self.of_text(text)) for text in texts)
        opens = of_tokens(_in_word(text[:1]) for text in texts)
        closes = of_tokens(_in_word(text[-1:]) for text in texts)
        # part of a longer word: a letter joins one of the token before or after it
        joined = np.zeros(tokens.shape, bool)
        inside = closes[:, :-1] & opens[:, 1:]
        joined[:, 1:] |= inside
        joined[:, :-1] |= inside
        classes = np.where(joined, self.names.index(OTHER), classes)
        if tokenizer.bos_id is not None:
            classes = np.where(tokens == tokenizer.bos_id, 0, classes)
        classes[:, 0] = 0
        return classes


def _in_word(character: str) -> bool:
    return character.isalnum()
