"""Sample in, Example out: ids with image placeholders expanded, and which of them are learned.

Used alike by ``prepare`` (which needs no image bytes, only sizes, and writes what ``measure`` says
into the token sidecar), by the reader (``piece``), and by inference (``prompt_ids``), so that what
was planned is what is read. Cost: the tokenizer's, about 1 M characters a second on one core.

Every sample begins with the first token. Documents that are too long or hold too many images are
cut (each piece but the first begins in the middle: no first token is invented there); captions and
conversations that do are faults, since half an answer teaches stopping in mid-sentence. Rejected:
truncating, which would cut image spans and hide the loss of data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import xxhash

from vltrain.batch import (
    Boxes,
    Example,
    Learn,
    Origin,
    RecordKind,
    Sample,
    Special,
    StoredImage,
    Template,
    Turn,
)
from vltrain.errors import ConfigError, DataError, RecordFault
from vltrain.processing.conversation import (
    ROLE_TOKENS,
    TEMPLATE_VERSION,
    Segment,
    render,
    render_prompt,
)
from vltrain.processing.geometry import Geometry
from vltrain.processing.grounding import BoxRounding, box_text
from vltrain.processing.splitting import split_points
from vltrain.processing.tokens import TextTokenizer

PROMPT_ORIGIN = Origin(source="prompt", shard="", key="")
_SPLITTABLE = (RecordKind.text, RecordKind.interleaved)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRules:
    """What the encoder does; all of it is part of the token sidecar's key.

    learn: what is learned where a call does not say. system_prompt: for conversations without a
    system turn, "" for none. sequence_length: most tokens of a piece; of its text alone where
    image_tokens_on_top. max_images: most images of a piece. box_rounding: of boxes' coordinates.
    """

    learn: Learn
    template: Template = Template.deepseek
    system_prompt: str = ""
    sequence_length: int
    image_tokens_on_top: bool = False
    max_images: int
    box_rounding: BoxRounding = BoxRounding.nearest

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise ConfigError(
                f"data.packing.sequence_length is {self.sequence_length}; at least 2 is needed "
                "(nothing predicts the first token)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceSize:
    """One row of the token sidecar. start: first token in the whole sample's ids. tokens: all of
    the piece's, image placeholders included. supervised: targets. image_tokens, images: of the
    piece."""

    start: int
    tokens: int
    supervised: int
    image_tokens: int
    images: int


class Encoder:
    """Encodes samples by one tokenizer, geometry and set of rules."""

    def __init__(self, tokenizer: TextTokenizer, geometry: Geometry, rules: EncodeRules) -> None:
        """Raises ConfigError where the tokenizer lacks a token that the template writes."""
        lacking = [
            special.value
            for special in ROLE_TOKENS.get(rules.template, ())
            if special not in tokenizer.special_ids
        ]
        if lacking:
            raise ConfigError(
                f"stage.template={rules.template.value} writes {' and '.join(lacking)}, which the "
                "tokenizer does not have: set model.tokenizer to the model's own, or choose "
                "another template"
            )
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.rules = rules

    @property
    def digest(self) -> str:
        """xxh3-64 hex of everything that ids, masks and cuts depend on: the token sidecar's key."""
        rules = asdict(self.rules)
        if self.rules.box_rounding is BoxRounding.nearest:
            del rules["box_rounding"]  # keys of before there were boxes stay what they are
        described = {
            "tokenizer": self.tokenizer.digest,
            "template": TEMPLATE_VERSION,
            "geometry": self.geometry.digest_fields(),
            "rules": rules,
        }
        text = json.dumps(described, sort_keys=True, ensure_ascii=True)
        return xxhash.xxh3_64_hexdigest(text.encode())

    def encode(self, sample: Sample, *, learn: Learn | None = None) -> Example:
        """The whole sample, uncut.

        Raises RecordFault: those of ``conversation.render``, ``image_mismatch``, ``bad_tokens``.
        """
        if sample.token_ids:
            return self._given(sample.token_ids, origin=sample.origin)
        segments = render(
            sample.turns, system_prompt=self.rules.system_prompt, template=self.rules.template
        )
        placed = [s.content for s in segments if isinstance(s.content, int)]
        if sorted(placed) != list(range(len(sample.images))):
            raise RecordFault(
                "image_mismatch",
                f"the record has {len(sample.images)} images and its text places images {placed}",
            )
        return self._expand(
            segments, images=sample.images, origin=sample.origin, learn=learn or self.rules.learn
        )

    def cut(self, example: Example, kind: RecordKind) -> tuple[tuple[int, int], ...]:
        """Half-open token ranges of the pieces of a whole example; one range where it fits.

        Raises RecordFault ``too_long`` or ``too_many_images`` for a caption or conversation beyond
        the limit of tokens or of images.
        """
        cost = np.ones(len(example.ids), dtype=np.int64)
        if self.rules.image_tokens_on_top:
            cost[self._image_mask(example)] = 0
        limit = self.rules.sequence_length
        length = int(cost.sum())
        images, max_images = len(example.images), self.rules.max_images
        if length <= limit and images <= max_images:
            return ((0, len(example.ids)),)
        if kind not in _SPLITTABLE:
            if images > max_images:
                raise RecordFault(
                    "too_many_images", f"{images} images; data.packing.max_images is {max_images}"
                )
            what = "text tokens" if self.rules.image_tokens_on_top else "tokens"
            raise RecordFault("too_long", f"{length} {what}; the limit is {limit}")
        return split_points(
            cost=cost,
            quality=self._cut_quality(example),
            limit=limit,
            image_starts=example.image_starts,
            max_images=max_images,
        )

    def measure(self, sample: Sample, *, learn: Learn | None = None) -> tuple[PieceSize, ...]:
        """Sizes of the sample's pieces. Needs image sizes, not image bytes. Raises RecordFault."""
        example = self.encode(sample, learn=learn)
        sizes = []
        for start, end in self.cut(example, sample.kind):
            part = _slice(example, start=start, end=end)
            sizes.append(
                PieceSize(
                    start=start,
                    tokens=end - start,
                    supervised=part.num_supervised,
                    image_tokens=int(part.image_tokens.sum()),
                    images=len(part.images),
                )
            )
        return tuple(sizes)

    def piece(
        self, sample: Sample, *, start: int, tokens: int, learn: Learn | None = None
    ) -> Example:
        """The piece that ``measure`` put at ``start``; ``tokens`` long.

        Raises RecordFault as ``encode`` does, and DataError where the sample has become too short
        for the piece: what was planned no longer holds.
        """
        return self.part(self.encode(sample, learn=learn), start=start, tokens=tokens)

    def part(self, example: Example, *, start: int, tokens: int) -> Example:
        """As ``piece``, of a whole example that the caller has at hand."""
        if start == 0 and tokens == len(example.ids):
            return example
        if start + tokens > len(example.ids):
            raise DataError(
                f"{example.origin}: tokens {start} to {start + tokens} were planned, the sample "
                f"has {len(example.ids)}; the shard has changed since it was prepared: run "
                "launch/prepare.py again"
            )
        return _slice(example, start=start, end=start + tokens)

    def prompt_ids(
        self,
        turns: Sequence[Turn],
        images: Sequence[StoredImage],
        *,
        origin: Origin = PROMPT_ORIGIN,
    ) -> Example:
        """A prompt for inference, open where the answer begins; nothing of it is learned.

        Raises RecordFault as ``encode`` does, but for lengths and counts: the caller's to bound.
        """
        segments = render_prompt(
            turns, system_prompt=self.rules.system_prompt, template=self.rules.template
        )
        for segment in segments:
            if isinstance(segment.content, int) and not 0 <= segment.content < len(images):
                raise RecordFault(
                    "image_mismatch",
                    f"the prompt places image {segment.content} of {len(images)}",
                )
        example = self._expand(segments, images=images, origin=origin, learn=Learn.answers)
        example.learned[:] = False
        return example

    def written(self, turn: Turn, images: Sequence[StoredImage]) -> str:
        """What a turn says, stripped, special tokens and boxes as their text; its images left out.

        Raises RecordFault as ``encode`` does for boxes.
        """
        parts = (self._written(p, images=images) for p in turn.content if not isinstance(p, int))
        return "".join(parts).strip()

    def _given(self, token_ids: Sequence[int], *, origin: Origin) -> Example:
        """A document that came as token ids, between first and end token (which it may bring)."""
        tokenizer = self.tokenizer
        first, last = token_ids[0] == tokenizer.bos_id, token_ids[-1] == tokenizer.eos_id
        inner = token_ids[int(first) : len(token_ids) - int(last)]
        wrong = [i for i in inner if i >= tokenizer.vocab_size or i == tokenizer.image_id]
        if wrong or not inner:
            found = f"id {wrong[0]}" if wrong else "nothing between first and end token"
            raise RecordFault(
                "bad_tokens",
                f"{found}; expected ids of text, 0 to {tokenizer.vocab_size - 1} but for the image "
                f"token {tokenizer.image_id}",
            )
        none = np.zeros(0, dtype=np.int32)
        ids = np.asarray([tokenizer.bos_id, *inner, tokenizer.eos_id], dtype=np.int32)
        return Example(
            origin=origin,
            ids=ids,
            learned=np.arange(len(ids)) > 0,
            image_starts=none,
            image_tokens=none,
            images=(),
        )

    def _expand(
        self,
        segments: Sequence[Segment],
        *,
        images: Sequence[StoredImage],
        origin: Origin,
        learn: Learn,
    ) -> Example:
        ids = [self.tokenizer.bos_id]
        learned = [False]
        image_starts, image_tokens, ordered = [], [], []
        for segment in segments:
            if isinstance(segment.content, int):
                image = images[segment.content]
                layout = self.geometry.layout(
                    image.width, image.height, images_in_sample=len(images)
                )
                image_starts.append(len(ids))
                image_tokens.append(layout.tokens)
                ordered.append(replace(image, grid=layout.shape))
                ids += [self.tokenizer.image_id] * layout.tokens
                learned += [False] * layout.tokens
            else:
                text_ids = self._text_ids(segment.content, images=images)
                ids += text_ids
                learned += [learn is Learn.all or segment.learned] * len(text_ids)
            if segment.end:
                ids.append(self.tokenizer.eos_id)
                learned.append(learn is Learn.all or segment.learned)
        return Example(
            origin=origin,
            ids=np.asarray(ids, dtype=np.int32),
            learned=np.asarray(learned, dtype=bool),
            image_starts=np.asarray(image_starts, dtype=np.int32),
            image_tokens=np.asarray(image_tokens, dtype=np.int32),
            images=tuple(ordered),
        )

    def _text_ids(self, part: str | Special | Boxes, *, images: Sequence[StoredImage]) -> list[int]:
        if not isinstance(part, Special):
            return self.tokenizer.encode(self._written(part, images=images))
        if part not in self.tokenizer.special_ids:
            raise RecordFault(
                "no_special_token",
                f"the record is written with {part.value}, which the tokenizer does not have; "
                "model.tokenizer must be a DeepSeek-VL2's",
            )
        return [self.tokenizer.special_ids[part]]

    def _written(self, part: str | Special | Boxes, *, images: Sequence[StoredImage]) -> str:
        if isinstance(part, Boxes):
            return box_text(part, images=images, rounding=self.rules.box_rounding)
        return part.value if isinstance(part, Special) else part

    def _image_mask(self, example: Example) -> np.ndarray:
        """bool (n,), True at image placeholders."""
        return example.ids == self.tokenizer.image_id

    def _cut_quality(self, example: Example) -> np.ndarray:
        """int (n,): how good a cut before token i is; 0 inside an image's span or at the very
        start."""
        after, resumes = self.tokenizer.break_levels
        quality = np.zeros(len(example.ids), dtype=np.int64)
        quality[1:] = 1 + after[example.ids[:-1]]
        newline = after[example.ids] >= 3
        # Two line ends in a row make a paragraph; the second of them must not begin a piece.
        quality[2:][newline[1:-1] & newline[:-2]] = 5
        quality[newline] = np.minimum(quality[newline], 2)
        quality[resumes[example.ids]] = 1  # in mid-character: only if nothing else is left
        for start, count in zip(example.image_starts, example.image_tokens, strict=True):
            quality[start + 1 : start + count] = 0
        return quality


def _slice(example: Example, *, start: int, end: int) -> Example:
    """Tokens start..end of an example; image spans lie wholly inside or outside (``cut`` sees to
    it)."""
    kept = (example.image_starts >= start) & (example.image_starts < end)
    assert ((example.image_starts + example.image_tokens)[kept] <= end).all(), (start, end)
    return Example(
        origin=example.origin,
        ids=example.ids[start:end],
        learned=example.learned[start:end],
        image_starts=example.image_starts[kept] - np.int32(start),
        image_tokens=example.image_tokens[kept],
        images=tuple(example.images[i] for i in np.flatnonzero(kept)),
    )
