"""README and docs say what is so: their commands, paths, links, config keys, schemas and numbers
are held against the repository. Commands marked ``run`` are run; the others must be ones that the
scripts would take."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from model_yaml import model_config
from omegaconf import OmegaConf

from stages import policy_of
from vltrain.checkpoint.manifest import Manifest
from vltrain.data.config import DataConfig
from vltrain.evaluate.results import (
    Accuracy,
    BoxAccuracy,
    BoxFigures,
    BoxScore,
    HeldOutLoss,
    Point,
)
from vltrain.metrics.rows import StepRow
from vltrain.metrics.summary import PartSummary, StageSummary
from vltrain.models.build import build_model
from vltrain.models.trainable import describe
from vltrain.runconfig import RunConfig, clean_arguments, from_hydra, register_schema

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
OWN_FILE = "conf/data/mine.yaml"
"""A reader's own, in docs/data.md."""
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
HYDRA_SCRIPTS = ("train", "prepare", "warm_start")
TAKE_BOTH = ("inspect_data", "place_tokens")
"""Take the words of those, and others."""
FENCE = re.compile(r"^```(\w+)?( run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
KEY = re.compile(
    r"'?\+?((?:run|stage|model|data|optim|engine|metrics|checkpoint|evaluate)\.[\w.]+)"
)
CHOICE = re.compile(r"\+?(stage|model|optim|data|engine|experiment|debug)=([a-z0-9][\w.]*)")
REPOSITORY = re.compile(r"(?:conf|launch|vltrain|stages|data_recipes|tests|docs)/[\w./-]*")


def blocks(page: Path, *, language: str) -> list[tuple[str, bool]]:
    """(text, marked ``run``) of the page's blocks in ``language``."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(text, bool(run)) for name, run, text in found if name == language]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path, *, to_run: bool | None = None) -> list[str]:
    """One line each; of a whole shell script only what calls our scripts."""
    lines = []
    for text, run in blocks(page, language="bash"):
        if to_run is not None and run is not to_run:
            continue
        whole = text.replace("\\\n", " ").splitlines()
        if text.startswith("#!"):
            whole = [line for line in whole if "launch/" in line]
        lines += [line for line in whole if line.strip() and not line.startswith("#")]
    return lines


def cases(of: typing.Callable[[Path], typing.Iterable[str]]) -> list:
    found = [(page, item) for page in PAGES for item in dict.fromkeys(of(page))]
    return [pytest.param(page, item, id=f"{page.stem}: {item}"[:90]) for page, item in found]


# Commands


@pytest.mark.parametrize(("page", "line"), cases(commands))
def test_a_command_is_one_that_its_script_takes(page: Path, line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    assert words[0] in ("python", "deepspeed", "torchrun", "srun")
    at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    script, given = ROOT / words[at], words[at + 1 :]
    assert script.is_file()
    if script.stem in HYDRA_SCRIPTS:
        check_hydra_words(script.stem, given, mixes=tmp_path, fill_paths=page != README)
    elif script.stem in TAKE_BOTH and any(word.startswith("stage=") for word in given):
        check_argparse_words(script, given)
        words = [word for word in given if "=" in word]
        check_hydra_words(script.stem, words, mixes=tmp_path, fill_paths=page != README)
    elif script.stem == "eval":
        check_argparse_words(script, given[:1])
        OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.from_dotlist(given[1:]))
    else:
        check_argparse_words(script, given)


def check_hydra_words(script: str, given: list[str], *, mixes: Path, fill_paths: bool) -> None:
    """The words compose to a config that the stage takes. ``mixes``: where the docs' own data file
    is put for ``data=mine``."""
    (mixes / "data").mkdir()
    (mixes / "data" / "mine.yaml").write_text(own_data_file(), encoding="utf-8")
    if script == "warm_start":
        what = given.pop(0)
        given.append(f"data=demo_warm_{'language' if what == 'tokenizer' else what}")
    sweeps = "-m" in given
    given = [word for word in given if word not in ("-m", "--cfg", "job", "--help")]
    if sweeps:  # the first of the values
        given = [word.split(",")[0] for word in given]
    given = ["1" if word == "N" else word.replace("NAME", "demo") for word in given]
    register_schema()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        search = f"hydra.searchpath=[file://{mixes}]"
        composed = compose("train", overrides=[*clean_arguments(given), search])
    if fill_paths:  # a general command, without the folders of anyone's data
        for name in composed.data.sources:
            if OmegaConf.is_missing(composed.data.sources[name], "path"):
                composed.data.sources[name].path = "shards"
    config = from_hydra(composed)
    if script != "warm_start":
        policy_of(config.stage.number).check(config)


def check_argparse_words(script: Path, given: list[str]) -> None:
    """Options are ones that the script adds, and there are as many words as it must have."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    names = [str(ast.literal_eval(call.args[0])) for call in added]
    options = [word for word in given if word.startswith("--")]
    assert set(options) <= {*names, "--help"}
    if "--help" not in options:
        assert len(given) >= sum(not name.startswith("--") for name in names)


@pytest.mark.parametrize("line", commands(README, to_run=True))
def test_a_command_marked_run_runs(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "python"
    ended = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def own_data_file() -> str:
    ((text, _),) = blocks(ROOT / "docs/data.md", language="yaml")
    return text


def test_the_docs_own_data_file_fits_the_schema() -> None:
    config = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.create(own_data_file()))
    assert set(config.sources) == {"web_captions", "instructions", "books"}


# Names in the text


def spans(page: Path) -> list[str]:
    return CODE.findall(prose(page))


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize(("page", "target"), cases(lambda p: LINK.findall(prose(p))))
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    if not target.startswith("https://"):
        assert (page.parent / target.partition("#")[0]).exists()


def keys(page: Path) -> list[str]:
    found = [match.group(1) for span in spans(page) if (match := KEY.match(span))]
    found = [key.removesuffix(".") for key in found]  # "data.order.*"
    return [key for key in found if not key.endswith((".py", ".safetensors"))]


@pytest.mark.parametrize(("page", "key"), cases(keys))
def test_a_config_key_exists(page: Path, key: str) -> None:
    kind: typing.Any = RunConfig
    for word in key.split("."):
        arguments = typing.get_args(kind)
        if isinstance(kind, types.UnionType):
            (kind,) = (a for a in arguments if a is not types.NoneType)
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
            continue
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        assert word in hints, f"{key}: {word!r} is none of {sorted(hints)}"
        kind = hints[word]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_choices_and_files_exist(page: Path) -> None:
    for span in spans(page):
        if (choice := CHOICE.fullmatch(span)) and choice.group(2) != "mine":
            assert (ROOT / "conf" / choice.group(1) / f"{choice.group(2)}.yaml").is_file(), span
        if REPOSITORY.fullmatch(span) and span != OWN_FILE:
            assert (ROOT / span).exists(), span


# Numbers and schemas


def test_the_readmes_table_is_what_the_configs_say() -> None:
    rows = re.findall(r"^\| (1\.3B|7B) \| (\d) \| (.+) \|$", prose(README), re.MULTILINE)
    assert len(rows) == 6
    for size, number, cells in rows:
        lr, kind, warmup, steps, sequences, length, packing = cells.split(" | ")
        model = f"deepseek_vl_{size.lower()}"
        recipe = OmegaConf.load(ROOT / f"conf/optim/{model}_stage{number}.yaml")
        stage = OmegaConf.load(ROOT / f"conf/stage/{number}.yaml")
        assert float(lr) == recipe.optim.lr
        assert kind == recipe.optim.schedule.kind
        assert int(warmup) == recipe.optim.schedule.warmup_steps
        assert int(steps) == recipe.optim.steps
        assert int(sequences) == recipe.data.batch.sequences
        assert int(length) == stage.data.packing.sequence_length
        assert (packing == "yes") is stage.data.packing.enabled


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_parameter_counts_of_the_small_models(name: str) -> None:
    built = build_model(
        model_config(name),
        trainable=("adaptor",),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="meta",
        seed=0,
    )
    counts = describe([built.module, built.frozen])
    total = sum(count.parameters for count in counts)
    table = (ROOT / "docs/model.md").read_text(encoding="utf-8")
    assert re.search(rf"`model={name}` .* {total:,} ", table)
    if name == "demo":  # as a run prints them, and as the README shows
        for c in counts:
            line = f"{c.part:<8} {c.parameters:>13,} parameters, {c.trainable:>13,} train"
            assert line in README.read_text(encoding="utf-8")
        frozen = sum(1 for n, _ in built.named_parameters() if n not in built.trainable)
        assert f"frozen: {frozen} tensors bit-identical" in README.read_text(encoding="utf-8")


def test_full_sizes_in_the_docs_are_those_of_the_configs() -> None:
    table = (ROOT / "docs/model.md").read_text(encoding="utf-8")
    for name in ("deepseek_vl_7b", "deepseek_vl_1.3b"):
        header = (ROOT / f"conf/model/{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        (count,) = re.findall(r"[\d,]{9,}", header)
        assert re.search(rf"`model={re.escape(name)}` .* {count} ", table)


SCHEMAS = {
    "steps.jsonl": ([StepRow], {"schema"}, set()),
    "summary.json": ([PartSummary], set(), set()),
    "results.json": (
        [HeldOutLoss, Accuracy, BoxAccuracy, BoxFigures, BoxScore, Point, StageSummary],
        set(),
        set(),
    ),
    "Checkpoints": ([Manifest], set(), {"fragments"}),
}


@pytest.mark.parametrize("section", SCHEMAS)
def test_every_field_of_a_file_is_documented(section: str) -> None:
    records, more, apart = SCHEMAS[section]
    text = (ROOT / "docs/run_directory.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    named = set(CODE.findall(text if section == "results.json" else body))
    wanted = {f.name for record in records for f in dataclasses.fields(record)} | more
    assert wanted - apart <= named
