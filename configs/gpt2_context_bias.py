"""GPT-2 124M with a learnt vector, weighted by an extra key, variant (c) of An et al. 2025, trained as in its appendix B.3.

    python -m train.prepare --source openwebtext.jsonl.xz --tokenizer path/to/gpt2/tokenizer.json --out data/openwebtext
    python -m train --config configs/gpt2_context_bias.py --workdir runs/gpt2_context_bias

Cost: 50,000 steps of 491,520 tokens; the paper's text says about 2 billion tokens in all, its code runs all steps (24.6 B); `--tokens
2000000000` stops there. Result: not trained by us yet; the paper reports validation losses near nanoGPT's 2.85 to 2.9.
"""

import dataclasses
from pathlib import Path

from sysout_jax.training.config import load_config

base = load_config(Path(__file__).with_name("gpt2_default.py"))
config = dataclasses.replace(base, model=dataclasses.replace(base.model, attention="context_bias"))
