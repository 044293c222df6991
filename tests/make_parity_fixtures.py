"""Write tests/fixtures/parity: small random models and what their original implementations compute.

    python -m tests.make_parity_fixtures        (needs torch and transformers; seconds)

The result is committed, so that the comparison runs where neither is installed. Rerun only when a case is added or changed.
"""

from __future__ import annotations

import shutil
import zlib

import numpy as np

from tests.parity_cases import CASES, FIXTURES, REFERENCE, write_case


def main() -> None:
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for name in CASES:
        directory = FIXTURES / name
        # the seed depends on the name alone: adding a case changes no other fixture
        found = write_case(name, zlib.crc32(name.encode()), directory)
        np.savez_compressed(directory / REFERENCE, **found)
        size = sum(file.stat().st_size for file in directory.iterdir())
        print(f"{name}: {size / 1024:.0f} KiB")
    total = sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file())
    print(f"{FIXTURES}: {total / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
