"""Our own checkpoint directory: `model.json` (config, BOS id), `tokenizer.json`, and `params/<group>/` written by Orbax.

Each group (`embed`, `layer_0`, …) is an Orbax checkpoint of its own, so that neither writing nor reading one ever holds the model. `model.json`
also says what was written: a checksum of every parameter's values, the size of every file, and a checksum of itself.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sysout_jax.checkpoints import run_checkpoints
from sysout_jax.checkpoints.groups import write_group
from sysout_jax.checkpoints.narrowing import Narrowing
from sysout_jax.checkpoints.run_checkpoints import RUN
from sysout_jax.checkpoints.source import OrbaxSource, file_sizes
from sysout_jax.config import ModelConfig, config_to_dict
from sysout_jax.data import tokenizers
from sysout_jax.data.tokenizers import Tokenizer, read_bos_id
from sysout_jax.errors import InputError
from sysout_jax.families import config_from_dict
from sysout_jax.notices import warn_once
from sysout_jax.storage.held import Held
from sysout_jax.storage.seal import Damaged
from sysout_jax.storage.serialise import read_json_object
from sysout_jax.storage.staging import new_directory, write_file
from sysout_jax.weights import WeightSource, groups

CONFIG = "model.json"
PARAMS = "params"
CHECKSUM = "checksum"
ACCEPTED = "accepted_settings"  # of the original config, which the model is known not to need
ENTRIES = {"config", "bos_token_id", "fingerprints", "files", ACCEPTED, CHECKSUM}  # of `CONFIG`


def save(
    directory: Path,
    config: ModelConfig,
    source: WeightSource,
    dtype: Any,
    tokenizer: Tokenizer | None = None,
    bos_id: int | None = None,
    on_group: Callable[[], object] | None = None,
    accepted: tuple[str, ...] = (),
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint directory; it appears whole or not at all, and in memory there is one group at a time.

    `source` gives the weights, written in `dtype`; the tokenizer goes along, and so do the files of
    `beside`, which nothing here reads. `on_group` is called after each group. All of it is read
    again before this returns. Raises InputError when `directory` exists and is not an empty directory, or `dtype` has no numbers as
    large as some weights; RunError when it cannot be written.
    """
    narrowing = Narrowing(source, config)
    with new_directory(directory) as staging:
        (staging / PARAMS).mkdir()
        written: dict[str, int] = {}
        for group in groups(config):
            written |= write_group(staging / PARAMS, group, narrowing.read(group, dtype))
            if on_group:
                on_group()
        if tokenizer:
            tokenizer.save(staging / tokenizers.FILE)
        for name, content in (beside or {}).items():
            (staging / name).write_bytes(content)
        sizes = file_sizes(staging / PARAMS)
        write_config(staging, config, bos_id, written, sizes, accepted)
        _read_back(staging, config)
    narrowing.warn_of_damage()


def _read_back(directory: Path, config: ModelConfig) -> None:
    """OSError when what has just been written is not what is read."""
    try:
        if read_config(directory)[0] != config:
            raise InputError(f"{CONFIG} reads as another config")
        source = open_converted(directory, config)
        for group in groups(config):
            source.read(group, source.stored_dtype)
    except InputError as error:
        raise OSError(f"read again, it is not what was written: {error}") from None


def write_config(
    directory: Path,
    config: ModelConfig,
    bos_id: int | None = None,
    written: Mapping[str, int] | None = None,
    files: Mapping[str, int] | None = None,
    accepted: tuple[str, ...] = (),
) -> None:
    """The model's config and BOS id, beside its parameters or its training checkpoints.

    `written` and `files` say what lies below `PARAMS`, see `OrbaxSource`.
    """
    fields: dict[str, Any] = {"config": config_to_dict(config), "bos_token_id": bos_id}
    if written is not None:
        fields |= {"fingerprints": written, "files": files}
    if accepted:
        fields[ACCEPTED] = list(accepted)
    fields[CHECKSUM] = _checksum(fields)
    write_file(Path(directory) / CONFIG, (json.dumps(fields, indent=2) + "\n").encode())


def read_config(directory: Path) -> tuple[ModelConfig, int | None]:
    """Config and BOS id of a checkpoint directory; InputError when they cannot be read."""
    path = Path(directory) / CONFIG
    fields = _read_fields(directory)
    try:
        config = config_from_dict(fields.get("config"))
    except InputError as error:
        raise InputError(f"{path}: {error}; convert the checkpoint again") from None
    return config, read_bos_id(fields, config.vocab_size, str(path))


def read_accepted(directory: Path) -> tuple[str, ...]:
    """Settings of the original config that were accepted by name when it was converted."""
    names = _read_fields(directory).get(ACCEPTED, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{Path(directory) / CONFIG}: {ACCEPTED} is no list of names; convert the checkpoint again"
        )
    return tuple(names)


