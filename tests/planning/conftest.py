"""Plans are made of the same tiny run that trainings are tested with."""

from tests.training.conftest import config, data

__all__ = ["config", "data"]
