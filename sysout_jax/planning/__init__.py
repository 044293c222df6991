"""Plans of runs on TPU slices that are not there."""

from sysout_jax.planning.plan import GIB, Plan, plan_analysis, plan_training

__all__ = ["GIB", "Plan", "plan_analysis", "plan_training"]
