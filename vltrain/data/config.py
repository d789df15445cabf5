"""Config of the data: sources, mixture, packing, order, faults, loader. Values live in
conf/data/."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from vltrain.batch import Learn, Modality, RecordKind


class RatioUnit(str, Enum):
    """What the language : multimodal ratio counts (the paper does not say; facts 4.6)."""

    tokens = "tokens"
    samples = "samples"
    supervised_tokens = "supervised_tokens"


class RampKind(str, Enum):
    """Shape of the modality warm-up (not published; DeepSeek-VL 4.4 says only that it is
    gradual)."""

    none = "none"
    linear = "linear"
    cosine = "cosine"


class WhenSpent(str, Enum):
    """What becomes of the run when a source has been seen max_epochs times."""

    end = "end"  # the run ends, on all ranks at the same step
    leave = "leave"  # the source leaves the mix; the others of its modality take over its share


class KeyRule(str, Enum):
    """Where the key ends in the name of a member."""

    first_dot = "first_dot"  # webdataset's own: of a.b.0.png, key a, extension b.0.png
    last_dot = "last_dot"  # keys with dots: key a.b.0, extension png
    image_number = "image_number"  # keys with dots, images numbered: key a.b, extension 0.png


@dataclass
class SourceConfig:
    """One leaf of the mix: a set of shards, one record kind, one modality."""

    path: str = MISSING
    """A folder of .tar shards, one .tar, or a pattern such as data/x/train-{000000..000003}.tar;
    or URLs, as a pattern of braces."""
    kind: RecordKind = MISSING
    modality: Modality = MISSING
    """Which records of the shards this leaf draws. Records of the other modality must be drawn by
    another leaf over the same path, or the run is refused: nothing is skipped in silence."""
    category: str = "default"
    """Category inside the modality (facts 1.3); weights nest: modality share, category, source."""
    weight: float = 1.0
    """Share inside the category."""
    fields: dict[str, str] = field(default_factory=dict)
    """Field map: our field (image, text, json, tokens) -> the shard's member extension, or
    EXTENSION:KEY for a value inside a JSON member (json:caption); empty = the kind's own."""
    keys: KeyRule = KeyRule.first_dot
    """Where the key ends in a member's name; others than first_dot are for keys with dots."""
    learn: Learn | None = None
    """What is learned of this source; None: what the stage learns."""
    index_dir: str | None = None
    """Where index and token sidecar lie; default is a folder .vltrain beside the shards."""
    exclude: str | None = None
    """A list of records to leave out, as launch/exclude_records.py makes it from a ledger."""
    max_epochs: float | None = None
    """The source is seen so many times at most; None repeats for ever (with a warning past
    repetition_warning)."""
    when_spent: WhenSpent = WhenSpent.end
    licence: str = ""


@dataclass
class RampConfig:
    """Modality warm-up: the language share goes from start_share to mixture.language_share, within
    so many steps or so many planned tokens (one of the two)."""

    kind: RampKind = RampKind.none
    steps: int = 0
    tokens: int = 0
    start_share: float = 1.0


@dataclass
class MixtureConfig:
    """How modalities and categories share the stream."""

    unit: RatioUnit = RatioUnit.tokens
    language_share: float = 0.0
    ramp: RampConfig = field(default_factory=RampConfig)
    grouping: bool = False
    """True: every global step is all one modality (DeepSeek-VL 4.4)."""
    category_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each category inside its modality; a category not named here weighs 1."""
    repetition_warning: float = 4.0
    """Warn when a source will be repeated more often than this by the end of the stage."""


@dataclass
class PackingConfig:
    """How pieces become sequences."""

    enabled: bool = False
    sequence_length: int = MISSING
    """Tokens of a sequence. See image_tokens_on_top."""
    image_tokens_on_top: bool = False
    """True: sequence_length bounds the text alone and image tokens come on top (stage 1: 512 text
    positions beside 576 visual tokens; facts 1.1 and 4.4). Only where packing is off."""
    window_samples: int = 1024
    top_up_texts_per_sample: float = 0.0
    """Above 0, with mixture.grouping: texts fill the room that is left in multimodal packs. So many
    texts are drawn for each multimodal sample; those that do not fit come in the next language
    step. 0.5 fills the packs of the published lengths. The papers do not say (off)."""
    max_images: int = 8
    """Most images in one sequence; a sample with more is refused by prepare."""


@dataclass
class OrderConfig:
    """Shuffle. Part of the recipe digest."""

    block_samples: int = 256
    """Neighbours of one shard that are shuffled as one; fewer for small sources."""
    lanes: int = 128
    """Blocks of a source that are open side by side, their samples shuffled together."""


@dataclass
class BatchConfig:
    """The global step."""

    sequences: int = MISSING
    """Packs in one global step over all ranks (the papers' batch size)."""
    micro: int = 1
    """Packs of one rank's micro-batch. Changes nothing but speed and memory."""


@dataclass
class LoaderConfig:
    """Worker processes of each rank; nothing here changes the order."""

    workers: int = 0
    """0: a thread of the rank itself reads ahead."""
    prefetch_steps: int = 2


@dataclass
class RemoteConfig:
    """Shards behind URLs (sources whose path is one). Nothing here changes the order."""

    schemes: list[str] = field(default_factory=lambda: ["https", "s3", "gs"])
    """Schemes that a source's URL may have; no other is opened."""
    cache_dir: str | None = None
    """Folder of this node for parts of shards, shared by its processes; None: vltrain-shards in the
    system's folder for temporary files."""
    cache_gib: float = 64.0
    """Most that the folder holds."""
    chunk_mib: float = 8.0
    """What is fetched at once; a few times a block of neighbours is best."""
    read_ahead: int = 2
    """Chunks after the one that is read that are fetched meanwhile."""
    tries: int = 6
    """Of each request, before the run ends."""
    backoff_seconds: float = 1.0
    """Wait after the first failure; it doubles with each (60 s at most)."""
    timeout_seconds: float = 60.0
    """Of one request over http or https; other stores have their own."""


@dataclass
class FaultConfig:
    """How many bad records are borne."""

    budget: float = 0.001
    """Largest share of a source's read records that may be bad."""
    grace: int = 16
    """So many bad records of a source are borne whatever their share."""


class DecodeMode(str, Enum):
    exact = "exact"
    scaled = "scaled"


@dataclass
class DataConfig:
    """Everything between the shards and a micro-batch."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    order: OrderConfig = field(default_factory=OrderConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    decode: DecodeMode = DecodeMode.exact
    held_out: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources for evaluation only; never in the mix."""
