"""Values that cannot be, given as flags: refused with the setting and the value, and nothing is built."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from sysout_jax.errors import InputError, UnknownSettings
from train.settings import Settings, parse

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "gpt2.py:default"


@dataclass(frozen=True)
class Command:
    config: Path
    settings: Settings


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("optimizer.lr", "nan"),
        ("optimizer.eps", "-1"),
        ("optimizer.beta2", "2"),
        ("optimizer.warmup-steps", "-3"),
        ("z-loss", "inf"),
        ("tokens", "0"),
        ("monitor-every", "-1"),
        ("seed", "-1"),
        ("seed", str(2**64)),
        ("mesh.tensor", "-7"),
        ("model.num-layers", "0"),
    ],
)
def test_a_bad_value_is_refused_with_its_setting(flag, value, capsys):
    given = ["--config", str(CONFIG), f"--{flag}", value]
    with pytest.raises((InputError, SystemExit)) as caught:
        parse(Command, "python -m train", None, given)
    message = str(caught.value)
    if isinstance(caught.value, SystemExit):  # tyro's own refusal
        assert caught.value.code == 2
        message = capsys.readouterr().err
    name = flag.split(".")[-1].replace("-", "_")
    assert f"{name} is {value}" in message.replace(",", "").replace(".0;", ";")


def test_another_family_is_no_setting():
    """It was a traceback: the fields are those of the config file's family."""
    given = ["--config", str(CONFIG), "--model.family", "x"]
    with pytest.raises(InputError, match="family is 'x'; expected one of gpt2") as caught:
        parse(Command, "python -m train", None, given)
    assert "\n" not in str(caught.value)


def test_a_model_to_start_from_whose_settings_would_have_to_be_accepted(hf_copy):
    """A training run has no flag for them; what it advises must be a command that exists."""
    model = hf_copy("gpt2")
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"depth_of_field": 1.5}))
    with pytest.raises(InputError, match="--init .*depth_of_field") as caught:
        parse(Command, "python -m train", None, ["--config", str(CONFIG), "--init", str(model)])
    assert not isinstance(caught.value, UnknownSettings)
    assert "python -m sysout_jax.convert --accept-setting" in str(caught.value)
    given = ["--config", str(CONFIG), "--init", "nowhere"]
    with pytest.raises(InputError, match="^--init nowhere: no such file"):
        parse(Command, "python -m train", None, given)
