"""GGUF files of every family whose architecture the format has: exactly the Hugging Face model that they were made from."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

import sysout_jax as so
from sysout_jax.families import ARCHITECTURES, baichuan, gemma2, phi3
from sysout_jax.families.fields import Fields
from tests.convert.gguf_writer import architecture, write_gguf
from tests.convert.test_gguf import equal
from tests.families import other_layouts
from tests.families.cases import CASES, OTHERS, Case, random_tokens, save, transformers_model
from tests.families.test_families import config_of
from tests.parameters import mostly_endurance

pytestmark = pytest.mark.parity

#: As every published gpt-oss has it.
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "truncate": False,
}
#: Cases of `CASES`, and what of each the format cannot hold.
CHANGES = {
    "llama": {},
    "gpt2": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3-biases": {},
    "qwen2-yarn": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen2_moe": {},
    "qwen2_moe-normalised": {"norm_topk_prob": False},
    "gpt_oss": {"swiglu_limit": 7.0, "rope_scaling": YARN},
    "gpt_oss-no-biases": {"layer_types": None, "sliding_window": 1, "rope_scaling": YARN},
    "mixtral": {},
    "mixtral-window": {"sliding_window": None},
    "phi": {},
    "phi3": {},
    "phi3-partial": {},
    "phi3-longrope": {},
    "phi3-longrope-long": {},
    "gemma": {},
    "gemma-mqa": {"attention_bias": False, "tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 10},
    "gemma3": {"query_pre_attn_scalar": 10, "num_hidden_layers": 6, "layer_types": None},
    "gemma3-linear": {"query_pre_attn_scalar": 8, "num_hidden_layers": 7, "layer_types": None},
    "falcon": {"ffn_hidden_size": 64},
    "falcon-new": {"ffn_hidden_size": 64, "bias": False},
    "falcon-one-norm": {"ffn_hidden_size": 64},
    "gpt_neox": {},
    "gpt_neox-sequential": {},
    "mpt": {},
    "mpt-odd-heads": {"attn_config": {"clip_qkv": 0.9}},
    "olmo": {},
    "olmo-clip": {"attention_bias": False},
    "olmo2": {},
    "olmo2-mha": {},
    "olmo3": {},
    "olmo3-default-layers": {},
    "stablelm": {},
    "stablelm-parallel": {},
    "starcoder2": {"sliding_window": None},
    "starcoder2-no-biases": {"hidden_act": "gelu_pytorch_tanh"},
    "cohere": {},
    "cohere-biases": {"attention_bias": False, "tie_word_embeddings": True},
    "internlm2": {},
    "minicpm": {},
    "baichuan": {},
}
ALL = CASES | OTHERS
FIRST = list({ALL[name].kind: name for name in reversed(CHANGES)}.values())
EVERY = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
#: Rows of whole blocks of every type.
WIDE = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "intermediate_size"), 256),
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 512,
    "ffn_hidden_size": 1024,
    "head_dim": 64,
}
#: Types that the package cannot write, and where in a block of theirs the numbers lie that all others are multiplied with.
BLOCKS = {Type.Q4_K: (0, 2), Type.Q6_K: (208,), Type.IQ4_XS: (0,)}


def hugging_face(name: str, directory: Path, **more) -> Path:
    kind, settings = ALL[name]
    more = {key: value for key, value in more.items() if key in settings}
    case = Case(kind, settings | CHANGES[name] | more)
    if name in OTHERS:
        plain = other_layouts.plain_model(case.settings)
        fields = case.settings | {"model_type": kind}
        return other_layouts.write(directory / "hf", fields, other_layouts.TENSORS[kind](plain))
    pytest.importorskip("transformers")
    return save(transformers_model(case, 0), directory / "hf")


def logits(path: Path) -> np.ndarray:
    return so.capture(so.load(path), random_tokens(0), ())[0]


def test_every_architecture_has_a_case():
    covered = {
        (architecture({"model_type": ALL[name].kind}), config_of(name).family) for name in CHANGES
    }
    assert covered == {
        (arch, family) for arch, families in ARCHITECTURES.items() for family in families
    }


@pytest.mark.parametrize("name", EVERY)
def test_float32_is_the_hugging_face_model_exactly(name, tmp_path):
    hf, path = hugging_face(name, tmp_path), tmp_path / "m.gguf"
    write_gguf(hf, path)
    ours, theirs = so.load(path), so.load(hf)
    if name.startswith("phi3-longrope"):  # which holds one number of its scaling in float32
        scaling = theirs.config.rope_scaling
        magnitude = ours.config.rope_scaling.magnitude
        assert magnitude == pytest.approx(scaling.magnitude, rel=1e-7)
        same = dataclasses.replace(scaling, magnitude=magnitude)
        theirs.config = dataclasses.replace(theirs.config, rope_scaling=same)
    if name == "minicpm":  # likewise
        scale = ours.config.residual_scale
        assert scale == pytest.approx(theirs.config.residual_scale, rel=1e-7)
        theirs.config = dataclasses.replace(theirs.config, residual_scale=scale)
    assert ours.config == theirs.config
    if name.startswith("gemma"):  # its scales + 1 − 1 are rounded, and the same again after + 1
        assert logits(path).tobytes() == logits(hf).tobytes()
    else:
        assert equal(ours, theirs)


@pytest.mark.parametrize("name", ["gemma", "falcon-new", "gpt_neox", "olmo", "gpt2", *OTHERS])
def test_what_the_converter_changed_must_be_undone(name, tmp_path):
    square = {"n_embd": 16, "n_inner": 16} if name == "gpt2" else {}
    hf = hugging_face(name, tmp_path, **square, dim_model_base=64)  # which makes logits larger
    write_gguf(hf, tmp_path / "m.gguf", permute=False)
    if name == "gpt2":  # only square matrices hide it
        with pytest.raises(so.InputError, match="wrong shapes"):
            so.load(tmp_path / "m.gguf")
        return
    assert np.abs(logits(tmp_path / "m.gguf") - logits(hf)).max() > 1


def in_turn(names, kinds) -> list:
    """All pairs; those in which every name has one kind, and the kinds take turns, are for make test."""
    return mostly_endurance(itertools.product(names, kinds), zip(names, itertools.cycle(kinds)))


def case_name(value) -> str:
    return value if isinstance(value, str) else value.name


#: Types that the package `gguf` can write.
WRITTEN = (Type.F16, Type.Q8_0, Type.Q4_1)


def whole_blocks(tensors: dict[str, np.ndarray], kind: Type) -> dict[str, np.ndarray]:
    """The matrices whose rows are whole blocks."""
    size = gguf.GGML_QUANT_SIZES[kind][0]
    return {n: w for n, w in tensors.items() if w.ndim >= 2 and w.shape[-1] % size == 0}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), in_turn(FIRST, WRITTEN), ids=case_name)
def test_quantised_is_what_the_blocks_say(name, kind, tmp_path):
    hf = hugging_face(name, tmp_path, **WIDE)

    def rounded(tensors):
        return tensors | {
            name: gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
            for name, w in whole_blocks(tensors, kind).items()
        }

    write_gguf(hf, tmp_path / "quantised.gguf", quantise=kind)
    write_gguf(hf, tmp_path / "f32.gguf", change=rounded)
    lm = so.load(tmp_path / "quantised.gguf")
    assert equal(lm, so.load(tmp_path / "f32.gguf"))
    assert lm.stored_as["mlp/up_proj/kernel"] == kind.name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), in_turn(FIRST, BLOCKS), ids=case_name)
def test_random_blocks_are_what_the_package_reads(name, kind, tmp_path):
    hf = hugging_face(name, tmp_path, **WIDE)
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rng, raw = np.random.default_rng(int(kind)), {}

    def as_blocks(tensors):
        for name, w in whole_blocks(tensors, kind).items():
            count = w.shape[-1] // size
            each = rng.integers(0, 256, (*w.shape[:-1], count, nbytes), np.uint8)
            for at in BLOCKS[kind]:
                scale = rng.uniform(1e-3, 1e-2, (*each.shape[:-1], 1)).astype(np.float16)
                each[..., at : at + 2] = scale.view(np.uint8)
            raw[name] = each.reshape(*w.shape[:-1], count * nbytes)
        return tensors | raw

    def read(tensors):
        return tensors | {n: gguf.quants.dequantize(each, kind) for n, each in raw.items()}

    write_gguf(hf, tmp_path / "blocks.gguf", change=as_blocks, blocks=kind)
    write_gguf(hf, tmp_path / "f32.gguf", change=read)
    lm = so.load(tmp_path / "blocks.gguf")
    assert equal(lm, so.load(tmp_path / "f32.gguf"))
    assert lm.stored_as["mlp/up_proj/kernel"] == kind.name


def test_the_first_files_of_phi_2_hold_q_k_and_v_together(tmp_path):
    def together(tensors):
        rest = dict(tensors)
        for l in range(2):
            for kind in ("weight", "bias"):
                parts = [rest.pop(f"blk.{l}.attn_{part}.{kind}") for part in "qkv"]
                rest[f"blk.{l}.attn_qkv.{kind}"] = np.concatenate(parts)
        return rest

    hf = hugging_face("phi", tmp_path)
    write_gguf(hf, tmp_path / "m.gguf", change=together)
    assert equal(so.load(tmp_path / "m.gguf"), so.load(hf))


@pytest.mark.parametrize(("context", "window"), [(4096, 2047), (8192, None)])
def test_older_files_of_phi_3_lack_their_window(context, window):
    keys = {"context_length": context, "embedding_length": 16, "feed_forward_length": 24}
    keys |= {"block_count": 2, "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5}
    file = SimpleNamespace(tensors={"token_embd.weight": SimpleNamespace(shape=(32, 16))})
    assert phi3.read_gguf(file, Fields(keys)).sliding_window == window


def test_gemma_2_27b_scales_by_its_width(tmp_path, monkeypatch):
    """Its heads are wider than D/H, and it is told by its number of layers alone."""
    hf = hugging_face("gemma2", tmp_path, query_pre_attn_scalar=4)
    write_gguf(hf, tmp_path / "m.gguf")
    scale = so.load(hf).config.attention_scale
    assert so.load(tmp_path / "m.gguf").config.attention_scale != scale == 0.5
    monkeypatch.setattr(gemma2, "LAYERS_27B", 2)
    assert so.load(tmp_path / "m.gguf").config.attention_scale == scale


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("falcon", {"add_tensor_data_layout": "other"}, "tensor_data_layout = 'other' is not"),
        ("mpt", {"add_max_alibi_bias": 0.0}, "attention.max_alibi_bias is 0.0; expected"),
        ("qwen2", {"add_sliding_window": 8}, "not handled: qwen2.attention.sliding_window=8"),
        ("qwen2", {"add_expert_count": 4}, "not handled: qwen2.expert_count=4"),
        (
            "olmo3",
            {"add_sliding_window_pattern": [True, False, True]},
            "sliding_window_pattern is .*each of 2",
        ),
        (
            "mixtral",
            {"add_expert_gating_func": gguf.ExpertGatingFuncType.SIGMOID},
            "gating_func = 2",
        ),
        ("qwen2-yarn", {"add_rope_scaling_attn_factors": 1.2}, "attn_factor = .* not implemented"),
        (
            "phi3-longrope",
            {"add_rope_scaling_factor": 2.0},
            "rope_factors_long.* expected one scaling",
        ),
        ("phi3", {"add_rope_scaling_attn_factors": 1.2}, "not handled: phi3.rope.scaling.attn_f"),
    ],
)
def test_what_is_not_computed_is_refused(name, keys, says, tmp_path, monkeypatch):
    hf = hugging_face(name, tmp_path)
    write_gguf(hf, tmp_path / "m.gguf", keys=keys)
    with pytest.raises(so.InputError, match=says):
        so.load(tmp_path / "m.gguf")


def test_the_first_files_of_mixtral_hold_every_expert_apart(tmp_path):
    def apart(tensors):
        found = {}
        for name, w in tensors.items():
            if "_exps." in name:
                found |= {name.replace("_exps", f".{e}"): each for e, each in enumerate(w)}
            else:
                found[name] = w
        return found

    hf = hugging_face("mixtral", tmp_path)
    write_gguf(hf, tmp_path / "m.gguf", change=apart)
    lm = so.load(tmp_path / "m.gguf")
    assert equal(lm, so.load(hf)) and lm.stored_as["mlp/down_proj/kernel"] == "F32"


def test_the_first_files_of_qwen_2_with_experts_lack_their_widths(tmp_path, monkeypatch):
    """Then the shared expert is as wide as the MLP of a layer without experts would be, the others together as those that a token goes through."""
    hf = hugging_face("qwen2_moe", tmp_path, intermediate_size=16)
    for name in ("add_expert_feed_forward_length", "add_expert_shared_feed_forward_length"):
        monkeypatch.setattr(gguf.GGUFWriter, name, lambda writer, value: None)
    write_gguf(hf, tmp_path / "m.gguf")
    ours, theirs = so.load(tmp_path / "m.gguf"), so.load(hf)
    assert ours.config == theirs.config and equal(ours, theirs)


def test_the_gate_of_a_shared_expert_is_a_row_or_a_vector(tmp_path):
    def flat(tensors):
        return {n: w.reshape(-1) if "gate_inp_shexp" in n else w for n, w in tensors.items()}

    hf = hugging_face("qwen2_moe", tmp_path)
    write_gguf(hf, tmp_path / "m.gguf", change=flat)
    assert equal(so.load(tmp_path / "m.gguf"), so.load(hf))


def test_experts_in_mxfp4_are_what_their_codes_say(tmp_path):
    """A block is a power of two and 32 codes of four bits, the first 16 in the low halves of its bytes."""
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    hf = hugging_face("gpt_oss", tmp_path, **sizes)
    steps = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values, rng = np.concatenate([steps, -steps]), np.random.default_rng(0)
    blocks, plain = {}, {}

    def as_codes(tensors):
        for name, w in tensors.items():
            if not name.endswith("_exps.weight"):
                continue
            shape = (*w.shape[:-1], w.shape[-1] // 32)
            codes = rng.integers(0, 16, (*shape, 32), dtype=np.uint8)
            exponents = rng.integers(120, 130, (*shape, 1), dtype=np.uint8)
            plain[name] = values[codes] * np.exp2(exponents.astype(np.float32) - 127)
            plain[name] = plain[name].reshape(w.shape)
            packed = codes[..., :16] | codes[..., 16:] << 4
            blocks[name] = np.concatenate([exponents, packed], -1).reshape(*w.shape[:-1], -1)
        return tensors | plain

    write_gguf(hf, tmp_path / "f32.gguf", change=as_codes)
    write_gguf(hf, tmp_path / "mxfp4.gguf", change=lambda tensors: tensors | blocks)
    lm = so.load(tmp_path / "mxfp4.gguf")
    assert lm.stored_as["mlp/down_proj/kernel"] == "MXFP4" and len(blocks) == 6
    assert equal(lm, so.load(tmp_path / "f32.gguf"))


def test_the_first_files_of_minicpm_lack_its_scales(tmp_path, monkeypatch):
    """They are those of the published models."""
    published = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
    hf = hugging_face("minicpm", tmp_path, **published)
    for name in ("add_embedding_scale", "add_residual_scale", "add_logit_scale"):
        monkeypatch.setattr(gguf.GGUFWriter, name, lambda writer, value: None)
    write_gguf(hf, tmp_path / "m.gguf")
    ours, theirs = so.load(tmp_path / "m.gguf"), so.load(hf)
    assert ours.config == theirs.config and equal(ours, theirs)
    assert logits(tmp_path / "m.gguf").tobytes() == logits(hf).tobytes()


def test_long_rope_of_minicpm_does_not_say_from_where_on(tmp_path):
    def long(tensors):
        factors = np.array([1.0, 2.0], np.float32)
        return tensors | {f"rope_factors_{kind}.weight": factors for kind in ("long", "short")}

    hf = hugging_face("minicpm", tmp_path)
    write_gguf(hf, tmp_path / "m.gguf", change=long)
    with pytest.raises(so.InputError, match="rope_factors_long.weight without rope.scaling.orig"):
        so.load(tmp_path / "m.gguf")
    write_gguf(hf, tmp_path / "m.gguf", change=long, keys={"add_rope_scaling_orig_ctx_len": 32})
    assert so.load(tmp_path / "m.gguf").config.rope_scaling.original_context == 32


@pytest.mark.parametrize("of_length_1", [False, True])
def test_the_head_of_baichuan_2_may_be_scaled_already(of_length_1, tmp_path, monkeypatch):
    hf = hugging_face("baichuan", tmp_path)
    monkeypatch.setattr(baichuan, "VOCAB_OF_2", 32)

    def scaled(tensors):
        head = tensors["output.weight"]
        lengths = np.linalg.norm(head, axis=1, keepdims=True)
        return tensors | {"output.weight": head / lengths if of_length_1 else head}

    write_gguf(hf, tmp_path / "m.gguf", change=scaled)
    want = logits(hf)
    np.testing.assert_allclose(logits(tmp_path / "m.gguf"), want, atol=1e-5 * np.abs(want).max())


def test_baichuan_13b_is_told_by_its_layers(tmp_path, monkeypatch):
    write_gguf(hugging_face("baichuan", tmp_path), tmp_path / "m.gguf")
    monkeypatch.setattr(baichuan, "LAYERS_13B", 2)
    with pytest.raises(so.InputError, match="block_count is 2, .*ALiBi is not implemented"):
        so.load(tmp_path / "m.gguf")


def test_the_oldest_files_say_how_q_and_k_lie(tmp_path):
    hf = hugging_face("llama", tmp_path)
    for layout, fits in (("Meta AI original pth", True), ("halves", False)):
        write_gguf(hf, tmp_path / "m.gguf", keys={"add_tensor_data_layout": layout})
        if fits:
            assert equal(so.load(tmp_path / "m.gguf"), so.load(hf))
            continue
        with pytest.raises(so.InputError, match="tensor_data_layout = 'halves' is not impl"):
            so.load(tmp_path / "m.gguf")


def test_falcon_layers_must_agree_on_their_norms(tmp_path):
    def without(tensors):
        return {n: w for n, w in tensors.items() if not n.startswith("blk.1.attn_norm_2")}

    hf = hugging_face("falcon-new", tmp_path)
    write_gguf(hf, tmp_path / "m.gguf", change=without)
    with pytest.raises(so.InputError, match="1 of 2 layers have a tensor attn_norm_2"):
        so.load(tmp_path / "m.gguf")
