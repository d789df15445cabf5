"""What stage 3 learns, through the real loader: exactly the answers and their end tokens."""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import torch
from launching import DEMO, composed, prepare_here

from vltrain.assemble.datapath import open_data, step_loader
from vltrain.batch import IGNORE, Origin

END = "<｜end▁of▁sentence｜>"


def answers_of(workspace: Path, sources: dict[str, Path], origin: Origin) -> list[str]:
    """The assistant's words of a stored record, as the template writes them."""
    with tarfile.open(workspace / sources[origin.source] / origin.shard) as tar:
        stream = tar.extractfile(f"{origin.key}.json")
        assert stream is not None
        messages = json.load(stream)["messages"]
    return [
        f" {message['content'].strip()}{END}"
        for message in messages
        if message["role"] == "assistant"
    ]


def test_learned_labels_are_the_answers(workspace: Path) -> None:
    words = ("stage=3", *DEMO, "optim.steps=12")
    prepare_here(workspace, *words)
    config = composed(*words)
    sources = {name: Path(source.path) for name, source in config.data.sources.items()}
    seen: Counter[str] = Counter()
    with contextlib.chdir(workspace):
        data = open_data(config)
        decode = data.encoder.tokenizer.decode
        for _, micros in step_loader(config, data, cursor=None, rank=0, world=1):
            for micro in micros:
                for row, origins in enumerate(micro.origins):
                    assert len(origins) == 1  # stage 3 does not pack
                    targets = micro.targets[row]
                    learned = decode(targets[targets != IGNORE].tolist())
                    assert learned == "".join(answers_of(workspace, sources, origins[0]))
                    seen[origins[0].source] += 1
                assert not torch.any(micro.targets == config.model.image_token_id)
    assert seen.keys() == sources.keys()
    assert sum(seen.values()) == 12 * 4
