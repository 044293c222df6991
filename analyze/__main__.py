"""python -m analyze: which analyses there are."""

from __future__ import annotations

import sys

from analyze.commands import COMMANDS
from sysout_jax.commands.cli import run, say
from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name


def main() -> None:
    words = sys.argv[1:]
    if words and words[0] not in ("-h", "--help"):
        near = words[0] if words[0] in COMMANDS else "lifecycle"
        raise InputError(
            f"python -m analyze {printable_name(words[0])}: unknown; write python -m analyze.{near}, with a point, or see python -m analyze --help"
        )
    width = max(map(len, COMMANDS))
    lines = [f"  python -m analyze.{name:<{width}}  {does}" for name, does in COMMANDS.items()]
    say(
        "\n".join(
            [
                "What the outliers of a language model are and do. All take --ckpt and --help:",
                *lines,
            ]
        )
    )


if __name__ == "__main__":
    run(main)
