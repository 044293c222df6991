"""Settings that hold for all tests, and the fixtures that more than one of them needs."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax
# What one test compiled, the processes that others start need not compile again. Every worker has a cache of its own: jax
# writes entries in place, and what is read half-written, or was left so by a killed process, is none.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sysout-jax-cache-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Most of a test's time goes to compiling: see `compiler` below. Processes that tests start read this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# XLA's older code generator for CPUs compiles in a third of the time. XLA ends the process for a flag that it does not know,
# so another release than these were tried with does without.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = " ".join(
        (
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
            os.environ.get("XLA_FLAGS", ""),
        )
    )

import jax
import pytest

from tests.parity_cases import FIXTURES, REFERENCE

# (B, T) + (T,) is a mistake more often than a wish: the library spells every broadcast out
jax.config.update("jax_numpy_rank_promotion", "raise")
# Sweeping through all that jax, torch and transformers hold, again and again, costs a twentieth of the time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real models and texts that lies beside the repository, or where SYSOUT_SHARED points."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    data = Path(os.environ.get("SYSOUT_SHARED") or beside) / "data"
    if not data.is_dir():
        pytest.skip(f"{data} is not there: it holds a trained model and texts that are not shipped")
    return data


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo's file, fetched where it is not in the user's cache."""
    from sysout_jax.data.demo_checkpoint import demo_checkpoint
    from sysout_jax.errors import InputError

    try:
        return demo_checkpoint()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def hf_copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copies the Hugging Face directory of a parity case to a place where a test may damage it."""

    def copy(case: str) -> Path:
        return Path(
            shutil.copytree(
                FIXTURES / case, tmp_path / case, ignore=shutil.ignore_patterns(REFERENCE)
            )
        )

    return copy


MAPS = Path("/proc/self/maps")  # Linux
MOST_MAPS = 15_000
MOST_MAPS_WITHIN_A_MODULE = 40_000


def _maps() -> int:
    return MAPS.read_bytes().count(b"\n") if MAPS.exists() else 0


@pytest.fixture(autouse=True)
def _few_maps():
    """Within a module what was compiled is kept as long as there is room."""
    yield
    if _maps() > MOST_MAPS_WITHIN_A_MODULE:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def compiler(request: pytest.FixtureRequest):
    """XLA's optimisations, which cost half of the time of all tests, are for the modules that claim something about the
    compiled code (`pytestmark = pytest.mark.optimised`), and for the processes that they start.

    Every compiled program holds memory maps, of which a process may have 65,530: thousands of tests would crash it.
    """
    optimised = request.node.get_closest_marker("optimised") is not None
    changed = jax.config.read("jax_disable_most_optimizations") == optimised
    jax.config.update("jax_disable_most_optimizations", not optimised)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(not optimised).lower()
    if changed or _maps() > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
