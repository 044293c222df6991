"""The prefix as a cache of transformers' own: their model with it computes what ours computes with the prefix absorbed."""

from __future__ import annotations

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.compress.absorption import absorbed, prefix_keys
from sysout_jax.compress.prefix_cache import CACHE, SCRIPT, cache_files
from tests.families.cases import CASES, random_tokens, save, transformers_model

PREFIX = (5, 0, 7)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj-all-turn", "qwen2"])
def test_transformers_reads_the_cache(name, tmp_path):
    """By the lines that come with it, those about a tokenizer left out: this model has none."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = save(transformers_model(CASES[name], 0), tmp_path / "model")
    lm, tokens = so.load(path), random_tokens(0)
    held = prefix_keys(lm, PREFIX)
    files = cache_files(lm.config, held, 'a "model"', "“\\n”")
    assert set(files) == {CACHE, SCRIPT}
    (tmp_path / CACHE).write_bytes(files[CACHE])
    lines = files[SCRIPT].decode().split("\ninputs = ")[0]
    compile(files[SCRIPT], SCRIPT, "exec")
    lines = "\n".join(line for line in lines.splitlines() if not line.startswith("tokenizer ="))
    lines = lines.replace('"..."', repr(str(path))).replace(CACHE, str(tmp_path / CACHE))
    theirs: dict = {}
    exec(lines, theirs)
    with torch.no_grad():
        cache = theirs["prefix_cache"](len(tokens))
        logits = theirs["model"](torch.tensor(tokens).long(), past_key_values=cache).logits
    ours, _ = so.capture(absorbed(lm, held), tokens, ())
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4 * max(1.0, np.abs(ours).max()))
    plain, _ = so.capture(lm, tokens, ())
    assert np.abs(plain - ours).max() > 0.01  # the prefix matters
