"""vltrain: three-stage training of vision-language models after DeepSeek-VL."""

__version__ = "0.1.0"
