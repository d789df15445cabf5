"""What a stage may do: a frozen record of rules.

A stage is a value. Its numbers are YAML (conf/stage/N.yaml), its rules this record; nothing else in
the project asks which stage it is. A policy refuses configs that the schema accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vltrain.batch import Learn, Modality, RecordKind, Template
from vltrain.errors import ConfigError
from vltrain.runconfig import RunConfig

Check = Callable[[RunConfig], None]


@dataclass(frozen=True, kw_only=True)
class StagePolicy:
    """Rules of one stage (DeepSeek-VL section 3.2).

    may_train, must_train: parts of the model, by model family. predecessors: stage numbers that it
    may start from; 0 means published weights of each part. may_be_new: parts that may start from
    the seed, unasked. records: kinds that it may see. learns: what may be learned of its records.
    templates: how they may be written, by model family.
    """

    number: int
    name: str
    may_train: dict[str, frozenset[str]]
    must_train: dict[str, frozenset[str]]
    predecessors: frozenset[int]
    may_be_new: frozenset[str]
    records: frozenset[RecordKind]
    learns: frozenset[Learn]
    templates: dict[str, frozenset[Template]]
    checks: tuple[Check, ...]

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError where the config is not this stage."""
        where = f"stage {self.number} ({self.name})"
        family = config.model.family
        if family not in self.may_train:
            raise ConfigError(
                f"{where} has no rules for model.family={family!r}; it knows "
                f"{', '.join(sorted(self.may_train))}"
            )
        found = set(config.stage.trainable)
        if extra := found - self.may_train[family]:
            raise ConfigError(
                f"{where}: stage.trainable holds {sorted(extra)}, which stay frozen in this stage; "
                f"it may train {sorted(self.may_train[family])}"
            )
        if lacking := self.must_train[family] - found:
            raise ConfigError(
                f"{where}: stage.trainable={sorted(found)} lacks {sorted(lacking)}, which this "
                "stage exists to train"
            )
        if config.stage.learn not in self.learns:
            raise ConfigError(
                f"{where}: stage.learn={config.stage.learn.value}; expected "
                f"{' or '.join(sorted(x.value for x in self.learns))}"
            )
        if config.stage.template not in self.templates[family]:
            raise ConfigError(
                f"{where}: stage.template={config.stage.template.value}; expected for "
                f"{family}: {' or '.join(sorted(t.value for t in self.templates[family]))}"
            )
        for name, source in config.data.sources.items():
            if source.kind not in self.records:
                raise ConfigError(
                    f"{where}: data.sources.{name} holds {source.kind.value} records; this stage "
                    f"takes {', '.join(sorted(k.value for k in self.records))}"
                )
        if not config.data.sources:
            raise ConfigError(
                f"{where} has no data: data.sources is empty. Name a mix with data=..., list your "
                "own sources (docs/data.md), or try +experiment=demo"
            )
        for check in self.checks:
            check(config)


def needs_language_sources(config: RunConfig) -> None:
    """A mix with a language share needs language sources, and the other way round."""
    share = config.data.mixture.language_share
    starts_at = config.data.mixture.ramp.start_share
    ramps = config.data.mixture.ramp.kind.value != "none"
    modalities = {source.modality for source in config.data.sources.values()}
    if (share > 0 or (ramps and starts_at > 0)) and Modality.language not in modalities:
        raise ConfigError(
            f"data.mixture asks for language (language_share={share}) and no source in "
            "data.sources has "
            "modality language; add one or set data.mixture.language_share=0"
        )
    if share < 1 and Modality.multimodal not in modalities:
        raise ConfigError(
            f"data.mixture asks for {1 - share:.0%} multimodal data and no source in data.sources "
            "has modality multimodal; add one or set data.mixture.language_share=1"
        )
