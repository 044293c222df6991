"""Tests of sysout_jax, laid out like the package."""
