"""The command that gives a text model's tokenizer the tokens of a vision-language model."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from tokenizers import Tokenizer

from vltrain.processing.train_tokenizer import train_bpe

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
TEXTS = ["The quick brown fox jumps over the lazy dog."] * 9
IDS = ("stage=1", "model.image_token_id=400")
VL2 = (*IDS, "model=deepseek_vl2_tiny")
VL = (*IDS, "model=deepseek_vl_7b")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without the tokens of either family."""
    directory = tmp_path_factory.mktemp("text")
    return train_bpe(TEXTS, vocab_size=300, directory=directory, image_token="<other>")


@pytest.fixture
def placed(
    text_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., tuple[int, str]]]:
    """``placed("stage=1", ...)``: exit code, and what was said."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    monkeypatch.delenv("RANK", raising=False)

    def run(*words: str) -> tuple[int, str]:
        argv = ["place_tokens.py", str(text_model), str(tmp_path / "placed"), *words]
        monkeypatch.setattr(sys, "argv", argv)
        GlobalHydra.instance().clear()
        code = 0
        try:
            runpy.run_path(str(LAUNCH / "place_tokens.py"), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            GlobalHydra.instance().clear()
        said = capsys.readouterr()
        return code, said.out + said.err

    yield run
    sys.modules.pop("command_line", None)


def ids_in(directory: Path, *names: str) -> list[int | None]:
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [backend.token_to_id(name) for name in names]


def test_tokens_follow_the_image_tokens_id_in_the_released_order(placed, tmp_path) -> None:
    """The mix's folders need not be known for it."""
    code, said = placed(*VL2)
    assert code == 0, said
    released = ["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"]
    names = (*released, "<|User|>", "<|Assistant|>")
    assert ids_in(tmp_path / "placed", *names) == list(range(400, 408))
    assert said.splitlines() == [
        *(f"    {400 + n} {name}" for n, name in enumerate(names)),
        f"Prepare and train every stage with model.tokenizer={tmp_path / 'placed'}",
    ]


def test_one_of_them_elsewhere_whatever_the_stages_template(placed, tmp_path) -> None:
    code, said = placed("--id", "<|User|>=450", *VL2, "stage.template=alignment")
    assert code == 0, said
    names = ("<|grounding|>", "<|User|>", "<|Assistant|>", "<|unused_406|>")
    assert ids_in(tmp_path / "placed", *names) == [405, 450, 407, 406]


def test_the_first_family_has_its_image_token_alone(placed, tmp_path) -> None:
    code, said = placed(*VL)
    assert code == 0, said
    assert ids_in(tmp_path / "placed", "<image_placeholder>", "<|User|>") == [400, None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*VL2, "--id", "<|Usr|>=450"), "--id <|Usr|>=450: expected TOKEN=ID, TOKEN one of those"),
        ((*VL2, "--id", "<image>=450"), "The image token's id is model.image_token_id"),
        ((*VL, "--id", "<|User|>=450"), "beside its image token: none."),
        ((*VL2, "model.language.vocab_size=407"), "<|Assistant|> would lie beyond the embedding's"),
    ],
)
def test_words_that_cannot_be_meant(placed, tmp_path, words, said) -> None:
    code, found = placed(*words)
    assert code == 2
    assert found.count("error: ") == 1
    assert said in found
    assert "Traceback" not in found
    assert not (tmp_path / "placed").exists()
