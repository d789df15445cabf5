"""The typed config of a run: schema, conversion from Hydra once, and the rules that cross sections.

In: command-line words and conf/. Out: a ``RunConfig`` of plain dataclasses; no ``DictConfig`` goes
below this module. Words that Hydra would refuse are mended here before it sees them: the launcher's
``--local_rank=N``, ``stage=2``, which it would read as a number where a group's choice must be
text, and the short ``resume=auto``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vltrain.checkpoint.config import CheckpointConfig
from vltrain.data.config import DataConfig
from vltrain.engine.config import EngineConfig, Offload
from vltrain.engine.render import refuse_owned
from vltrain.errors import ConfigError
from vltrain.evaluate.config import EvaluateConfig
from vltrain.metrics.config import MetricsConfig
from vltrain.models.check import check_model
from vltrain.models.config import PARTS, ModelConfig
from vltrain.models.moe_config import ExpertsKind
from vltrain.models.vision_files import with_described_vit
from vltrain.optim.check import check_optim
from vltrain.optim.config import OptimConfig
from vltrain.redact import redact
from vltrain.train.config import StabilityConfig, StageConfig


class Resume(str, Enum):
    """What the same command means when it is run again."""

    auto = "auto"  # continue from the run's newest complete checkpoint, if it has one
    never = "never"  # refuse if the run directory already has a checkpoint
    required = "required"  # refuse if it has none


class Accept(str, Enum):
    """What may differ from the checkpoint that a run continues, if it is named."""

    recipe = "recipe"  # the data: the new recipe begins at its own beginning
    seed = "seed"  # so does the data of another seed
    model = "model"
    tokenizer = "tokenizer"
    stage = "stage"


@dataclass
class ResumeConfig:
    """``resume=auto`` on the command line is short for ``resume.mode=auto``."""

    mode: Resume = Resume.auto
    accept: list[Accept] = field(default_factory=list)
    """Differences that are meant; every other one is refused and shown."""


@dataclass
class RunInfo:
    """Where the run lives and what it is called."""

    name: str = "${model.name}-stage${stage.number}"
    root: str = "runs"
    seed: int = 0


@dataclass
class RunConfig:
    """Everything that one run is made of."""

    run: RunInfo = field(default_factory=RunInfo)
    stage: StageConfig = field(default_factory=StageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    init_from: str | None = None
    """A finished run of the stage before (its directory), or one of its checkpoints."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.root) / self.run.name


def register_schema() -> None:
    """Make ``RunConfig`` known to Hydra as ``run_schema`` (conf/train.yaml starts from it)."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def clean_arguments(arguments: Sequence[str]) -> list[str]:
    """Command-line words as Hydra can take them.

    Drops the DeepSpeed launcher's ``--local_rank=N`` (and ``--local_rank N``); quotes the digit of
    ``stage=2``, so that it names a file of conf/stage/; writes ``resume=auto`` out; quotes a value
    with a further ``=``, such as the directory of a sweep's run.
    """
    cleaned: list[str] = []
    words = iter(arguments)
    for word in words:
        if re.fullmatch(r"--local[_-]rank", word):
            next(words, None)
        elif not re.fullmatch(r"--local[_-]rank=\d+", word):
            word = re.sub(r"^stage=(\d+)$", r"stage='\1'", word)
            word = re.sub(r"^resume=(?=\w)", "resume.mode=", word)
            word = re.sub(r"^([^-=][^=]*)=([^'\"({[]*=[^'\"({[]*)$", r"\1='\2'", word)
            cleaned.append(word)
    return cleaned


def from_hydra(composed: DictConfig) -> RunConfig:
    """The composed config as dataclasses, checked.

    Raises ConfigError for a key that the schema does not have, a value that is still ``???``, a
    value of the wrong type, and a combination that contradicts itself.
    """
    try:
        _check_keys(composed, "")
        config = cast(RunConfig, OmegaConf.to_object(composed))
    except MissingMandatoryValue as error:
        keys = sorted(OmegaConf.missing_keys(composed)) or [error.full_key or str(error)]
        raise ConfigError(_missing(keys)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {error}".split("\n")[0]) from error
    config = dataclasses.replace(config, model=with_described_vit(config.model))
    check(config)
    return config


def from_file(path: Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """The config that a run wrote (its config.yaml), with ``key=value`` words laid over it.

    Raises ConfigError where the file is absent or damaged, or a word names a key that the config
    does not have.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: expected the directory of a run, as launch/train.py makes it"
        )
    if wrong := [word for word in overrides if "=" not in word]:
        raise ConfigError(f"{wrong[0]!r}: expected key=value, such as evaluate.max_samples=100")
    try:
        stored = cast(DictConfig, OmegaConf.load(path))
        if isinstance(stored.get("resume"), str):  # as runs of before resume.accept have it
            stored["resume"] = {"mode": stored["resume"]}
        if isinstance(stored.get("model", {}).get("activation_checkpointing"), bool):
            how = "full" if stored["model"]["activation_checkpointing"] else "none"
            stored["model"]["activation_checkpointing"] = {"language": how}
        merged = OmegaConf.merge(
            OmegaConf.structured(RunConfig),
            stored,
            OmegaConf.from_dotlist(list(overrides)),
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error}".split("\n")[0]) from error
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise ConfigError(
            f"{path} with the words {list(overrides)}: one of them is not YAML ({what}); quote "
            "words with brackets, quotation marks or colons, and copy or write a damaged file again"
        ) from error
    return from_hydra(cast(DictConfig, merged))


