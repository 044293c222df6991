"""Which attention prevents outliers: variants × seeds on Bigram-Backcopy, with a GPT-2 of 3 layers and one head; other settings of default; another
share of positions with nothing to read; and four variants on text.

    P="python -m train.prepare"
    $P --task bigram-backcopy --source plays.txt --windows 60000 --out data/bigram_backcopy
    $P --task bigram-backcopy --source plays.txt --windows 60000 --without-bos --out data/without_bos
    $P --task sparse-copy --source plays.txt --windows 60000 --idle 0.1 --out data/idle_0.1   # and 0.5, 0.9
    python docs/section5/train_tokenizer.py books.jsonl.xz tokenizer.json
    $P --source books.jsonl.xz --tokenizer tokenizer.json --bos '<|endoftext|>' --bos-every 256 --out data/text
    python -m train.sweep configs/section5.py:variants --workdir runs/section5 --only steps=500
    python -m train.sweep configs/section5.py:settings --workdir runs/section5_settings   # and without_bos, idle, text

Cost: 4.1 M tokens a run of 500 steps, 33 runs, 12 of other settings, 3 without BOS and 9 of other shares; 31,000 tokens a second, two and a quarter minutes a run, on two
cores with nothing else to do; two processes together train half as many again. 4,000 steps take eight times as long. A run on text is 16 M tokens.
Result: in docs/section5.md. Three seeds of every variant after 500 steps: a sink at the first token with default attention whose size and
layer depend on the seed, none with sigmoid, which also has the lowest loss; scale and gates cannot be told from default. Other
settings: no sink with Muon, none without BOS. After 4,000 steps, three seeds: idle queries of default give BOS all of their attention,
those of context_scale, gate and sigmoid at most 5 %; the largest |h| is in a model with context_scale. `python -m analyze.variants
--ckpt runs/section5 --over seed --data data/bigram_backcopy` makes the table.
"""

from dataclasses import replace
from pathlib import Path

from sysout_jax.config import ATTENTION
from sysout_jax.errors import InputError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import OptimizerConfig, TrainConfig
from sysout_jax.training.sweep import Sweep

BASE = OptimizerConfig(lr=3e-3, min_lr=3e-3, warmup_steps=0, beta2=0.99, weight_decay=0.0)
#: What differs from the runs of default attention.
SETTINGS: dict[str, OptimizerConfig] = {
    "decay": replace(BASE, weight_decay=0.1),
    "muon": replace(BASE, name="muon"),
    "sgd": replace(BASE, name="sgd", momentum=0.9, lr=0.3, min_lr=0.3),
    "qk_norm": BASE,
}


def config(
    steps: int,
    seed: int,
    variant: str = "default",
    optimizer: OptimizerConfig = BASE,
    qk_norm: bool = False,
    data: str = "data/bigram_backcopy",
) -> TrainConfig:
    return TrainConfig(
        model=Gpt2Config(
            num_layers=3,
            d_model=64,
            num_heads=1,
            d_ff=256,
            vocab_size=257,
            context_length=128,
            bias=False,
            activation="gelu",
            attention=variant,
            qk_norm=qk_norm,
        ),
        data=Path(data),
        steps=steps,
        batch_size=64,
        seq_len=128,
        optimizer=optimizer,
        dtype="float32",
        eval_every=250,
        eval_sequences=256,
        save_every=250,
        keep=100,
        monitor_every=50,
        monitor_sequences=32,
        seed=seed,
    )


def with_setting(setting: str, seed: int) -> TrainConfig:
    optimizer = SETTINGS.get(setting, BASE)
    if setting == "without_bos":
        return config(500, seed, optimizer=optimizer, data="data/without_bos")
    return config(500, seed, optimizer=optimizer, qk_norm=setting == "qk_norm")


def with_idle(idle: float, seed: int) -> TrainConfig:
    return config(500, seed, data=f"data/idle_{idle}")


def on_text(variant: str, seed: int) -> TrainConfig:
    """A GPT-2 of 1.7 M parameters, six layers and four heads, on words of books."""
    small = config(4000, seed, variant, data="data/text")
    shape = {"num_layers": 6, "d_model": 128, "num_heads": 4, "d_ff": 512, "vocab_size": 4096}
    return replace(
        small,
        model=replace(small.model, context_length=256, **shape),
        batch_size=16,
        seq_len=256,
        optimizer=OptimizerConfig(
            lr=3e-3, min_lr=3e-4, warmup_steps=100, decay_steps=4000, beta2=0.99
        ),
        eval_every=500,
        save_every=500,
        monitor_every=100,
    )


SWEEPS = {
    "variants": Sweep({"steps": (500, 4000), "seed": range(3), "variant": ATTENTION}, config),
    "settings": Sweep({"seed": range(3), "setting": tuple(SETTINGS)}, with_setting),
    "without_bos": Sweep({"seed": range(3), "setting": ("without_bos",)}, with_setting),
    "idle": Sweep({"seed": range(3), "idle": (0.1, 0.5, 0.9)}, with_idle),
    "text": Sweep(
        {"seed": (0,), "variant": ("default", "attention_bias", "context_scale", "gate")}, on_text
    ),
}


def sweep(name: str) -> Sweep:
    if name not in SWEEPS:
        raise InputError(f"no sweep {name!r}; expected one of {', '.join(SWEEPS)}")
    return SWEEPS[name]
