"""Find, explain and remove systematic outliers in large language models.

import sysout_jax as so
lm = so.load(path)
tokens = so.tokens(lm, text)
logits, taps = so.capture(lm, tokens)
stats = so.collect(lm, tokens)
report = so.lifecycle(lm, tokens)
edited = so.intervene(lm, tokens)
writers = so.census(lm, tokens)
clean = so.absorb(lm, tokens)
compressed = so.compression(lm, tokens)
"""

# First: our commands can be interrupted while the rest is imported.
from sysout_jax import interrupts as interrupts  # noqa: I001
from sysout_jax.capture import TAPS
from sysout_jax.analyses.absorb.measure import absorb
from sysout_jax.analyses.absorb.results import Absorption
from sysout_jax.analyses.census.measure import census
from sysout_jax.analyses.census.results import Census
from sysout_jax.analyses.compression.results import Compression
from sysout_jax.analyses.compression.measure import compression
from sysout_jax.engine import capture
from sysout_jax.errors import InputError
from sysout_jax.analyses.intervene.measure import Interventions, intervene
from sysout_jax.language_model import LanguageModel
from sysout_jax.loading import load
from sysout_jax.statistics.collect import Stats, collect
from sysout_jax.analyses.consistency.measure import consistency
from sysout_jax.analyses.existence.measure import existence
from sysout_jax.analyses.length.measure import by_length
from sysout_jax.analyses.lifecycle.measure import lifecycle
from sysout_jax.analyses.positions.measure import positions
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.perplexity import perplexity
from sysout_jax.analyses.variants.measure import VariantProfile, variant_profile
from sysout_jax.windows import tokens
from sysout_jax.training.monitor import monitor_layer
from sysout_jax.version import __version__

__all__ = [
    "TAPS",
    "Absorption",
    "Census",
    "Compression",
    "InputError",
    "Interventions",
    "LanguageModel",
    "Lifecycle",
    "Stats",
    "VariantProfile",
    "__version__",
    "absorb",
    "by_length",
    "capture",
    "census",
    "collect",
    "compression",
    "consistency",
    "existence",
    "intervene",
    "lifecycle",
    "load",
    "monitor_layer",
    "perplexity",
    "positions",
    "tokens",
    "variant_profile",
]
