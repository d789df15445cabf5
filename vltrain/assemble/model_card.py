"""README.md of an export: what the model is and what it was made from, as its manifest says.

In: the checkpoint's manifest, the model's config, and the run's results if it was evaluated. Out:
Markdown with the front matter that model hubs read. It names no folder of the machine that trained:
of base weights the folder's own name and the digest. It chooses no licence for the model: it lists
those of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vltrain.assemble.provenance import stage_record
from vltrain.checkpoint.manifest import Manifest
from vltrain.evaluate.results import Point
from vltrain.evaluate.table import result_rows
from vltrain.models.config import ModelConfig
from vltrain.models.export import ExportFormat, parameter_shapes
from vltrain.models.trainable import part_of, parts_of
from vltrain.processing.tiling import TilingRule

UNKNOWN = "not stated"
_RELEASED_TILING = (TilingRule.effective, 2)
"""The rule of DeepSeek-VL2's processor, and the most images that it tiles."""
_USE = {
    ExportFormat.transformers: """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(DIRECTORY)
processor = AutoProcessor.from_pretrained(DIRECTORY)
```""",
    ExportFormat.deepseek_vl: (
        "The layout of the original DeepSeek-VL release (`model_type: multi_modality`), for "
        "software that reads that one."
    ),
    ExportFormat.deepseek_vl2: (
        "The layout of the original DeepSeek-VL2 release (`model_type: deepseek_vl_v2`), for "
        "software that reads that one. The routers' corrections (`e_score_correction_bias`), where "
        "the model has any, are float32 whatever type the other tensors have."
    ),
}


def model_card(
    manifest: Manifest,
    *,
    config: ModelConfig,
    kind: ExportFormat,
    points: Sequence[Point],
    neutral: Sequence[str],
) -> str:
    """The text. points: of this very checkpoint. neutral: tensors that were written as neutral
    values (``export_model``)."""
    stages = [*manifest.lineage, stage_record(manifest)]
    library = "library_name: transformers\n" if kind is ExportFormat.transformers else ""
    sections = [
        f"---\n{library}pipeline_tag: image-text-to-text\n---",
        f"# {config.name}",
        _introduction(manifest, config),
        "## Use\n\n" + _USE[kind],
        "## Stages\n\n" + _stages(stages),
        "## Data\n\n" + _data(stages),
        "## Scores\n\n" + _scores(points),
        "## Base weights\n\n" + _base(stages),
        *_remarks(config, kind=kind, neutral=neutral),
    ]
    return "\n\n".join(sections) + "\n"


def _introduction(manifest: Manifest, config: ModelConfig) -> str:
    shapes = parameter_shapes(config)
    counts = dict.fromkeys(parts_of(config), 0)
    for name, shape in shapes.items():
        size = 1
        for length in shape:
            size *= length
        counts[part_of(name)] += size
    rows = [(part, f"{count:,}") for part, count in counts.items()]
    return (
        f"A vision-language model of the {_architecture(config)}, exported from step "
        f"{manifest.step} of "
        f"stage {manifest.stage.get('number')} ({manifest.stage.get('name')}) of the run "
        f"`{manifest.run.get('name')}`, trained with vltrain.\n\n"
        + _table(("part", "parameters"), [*rows, ("all", f"{sum(counts.values()):,}")])
    )


def _architecture(config: ModelConfig) -> str:
    moe = config.language.moe
    if config.tiling is not None and moe is not None:
        return (
            f"DeepSeek-VL2 architecture (SigLIP on at most {config.tiling.max_tiles} tiles, "
            f"{config.tokens_per_image} tokens per tile; {moe.experts} experts, {moe.per_token} of "
            "them for each token)"
        )
    towers = "SAM and SigLIP" if config.sam is not None else "SigLIP"
    return f"DeepSeek-VL architecture ({towers}, {config.tokens_per_image} tokens per image)"


def _stages(stages: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for record in stages:
        recipe, sums = record["recipe"], record["sums"]
        tokens = sums.get("tokens", {})
        rows.append(
            (
                f"{record['stage'].get('number')} {record['stage'].get('name')}",
                ", ".join(record["stage"].get("trainable", [])) or UNKNOWN,
                f"{record['step']:,}",
                *(_number(tokens.get(kind)) for kind in ("language", "multimodal")),
                _number(sums.get("images")),
                f"{recipe['lr']:g} {recipe['schedule']}" if recipe else UNKNOWN,
                f"{recipe['sequences']} x {recipe['sequence_length']}" if recipe else UNKNOWN,
            )
        )
    head = ("stage", "trained", "steps", "text tokens", "multimodal tokens", "images")
    return _table((*head, "learning rate", "sequences x length"), rows)


def _data(stages: Iterable[Mapping[str, Any]]) -> str:
    rows, credits = [], dict[str, None]()
    for record in stages:
        read = record["read"]
        total = sum(read.values())
        for name, source in record["data"].items():
            seen = read.get(name, 0)
            rows.append(
                (
                    str(record["stage"].get("number")),
                    name,
                    source["kind"],
                    source["modality"],
                    f"{100 * source['share']:.1f} %",
                    f"{seen:,} ({100 * seen / total:.1f} %)" if total else UNKNOWN,
                    source["licence"] or UNKNOWN,
                    source["source"] or UNKNOWN,
                )
            )
            if source["attribution"]:
                credits[source["attribution"]] = None
    if not rows:
        return "The manifest does not say which data was seen."
    head = ("stage", "source", "kind", "modality", "weight in its modality", "samples seen")
    text = _table((*head, "licence", "origin"), rows)
    return text + "".join(f"\n\n{credit}" for credit in credits)


def _scores(points: Sequence[Point]) -> str:
    if not points:
        return "This checkpoint was not evaluated before it was exported."
    rows = [(row.measure, row.cells[0], row.note) for row in result_rows(points[-1:])]
    return "In brackets with every picture blanked.\n\n" + _table(
        ("held out", "result", "of"), rows
    )


def _base(stages: Sequence[Mapping[str, Any]]) -> str:
    """What each part began with in the first stage that is known."""
    rows = [
        (
            part,
            record["path"].rstrip("/").rpartition("/")[2] if record["path"] else "random values",
            f"`{record['digest']}`" if record["digest"] else UNKNOWN,
        )
        for part, record in stages[0]["parts"].items()
    ]
    return _table(("part", "began as", "xxh3-128"), rows)


def _remarks(config: ModelConfig, *, kind: ExportFormat, neutral: Sequence[str]) -> list[str]:
    remarks = []
    if neutral:
        remarks.append(
            f"- {len(neutral)} tensors that this layout has and no forward pass reads were not "
            f"stored with the base weights; they are ones and zeros: {', '.join(neutral)}."
        )
    mean = config.siglip_mean if config.sam is None else config.sam_mean
    padding = [int(255 * value) for value in mean]
    if kind is not ExportFormat.transformers and padding != list(config.pad_color):
        remarks.append(
            f"- Pictures were padded with the colour {tuple(config.pad_color)}; the original "
            f"release's processor pads with {tuple(padding)}."
        )
    tiling = config.tiling
    if tiling is not None and (tiling.rule, tiling.max_tiled_images) != _RELEASED_TILING:
        remarks.append(
            f"- Pictures were tiled by the rule {tiling.rule.value}, at most "
            f"{tiling.max_tiled_images} of a conversation; the original release's processor tiles "
            f"by the rule {_RELEASED_TILING[0].value}, at most {_RELEASED_TILING[1]}."
        )
    return ["## Remarks\n\n" + "\n".join(remarks)] if remarks else []


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
