"""The published way from a photo to the model's pixels: Pillow, float32, normalised.

As DeepSeek-VL's released processor does it (its steps, written anew): the long side to 1024 with
bicubic resampling, centred on a square of the mean colour, divided by 255, mean and standard
deviation taken off, transposed.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIDE = 1024
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
PAD = (122, 116, 104)


def to_float_square(data: bytes) -> np.ndarray:
    """JPEG bytes to float32 (3, 1024, 1024)."""
    return normalised(Image.open(io.BytesIO(data)).convert("RGB"))


def normalised(image: Image.Image) -> np.ndarray:
    """A decoded photo to float32 (3, 1024, 1024)."""
    width, height = image.size
    scale = SIDE / max(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SIDE, SIDE), PAD)
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    pixels = np.asarray(square, dtype=np.float32) / 255.0
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1))
