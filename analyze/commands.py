"""Every analysis command and what it does, in one line."""

from __future__ import annotations

COMMANDS = {
    "all": "the eight analyses of a model and a text, with an index page; costs less than one after the other",
    "lifecycle": "birth, spread, death and cause of the outliers",
    "positions": "in which layers, tokens, channels, matrices, keys and heads they are",
    "consistency": "whether outliers of weights, activations and attention coincide",
    "existence": "what they look like, as landscapes and an attention map",
    "length": "which tokens carry them as a text grows, with and without BOS",
    "variants": "trained models side by side: outliers, scales, loss",
    "intervene": "the model without them, beside random controls",
    "census": "the strongest writers taken away one by one and in pairs: rank beside severity",
    "absorb": "outliers removed without training: a prefix made part of the model",
    "compare": "two finished lifecycles side by side, differences in sentences",
    "compression": "perplexity under quantisation and pruning, and their part in it",
}
