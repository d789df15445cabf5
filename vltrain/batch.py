"""The records that cross layers: what a shard holds, what is encoded, what is planned, what is
trained on.

Everything here is frozen and keyword-only. Nothing here reads, decodes or computes. Names: a
*sample* is one webdataset record; a *piece* is what is packed (a whole sample, or one part of a
long text); a *pack* is one sequence of the global batch (one or more pieces; one piece where a
stage does not pack).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""Target value of a position that is not learned (torch's cross-entropy default)."""


class Modality(str, Enum):
    """Which side of the language : multimodal ratio a piece counts on. A sample with any image is
    multimodal with all its tokens."""

    language = "language"
    multimodal = "multimodal"


class Learn(str, Enum):
    """Which text tokens are targets. Image placeholders never are."""

    all = "all"  # every text token (stages 1 and 2)
    answers = "answers"  # assistant text and its end token only; system and user prompts masked


class Template(str, Enum):
    """How what is said is written down (docs/data.md)."""

    deepseek = "deepseek"  # with the words User: and Assistant:; documents as they are
    plain = "plain"  # nothing around what is said
    alignment = "alignment"  # of what is asked only the images, each with a line end
    deepseek_vl2 = "deepseek_vl2"  # as deepseek, with the tokens <|User|> and <|Assistant|>


class Special(Enum):
    """Tokens of DeepSeek-VL2's vocabulary that stand for themselves; the words of a text never
    become one."""

    user = "<|User|>"
    assistant = "<|Assistant|>"
    ref = "<|ref|>"  # what is meant, up to ref_end
    ref_end = "<|/ref|>"
    det = "<|det|>"  # boxes, up to det_end
    det_end = "<|/det|>"
    grounding = "<|grounding|>"  # asks for an answer with boxes


class RecordKind(str, Enum):
    """The four record kinds (members of one webdataset key)."""

    caption = "caption"  # <key>.<image ext>, <key>.txt
    interleaved = (
        "interleaved"  # <key>.json {"texts": [str|null], "images": [member|null]}, <key>.N.<ext>
    )
    text = "text"  # <key>.txt
    conversation = "conversation"  # <key>.json {"messages": [...]}, <key>.N.<ext>


class Role(str, Enum):
    """Who speaks. ``document`` is text without roles: captions, interleaved documents, plain
    text."""

    system = "system"
    user = "user"
    assistant = "assistant"
    document = "document"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a sample comes from: enough to find its bytes again by hand."""

    source: str
    shard: str  # file name of the tar
    key: str

    def __str__(self) -> str:
        return f"{self.source}:{self.shard}:{self.key}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredImage:
    """An image as stored (not decoded). ``data`` is empty where only the size is needed (the index
    knows sizes, so token counts need no image bytes)."""

    member: str  # the member's extension in the shard, such as "0.png"
    data: bytes
    width: int
    height: int
    grid: tuple[int, int] = (0, 0)
    """Columns and rows of tiles beside the whole image, once encoded; (0, 0): none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes:
    """Places in an image, in pixels of the image as it is seen (upright, before it is scaled or
    tiled): left, top, right, bottom of each. image: index into ``Sample.images``."""

    image: int
    boxes: tuple[tuple[float, float, float, float], ...]


