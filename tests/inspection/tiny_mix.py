"""Tiny real shards, prepared and opened as a run opens them; lengths can be counted by hand (one
token per byte, 4 per image)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from shard_makers import byte_encoder, byte_tokenizer, png, prepare, write_tar

from vltrain.batch import Modality, RecordKind
from vltrain.data.config import (
    BatchConfig,
    DataConfig,
    DecodeMode,
    MixtureConfig,
    PackingConfig,
    SourceConfig,
)
from vltrain.data.loader import MicroBatchDataset
from vltrain.data.pieces import PieceReader, PieceTable
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe
from vltrain.data.sources import open_source
from vltrain.inspection.step_view import StepView, view_steps

IMAGE_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A mix as ``vltrain.assemble.datapath`` would open it."""

    config: DataConfig
    tables: tuple[PieceTable, ...]
    held_out: tuple[PieceTable, ...]
    reader: PieceReader
    plan: Plan
    dataset: MicroBatchDataset

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(table.modality for table in self.tables)

    def views(self, steps: int, *, shown_packs: int = 99, read_all: bool = True) -> list[StepView]:
        """Of the first ``steps`` steps."""
        planned = [step for step, _ in zip(self.plan.steps(), range(steps), strict=False)]
        return list(
            view_steps(
                planned,
                dataset=self.dataset,
                modalities=self.modalities,
                decode=byte_tokenizer().decode,
                workers=0,
                shown_packs=shown_packs,
                read_all=read_all,
            )
        )


def open_mix(config: DataConfig, *, seed: int = 1) -> Opened:
    """Prepare and open."""
    held_out = {f"held_{name}": source for name, source in config.held_out.items()}
    prepare({**config.sources, **held_out})
    encoder = byte_encoder()
    sources = [open_source(name, source) for name, source in config.sources.items()]
    tables = tuple(PieceTable(source, encoder_digest=encoder.digest) for source in sources)
    reader = PieceReader(sources, tables=tables, encoder=encoder)
    return Opened(
        config=config,
        tables=tables,
        held_out=tuple(
            PieceTable(open_source(name, source), encoder_digest=encoder.digest)
            for name, source in config.held_out.items()
        ),
        reader=reader,
        plan=Plan(Recipe(tables, config=config), seed=seed),
        dataset=MicroBatchDataset(
            reader,
            modalities=[table.modality for table in tables],
            image_token_id=byte_tokenizer().image_id,
            image_side=IMAGE_SIDE,
            pad_color=(127, 127, 127),
            decode=DecodeMode.exact,
        ),
    )


def text_source(folder: Path, texts: dict[str, str], **settings) -> SourceConfig:
    """A shard of texts by key."""
    write_tar(folder / "a.tar", [(f"{key}.txt", text.encode()) for key, text in texts.items()])
    return SourceConfig(
        path=str(folder), kind=RecordKind.text, modality=Modality.language, **settings
    )


def caption_source(
    folder: Path, texts: dict[str, str], *, first_width: int = 8, **settings
) -> SourceConfig:
    """A shard of red pictures of unlike widths, with texts, by key."""
    members: list[tuple[str, bytes]] = []
    for width, (key, text) in enumerate(texts.items(), start=first_width):
        members += [(f"{key}.png", png(width)), (f"{key}.txt", text.encode())]
    write_tar(folder / "a.tar", members)
    return SourceConfig(
        path=str(folder), kind=RecordKind.caption, modality=Modality.multimodal, **settings
    )


def data_config(sources: dict[str, SourceConfig], **settings) -> DataConfig:
    """Packs of 64 tokens and 2 images, 4 to a step; half language where nothing is said."""
    values: dict = {
        "mixture": MixtureConfig(language_share=0.5),
        "packing": PackingConfig(enabled=True, sequence_length=64, window_samples=16, max_images=2),
        "batch": BatchConfig(sequences=4, micro=2),
    }
    return DataConfig(sources=sources, **{**values, **settings})