def open_converted(directory: Path, config: ModelConfig) -> OrbaxSource:
    """The weights of a directory that `save` wrote; InputError when they are not there or not what was written."""
    fields = _read_fields(directory)
    written, files = fields.get("fingerprints"), fields.get("files")
    if written is None or files is None:
        warn_once(
            f"{Path(directory) / CONFIG}: has no checksums, damage to the weights would not be noticed; "
            "convert the model again to have them"
        )
    return OrbaxSource(Path(directory) / PARAMS, config, written, files=files)


def _read_fields(directory: Path) -> dict[str, Any]:
    """What `write_config` wrote; InputError when it is something else."""
    path = Path(directory) / CONFIG
    fields = read_json_object(path, "convert the checkpoint again")
    if fields.get(CHECKSUM, _checksum(fields)) != _checksum(fields) or set(fields) - ENTRIES:
        raise InputError(
            f"{path}: is not as it was written; convert the checkpoint again or, if the change was meant, "
            f"remove the entry {CHECKSUM!r} from it"
        )
    for name in ("fingerprints", "files"):
        entries = fields.get(name)
        if entries is not None and not (
            isinstance(entries, dict) and all(type(value) is int for value in entries.values())
        ):
            raise InputError(
                f"{path}: {name} is no object of numbers; convert the checkpoint again"
            )
    return fields


def _checksum(fields: Mapping[str, Any]) -> int:
    """Of all entries but itself."""
    kept = {name: value for name, value in fields.items() if name != CHECKSUM}
    return zlib.crc32(json.dumps(kept, sort_keys=True).encode())


def is_converted(directory: Path) -> bool:
    """Whether `save` wrote this directory; a training run holds more than one checkpoint."""
    return os.path.isfile(directory / CONFIG) and not os.path.isdir(directory / RUN)


class Place(NamedTuple):
    """Where the parts of a checkpoint lie: config and tokenizer in `home`, parameter groups in `params`."""

    home: Path
    params: Path
    is_of_run: bool


def home_of(directory: Path) -> Path | None:
    """Where config and tokenizer lie of a converted model, a training run, or one checkpoint of a run; None when it is none of them."""
    directory = Path(directory).absolute()
    if os.path.isfile(directory / CONFIG):
        return directory
    home = directory.parent.parent
    in_run = directory.name.isdigit() and directory.parent.name == RUN
    return home if in_run and os.path.isfile(home / CONFIG) else None


def locate(directory: Path) -> Place | None:
    """A converted model, a training run (its latest whole checkpoint), or one checkpoint of a run; None when it is none of them.

    Raises InputError for a run without a whole checkpoint.
    """
    directory = Path(directory).absolute()
    home = home_of(directory)
    if home is None:
        return None
    if home != directory:
        return Place(home, directory, True)
    if os.path.isdir(home / RUN):
        return Place(home, _latest(home / RUN), True)
    return Place(home, home / PARAMS, False)


def _latest(checkpoints: Path) -> Path:
    try:
        latest, wrong = run_checkpoints.latest_whole(checkpoints)
    except OSError as error:
        raise InputError(f"{checkpoints}: cannot be read ({error.strerror}); see to it") from None
    if latest is None:
        held = f"; {wrong[0]}" if wrong else ""
        raise InputError(
            f"{checkpoints}: holds no whole checkpoint{held}; wait for the run's next save"
        )
    for line in wrong:
        warn_once(f"{line}; reading {latest.name} instead")
    return latest


class Opened(NamedTuple):
    """A checkpoint that no run removes while `held` lives, and the checksums of its values (None: it has none)."""

    place: Place
    held: Held | None
    fingerprints: dict[str, int] | None


def open_run(directory: Path) -> Opened:
    """What `locate` finds at a place where it finds a checkpoint of a run; the latest one anew where the run removed it meanwhile.

    Raises InputError when it is damaged or cannot be read.
    """
    while True:
        place = locate(directory)
        assert place is not None and place.is_of_run
        try:
            run_checkpoints.check_whole(place.params)
            held = run_checkpoints.hold(place.params)
            record = run_checkpoints.read_record(place.params)
            return Opened(place, held, record.get("fingerprints"))
        except (Damaged, FileNotFoundError) as error:
            if isinstance(error, Damaged) and place.params.exists():
                raise InputError(
                    f"{place.params}: is damaged ({error}); name another checkpoint of the run"
                ) from None
            if place.params == Path(directory).absolute():
                raise InputError(f"{directory}: no such checkpoint; name the run") from None
        except OSError as error:
            raise InputError(f"{place.params}: cannot be read ({error.strerror})") from None