Part = str | int | Special | Boxes
"""Of a turn's content: text, an image (index into ``Sample.images``), a token, boxes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn: its parts in reading order."""

    role: Role
    content: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One webdataset record, parsed but not encoded. All four kinds are turns, but for a text that
    came as token ids: it has those instead."""

    origin: Origin
    kind: RecordKind
    turns: tuple[Turn, ...]
    images: tuple[StoredImage, ...]
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An encoded sample (or the part of it that one piece covers).

    ids: int32 (n,), image placeholders expanded. learned: bool (n,), True where the token is a
    target (the token itself, not the position that predicts it; ``learned[0]`` never counts,
    nothing predicts it). image_starts: int32 (m,), position of each image's first placeholder.
    image_tokens: int32 (m,). images: the m stored images, in reading order.
    """

    origin: Origin
    ids: np.ndarray
    learned: np.ndarray
    image_starts: np.ndarray
    image_tokens: np.ndarray
    images: tuple[StoredImage, ...]

    @property
    def num_supervised(self) -> int:
        """Number of targets: learned tokens that some position predicts."""
        return int(self.learned[1:].sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceRef:
    """One planned piece: where it is and what it weighs, known from the sidecar before any byte is
    read."""

    source: int  # position of the source in the recipe
    piece: int  # row of the source's token table, counted over all its shards
    tokens: int  # all tokens, image placeholders included
    supervised: int
    image_tokens: int
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """One planned sequence. ``number`` counts the packs of the whole run in global order."""

    number: int
    modality: Modality  # multimodal if any piece is of a multimodal source
    pieces: tuple[PieceRef, ...]

    @property
    def tokens(self) -> int:
        return sum(p.tokens for p in self.pieces)

    @property
    def images(self) -> int:
        return sum(p.images for p in self.pieces)

    @property
    def image_tokens(self) -> int:
        return sum(p.image_tokens for p in self.pieces)

    @property
    def supervised(self) -> int:
        return sum(p.supervised for p in self.pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One planned global step. ``modality`` is None where a step mixes both (grouping off).

    tokens, supervised: planned counts by modality of the *piece* (text that tops up a multimodal
    pack counts as language). language_share_target: share(step). cursor_after: the plan's position
    after this step, JSON-able (a few KB); feeding it back continues with step + 1.
    """

    step: int
    modality: Modality | None
    packs: tuple[PackPlan, ...]
    tokens: dict[str, int]
    supervised: dict[str, int]
    language_share_target: float
    cursor_after: dict[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchPlan:
    """The packs that one rank trains on in one micro-batch; ``packs`` is shorter than the
    micro-batch size where the step does not divide evenly (the rest are blank packs)."""

    step: int
    micro: int
    packs: tuple[PackPlan, ...]
    num_slots: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A counted event in the run's ledger."""

    origin: Origin
    reason: str
    detail: str
    action: str  # "hole" | "excluded" | "split"


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one forward sees. B packs padded to T tokens; images of all B packs in reading order.

    ids: int64 (B, T), 0 at padding (never the image token there). positions: int64 (B, T),
    restarting at 0 with every piece. segments: int32 (B, T), 1, 2, ... per piece in the row, 0 at
    padding: a token attends only to earlier tokens of its own segment. targets: int64 (B, T),
    *already shifted*: targets[b, t] is the id that position t must predict, or IGNORE.
    image_positions: int64 (all image tokens,), index into the flattened (B * T) of every
    placeholder, image by image. images: uint8 (n, S, S, 3), padded squares as decoded, of each
    image the whole and then its tiles; n may be 0. grids: int64 (images, 2), columns and rows of
    tiles (0 and 0: none). image_tokens: int64 (images,).
    num_targets, num_tokens: targets that are not IGNORE and tokens that are not padding, each by
    modality of their piece ({"language": ..., "multimodal": ...}).
    pack_numbers, pack_digests (16 bytes each): of the B real packs, in the order given.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    targets: torch.Tensor
    image_positions: torch.Tensor
    images: torch.Tensor
    grids: torch.Tensor
    image_tokens: torch.Tensor
    num_targets: dict[str, int]
    num_tokens: dict[str, int]
    num_images: int
    pack_numbers: tuple[int, ...]
    pack_digests: tuple[bytes, ...]
    origins: tuple[tuple[Origin, ...], ...]
    faults: tuple[Fault, ...] = field(default=())

    @property
    def num_slots(self) -> int:
        """Places that are computed, B x T; those without a token are padding."""
        return self.ids.numel()

    @property
    def num_squares(self) -> int:
        """Of all images: what the vision encoder sees."""
        return len(self.images)

    @property
    def whole_images(self) -> torch.Tensor:
        """uint8 (images, S, S, 3): of each image its first square."""
        squares = 1 + self.grids.prod(dim=1)
        return self.images[squares.cumsum(0) - squares]