def _check_keys(node: DictConfig, prefix: str) -> None:
    """Every key is one of the schema and every number finite. Hydra refuses an unknown key but
    advises to write ``+key=value``, and what is added so would be in the config without a use."""
    kind = OmegaConf.get_type(node)
    known = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else None
    for key in map(str, node):
        if known is not None and key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean {prefix}{close[0]}?" if close else "."
            where = prefix.removesuffix(".") or "the config"
            raise ConfigError(
                f"{prefix}{key} is no key of this config{meant} {where} has: {', '.join(known)}"
            )
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            _check_keys(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{key}={value}: expected a finite number")


def _missing(keys: Sequence[str]) -> str:
    """What to do about values that are ???, all at once; a published mix has dozens of them."""
    sources = [
        found[1] for key in keys if (found := re.fullmatch(r"data\.sources\.(.+)\.path", key))
    ]
    if sources:
        name = sources[0] if len(sources) == 1 else "NAME"
        which = "" if len(sources) == 1 else f" for {len(sources)} sources ({', '.join(sources)})"
        return (
            f"data.sources.{name}.path is not set{which}: this mix names its data sets "
            "but not where you keep them. Make or fetch shards (data_recipes/, docs/data.md), set "
            f"data.sources.{name}.path=FOLDER on the command line or in your own conf/data/ file "
            f"(~data.sources.{name} leaves one out), then run launch/prepare.py with the same "
            "words; or try +experiment=demo after python launch/make_data.py demo data/demo"
        )
    settings = " ".join(f"{key}=VALUE" for key in keys)
    return (
        f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} not set (???): give {settings} on "
        "the command line or in a config file"
    )


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML (what config.yaml of a run holds). Paths of weights and tokenizer
    are absolute: a run may be read from another working directory. No secrets."""
    weights = {part: _absolute(path) for part, path in given_weights(config.model).items()}
    model = dataclasses.replace(
        config.model,
        weights=dataclasses.replace(config.model.weights, **weights),
        tokenizer=_absolute(config.model.tokenizer),
    )
    written = dataclasses.replace(config, model=model, init_from=_absolute(config.init_from))
    return redact(OmegaConf.to_yaml(OmegaConf.structured(written), sort_keys=False))


def given_weights(model: ModelConfig) -> dict[str, str | None]:
    """model.weights by part."""
    return {part: getattr(model.weights, part) for part in PARTS}


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def check(config: RunConfig) -> None:
    """Rules that cross sections; each says what was found, what was expected, and what to do."""
    check_model(config.model)
    refuse_owned(config.engine)
    _check_experts(config)
    _check_parts(config)
    _check_numbers(config)
    _check_mixture(config)
    check_optim(config.optim)


def _check_experts(config: RunConfig) -> None:
    one_by_one = config.model.experts is ExpertsKind.reference
    if one_by_one and config.model.language.moe is not None and config.engine.zero_stage == 3:
        raise ConfigError(
            "model.experts=reference with engine.zero_stage=3: it runs a module for each expert "
            "that has tokens, and processes whose experts differ would gather different weights; "
            "set model.experts=grouped, or engine.zero_stage=2"
        )


def _check_parts(config: RunConfig) -> None:
    available = config.model.parts
    for part in config.stage.trainable:
        if part not in available:
            raise ConfigError(
                f"stage.trainable names {part!r}; this model's parts are {', '.join(available)}. "
                "Set stage.trainable=[...] to those that train"
            )
    for part in config.optim.parts:
        if part not in available:
            raise ConfigError(
                f"optim.parts names {part!r}; this model's parts are {', '.join(available)}. "
                f"Take it out with '~optim.parts.{part}'"
            )


def _check_mixture(config: RunConfig) -> None:
    packing = config.data.packing
    if packing.image_tokens_on_top and packing.enabled:
        raise ConfigError(
            "data.packing.image_tokens_on_top=true with data.packing.enabled=true: a pack has one "
            "budget for text and images; set data.packing.enabled=false or "
            "image_tokens_on_top=false"
        )
    image_tokens = config.model.geometry.most_tokens
    longest = packing.sequence_length + (
        packing.max_images * image_tokens if packing.image_tokens_on_top else 0
    )
    if longest > config.model.language.max_positions:
        raise ConfigError(
            f"sequences of up to {longest} tokens (data.packing) exceed "
            f"model.language.max_positions={config.model.language.max_positions}; lower "
            "data.packing.sequence_length or max_images"
        )
    if not packing.image_tokens_on_top and packing.sequence_length <= image_tokens:
        raise ConfigError(
            f"data.packing.sequence_length={packing.sequence_length} cannot hold one image of "
            f"{image_tokens} tokens; raise it or set "
            "data.packing.image_tokens_on_top"
        )


_NUMBERS: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "must be at least 1",
        lambda value: value >= 1,
        (
            "optim.steps",
            "data.batch.sequences",
            "data.batch.micro",
            "data.packing.sequence_length",
            "data.packing.window_samples",
            "data.packing.max_images",
            "data.order.lanes",
            "data.order.block_samples",
            "data.loader.prefetch_steps",
            "model.loss_chunk_tokens",
            "model.encode_images_at_once",
            "engine.timeout_seconds",
            "engine.start_seconds",
            "engine.stall_seconds",
            "engine.lost_seconds",
            "engine.bucket_elements",
            "checkpoint.every_steps",
            "checkpoint.keep_last",
            "checkpoint.write_timeout_seconds",
            "stability.skip_window_steps",
            "stability.spike_window_steps",
            "metrics.log_every",
            "evaluate.max_samples",
            "evaluate.batch_records",
            "evaluate.max_new_tokens",
            "evaluate.choice_samples",
        ),
    ),
    ("must be at least 2: the right one and another", lambda v: v >= 2, ("evaluate.choices",)),
    (
        "must not be negative",
        lambda value: value >= 0,
        (
            "optim.weight_decay",
            "optim.clip_norm",
            "optim.schedule.warmup_steps",
            "model.router.penalty_weight",
            "model.router.correction_step",
            "data.loader.workers",
            "data.faults.budget",
            "data.faults.grace",
            "data.mixture.ramp.steps",
            "engine.param_persistence_threshold",
            "checkpoint.keep_every_steps",
            "checkpoint.keep_best",
            "stability.skip_budget",
            "stability.rollbacks",
            "stability.spike_deviations",
            "stability.label_share_deviations",
        ),
    ),
    ("must be above 0", lambda value: value > 0, ("optim.lr", "optim.eps")),
    ("must be above 0, or null", lambda v: v is None or v > 0, ("metrics.peak_tflops",)),
    ("must be above 0 and at most 1", lambda value: 0 < value <= 1, ("evaluate.iou_threshold",)),
    ("expected 0 to 4294967295", lambda value: 0 <= value < 2**32, ("run.seed",)),
    (
        "must be 0 or more and below 1",
        lambda value: 0 <= value < 1,
        ("optim.beta1", "optim.beta2"),
    ),
    (
        "a share lies between 0 and 1",
        lambda value: 0 <= value <= 1,
        (
            "data.mixture.language_share",
            "data.mixture.ramp.start_share",
            "optim.schedule.final_fraction",
        ),
    ),
)
"""What numbers must be, in words; of which settings (they are finite: ``_check_keys``)."""


def _check_numbers(config: RunConfig) -> None:
    for words, holds, keys in _NUMBERS:
        for key in keys:
            value = functools.reduce(getattr, key.split("."), config)
            if not holds(value):
                raise ConfigError(f"{key}={value}: {words}")
    if config.engine.zero_stage not in (0, 1, 2, 3):
        raise ConfigError(f"engine.zero_stage={config.engine.zero_stage}: choose 0, 1, 2 or 3")
    if config.engine.offload_params is not Offload.none and config.engine.zero_stage != 3:
        raise ConfigError(
            f"engine.offload_params={config.engine.offload_params.value} needs "
            "engine.zero_stage=3, "
            f"found {config.engine.zero_stage}"
        )
