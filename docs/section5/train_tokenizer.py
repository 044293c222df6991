"""A byte-level BPE tokenizer of 4,096 tokens from the first hundred books, for the runs on text.

python docs/section5/train_tokenizer.py books.jsonl.xz tokenizer.json
"""

from __future__ import annotations

import itertools
import json
import lzma
import sys

from tokenizers import ByteLevelBPETokenizer

BOOKS = 100
TOKENS = 4096


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("Give the books, one JSON object with a text per line, and the tokenizer's file to write.")  # fmt: skip
    source, target = sys.argv[1:]
    with lzma.open(source, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, BOOKS)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=TOKENS, special_tokens=["<|endoftext|>"])
    tokenizer.save(target)


if __name__ == "__main__":
    main()
