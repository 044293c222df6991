"""Capture records exactly what it says, and changes no bit of what the model computes."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from flax import linen as nn

import sysout_jax as so
from sysout_jax.capture import COLLECTION, flatten_taps, hooked, record, tap
from sysout_jax.config import ATTENTION
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.models import parameter_shapes
from tests.models.random_models import CONFIGS, random_model, random_tokens
from tests.parameters import mostly_endurance

pytestmark = pytest.mark.optimised

#: What only variants and other families have.
ELSEWHERE = {"attn_scale", "sink_mass", "down_gain", "expert", "expert_weight"}
DEFAULT = set(so.TAPS) - ELSEWHERE
FAMILY_TAPS = {"llama": DEFAULT, "gpt2": DEFAULT - {"gate"}}
MODELS = [
    ("llama", "float32"),
    ("llama-mqa-tied", "bfloat16"),
    ("gpt2", "float32"),
    ("gpt2-nanogpt", "bfloat16"),
]
SUBSETS = [(), ("h", "lse"), ("attn_map",)]


def bits(array) -> bytes:
    return np.asarray(array).tobytes()


def recording(lm: so.LanguageModel):
    """The whole model with everything recorded: parameters and tokens to logits and intermediates."""
    return lambda params, tokens: lm.module.apply({"params": params}, tokens, mutable=[COLLECTION])


@pytest.mark.parametrize("name", CONFIGS)
def test_exact_key_set(name):
    lm = random_model(name, 0)
    _, state = jax.eval_shape(recording(lm), lm.params, random_tokens(0))
    assert set(state[COLLECTION]) == {f"layer_{l}" for l in range(lm.num_layers)}
    for layer in state[COLLECTION].values():
        assert set(flatten_taps(layer)) == FAMILY_TAPS[lm.config.family]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_captured_shapes(name):
    lm = random_model(name, 0)
    c, names = lm.config, FAMILY_TAPS[lm.config.family]
    sizes = {"B": 2, "T": 13, "S": 13, "D": c.d_model, "F": c.d_ff, "H": c.num_heads}
    sizes |= {"K": c.num_kv_heads, "Dh": c.head_dim}
    _, taps = so.capture(lm, random_tokens(0), tuple(names))
    assert set(taps) == names
    for tapped, value in taps.items():
        # the table in capture.TAPS is documentation that cannot go stale
        axes = so.TAPS[tapped].partition(")")[0].strip("(").split(", ")
        assert value.shape == (c.num_layers, *(sizes[axis] for axis in axes)), tapped
        assert np.isfinite(value).all(), tapped


def test_unknown_names_raise():
    lm = random_model("gpt2", 0)
    with pytest.raises(ValueError, match="attention_map.*attn_map"):
        so.capture(lm, random_tokens(0), ("h", "attention_map"))
    with pytest.raises(ValueError, match="does not record gate"):
        so.capture(lm, random_tokens(0), ("gate",))


def assert_same_bits(lm: so.LanguageModel, wrap) -> None:
    tokens = random_tokens(6)
    plain = wrap(lambda params, tokens: lm.module.apply({"params": params}, tokens))
    logits, state = wrap(recording(lm))(lm.params, tokens)
    assert state[COLLECTION]
    assert bits(plain(lm.params, tokens)) == bits(logits)


@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_capture_changes_no_bit_of_the_logits(name, dtype):
    assert_same_bits(random_model(name, 5, dtype), jax.jit)


@pytest.mark.parametrize(
    ("name", "attention"),
    mostly_endurance(
        itertools.product(["llama", "gpt2"], ATTENTION[1:]),
        usual=list(zip(["gpt2", "llama"] * 3, ATTENTION[1:], strict=False)),
    ),
)
def test_capture_changes_no_bit_with_any_variant(name, attention):
    seed = int(np.random.default_rng().integers(2**31))
    print("seed", seed)
    assert_same_bits(random_model(name, seed, attention=attention), jax.jit)


@pytest.mark.parametrize(("name", "dtype"), [("llama", "bfloat16"), ("gpt2", "float32")])
def test_capture_changes_no_bit_of_eager_logits(name, dtype):
    assert_same_bits(random_model(name, 5, dtype), lambda function: function)


@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_what_is_captured_changes_no_bit_of_the_logits(name, dtype):
    lm, tokens = random_model(name, 7, dtype), random_tokens(8)
    everything = tuple(sorted(FAMILY_TAPS[lm.config.family]))
    full_logits, full = so.capture(lm, tokens, everything)
    for names in SUBSETS:
        logits, taps = so.capture(lm, tokens, names)
        assert bits(logits) == bits(full_logits), names
        assert set(taps) == set(names)
        for tapped in names:
            if tapped != "attn_map":  # made for the record only, so its last bit may depend on it
                assert bits(taps[tapped]) == bits(full[tapped]), (names, tapped)


@pytest.mark.parametrize("name", ["llama-mha-biases", "gpt2-untied"])
def test_streamed_capture_equals_the_whole_model(name):
    lm, tokens = random_model(name, 9), random_tokens(10)
    logits, taps = so.capture(lm, tokens, ("h",))
    want, state = jax.jit(recording(lm))(lm.params, tokens)
    h = [flatten_taps(layer)["h"] for layer in state[COLLECTION].values()]
    # compiled layer by layer or as a whole, sums are rounded in another order
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(taps["h"], h, rtol=1e-5, atol=2e-5)


class Tapper(nn.Module):
    """A module that taps `h` as often as it is told, and may have a child of that name."""

    writes: int = 1
    name_of_tap: str = "h"
    child: str | None = None

    @nn.compact
    def __call__(self, x):
        if self.child:
            x = nn.Dense(3, name=self.child)(x)
        for _ in range(self.writes):
            tap(self, self.name_of_tap, x)
        return x


def run_tapper(module: nn.Module):
    x = np.ones((1, 3), np.float32)
    return module.apply(module.init(jax.random.key(0), x), x, mutable=[COLLECTION])


def test_a_tap_is_written_once():
    assert set(run_tapper(Tapper())[1][COLLECTION]) == {"h"}
    with pytest.raises(ValueError, match="'h' was written twice"):
        run_tapper(Tapper(writes=2))


def test_a_tap_without_an_entry_in_the_table_fails():
    with pytest.raises(ValueError, match="'hidden' is not in capture.TAPS"):
        run_tapper(Tapper(name_of_tap="hidden"))


def test_a_tap_named_like_a_child_module_fails():
    with pytest.raises(ValueError, match='Duplicate use of scope name: "h"'):
        run_tapper(Tapper(child="h"))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_module_is_named_like_a_tap(name):
    paths = jax.tree_util.tree_leaves_with_path(parameter_shapes(CONFIGS[name]))
    modules = {key.key for path, _ in paths for key in path[:-1]}
    assert not modules & set(so.TAPS)


def test_two_submodules_may_not_write_one_tap():
    with pytest.raises(ValueError, match="'h' is written by two submodules"):
        flatten_taps({"attn": {"h": 1}, "mlp": {"h": 2}})


def test_nothing_is_recorded_or_computed_unasked():
    def explode():
        raise AssertionError("evaluated although nobody records")

    class Lazy(nn.Module):
        @nn.compact
        def __call__(self, x):
            record(self, "attn_map", explode)
            return x

    assert Lazy().apply({}, 1.0) == 1.0
    with pytest.raises(AssertionError):
        Lazy().apply({}, 1.0, mutable=[COLLECTION])


#: What a model goes on with, so that a hook may replace it.
WRITABLE = set(so.TAPS) - {"lse", "attn_map", "attn_sums", "attn_scale", "sink_mass", "down_gain"}


@pytest.mark.parametrize("name", ["llama-mqa-tied", "gpt2"])
def test_a_hook_is_what_the_model_goes_on_with(name):
    lm, tokens = random_model(name, 1), random_tokens(1)
    plain, _ = so.capture(lm, tokens, ())
    seen = set()

    def changed(name: str | None):
        def hook(tap_name, value):
            seen.add(tap_name)
            return value * 0.5 if tap_name == name else value

        with hooked(hook):
            return np.asarray(lm.module.apply({"params": lm.params}, tokens))

    unhooked = np.asarray(lm.module.apply({"params": lm.params}, tokens))
    assert changed(None).tobytes() == unhooked.tobytes()
    assert seen == WRITABLE & FAMILY_TAPS[lm.config.family]
    for tap_name in sorted(seen):
        assert np.abs(changed(tap_name) - unhooked).max() > 1e-4, tap_name
    np.testing.assert_allclose(so.capture(lm, tokens, ())[0], plain)  # nothing is left of it


def test_a_head_without_output_is_one_without_rows_of_the_projection():
    lm, tokens = random_model("llama", 2), random_tokens(2)
    head, Dh = 1, lm.config.head_dim

    def write(name, value, extra):
        return value.at[:, :, head].set(0.0) if name == "attn_heads" else value

    stream = Stream(lm, tokens)
    for _ in stream.layers(observe_nothing, write=write):
        pass

    def without_rows(params):
        kernel = np.array(params["attn"]["o_proj"]["kernel"])
        kernel[head * Dh : (head + 1) * Dh] = 0.0
        return params | {
            "attn": params["attn"] | {"o_proj": {**params["attn"]["o_proj"], "kernel": kernel}}
        }

    edited = lm.with_edits({f"layer_{l}": without_rows for l in range(lm.num_layers)})
    np.testing.assert_allclose(stream.logits(), so.capture(edited, tokens, ())[0], atol=1e-5)
