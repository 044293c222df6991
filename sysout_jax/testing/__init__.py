"""Planted models: small LLaMAs whose outliers are known by construction, to test analyses against the truth.

`truth` says what is planted, `draw` chooses what a plan leaves open, `circuit` writes it into the weights, `plants` puts them together.
"""

from sysout_jax.testing.plants import demo_model, demo_plant, planted_llama, random_plant
from sysout_jax.testing.truth import Birth, BirthTruth, Planted, PlantedTruth, SinkTruth

__all__ = [
    "Birth",
    "BirthTruth",
    "Planted",
    "PlantedTruth",
    "SinkTruth",
    "demo_model",
    "demo_plant",
    "planted_llama",
    "random_plant",
]
