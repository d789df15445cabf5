from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_samples import flip_a_byte, fragments, manifest, saved, store

from vltrain.checkpoint import store as store_module
from vltrain.checkpoint.health import Health
from vltrain.checkpoint.store import open_checkpoint
from vltrain.engine.fragments import Fragment
from vltrain.errors import CheckpointError


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    assert checkpoints.newest() is None
    path = checkpoints.save(manifest(7), fragments(), tensor_digests={"language": {"embed": "e1"}})
    assert path == tmp_path / "step-00000007"
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.directory == path
    found = newest.manifest
    assert (found.step, found.cursor, found.stage) == (7, manifest(7).cursor, manifest(7).stage)
    assert found.params == manifest(7).params
    assert found.parts["language"].tensors == "digests-language.json"
    assert json.loads((path / "digests-language.json").read_text()) == {"embed": "e1"}
    assert {"torch", "deepspeed", "python"} <= set(found.versions)
    assert sorted(p.name for p in path.iterdir()) == [
        "digests-language.json",
        "fragments.json",
        "manifest.json",
        "moments-00000-000.safetensors",
        "weights-00000-000.safetensors",
    ]
    assert {f.path for f in found.files} == {p.name for p in path.iterdir()} - {"manifest.json"}


def test_the_last_and_the_chosen_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=2, keep_every=20)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(manifest(step), fragments())
    assert checkpoints.steps() == [20, 40, 50]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000020",
        "step-00000040",
        "step-00000050",
    ]


def test_the_best_are_kept_too(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=1, keep_best=2)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 4.0), (50, 2.5)):
        checkpoints.save(manifest(step, metrics={"loss": loss}), fragments())
    checkpoints.save(manifest(60), fragments())
    assert checkpoints.steps() == [20, 30, 60]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def change_a_digit(path: Path) -> None:
    text = path.read_text()
    assert '"seed": 3' in text
    path.write_text(text.replace('"seed": 3', '"seed": 4'))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: flip_a_byte(d / "weights-00000-000.safetensors"), "not as written"),
        (lambda d: (d / "moments-00000-000.safetensors").unlink(), "moments.* is missing"),
        (lambda d: (d / "manifest.json").unlink(), "has no manifest.json"),
        (lambda d: (d / "manifest.json").write_text('{"schema": 1'), "it is not JSON"),
        (lambda d: (d / "fragments.json").write_text("[]"), "fragments.json has 2 bytes"),
        (lambda d: cut_short(d / "weights-00000-000.safetensors"), "weights.* has .* bytes, its"),
        (lambda d: cut_short(d / "manifest.json"), "it is not JSON"),
        (lambda d: change_a_digit(d / "manifest.json"), "its own digest does not fit"),
        (lambda d: flip_a_byte(d / "fragments.json"), "fragments.json"),
        (lambda d: flip_a_byte(d / "config.yaml"), "bytes of config.yaml are not as written"),
    ],
)
def test_a_damaged_newest_falls_back_with_a_warning(
    harm: object, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = store(tmp_path)
    for step in (10, 20):
        checkpoints.save(manifest(step), fragments(), texts={"config.yaml": "a: 1"})
    harm(checkpoints.path(20))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        newest = checkpoints.newest()
    assert newest is not None
    assert newest.manifest.step == 10
    (record,) = caplog.records
    assert record.getMessage().startswith("Checkpoint of step 20 is passed over: ")
    assert re.search(words, record.getMessage())


def test_when_all_are_damaged_nothing_is_started_anew(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    for step in (10, 20):
        flip_a_byte(checkpoints.path(step) / "weights-00000-000.safetensors")
    with pytest.raises(CheckpointError, match=r"All 2 checkpoints in .* are damaged"):
        checkpoints.newest()


def test_an_interrupted_save_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    aside = tmp_path / ".saving-step-00000020"
    aside.mkdir()
    (aside / "weights-00000-000.safetensors").write_bytes(b"half")
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.manifest.step == 10
    checkpoints.save(manifest(20), fragments())
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000020"]


def test_the_manifest_is_written_last_and_the_folder_renamed_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write_text = store_module.write_text

    def spy(path: Path, text: str):
        written.append((path.name, sorted(p.name for p in path.parent.iterdir())))
        assert not (tmp_path / "step-00000010").exists()
        return write_text(path, text)

    monkeypatch.setattr(store_module, "write_text", spy)
    saved(tmp_path, 10)
    assert [name for name, _ in written] == ["fragments.json", "manifest.json"]
    assert written[-1][1] == [
        "fragments.json",
        "moments-00000-000.safetensors",
        "weights-00000-000.safetensors",
    ]


def test_a_save_that_fails_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 10)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_text", full)
    with pytest.raises(CheckpointError, match=r"step 20 could not be written.*No space left"):
        checkpoints.save(manifest(20), fragments())
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def test_a_full_disk_leaves_the_older_ones(tmp_path: Path) -> None:
    """The operating system refuses the bytes in the middle of the tensors."""
    checkpoints = saved(tmp_path, 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 20 could not be written to .*rank 0: .*"):
            checkpoints.save(manifest(20), fragments())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.manifest.step == 10


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"does not see .*file system that every node shares"):
        store(tmp_path / "file").save(manifest(1), fragments())


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    checkpoints.save(manifest(10, seed=9), fragments())
    assert open_checkpoint(checkpoints.path(10)).manifest.seed == 9
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def health(updates: int, **changes: object) -> Health:
    return dataclasses.replace(Health(updates=updates, skipped_lately=0), **changes)  # type: ignore[arg-type]


def broken(value: float) -> Iterator[Fragment]:
    """The last of the fragments holds one bad value."""
    *others, last = fragments()
    yield from others
    yield dataclasses.replace(last, values=torch.tensor([1.0, value]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_recorded_and_nothing_goes_on_from_them(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = store(tmp_path)
    checkpoints.save(manifest(10, health=health(10)), fragments())
    with caplog.at_level(logging.WARNING):
        checkpoints.save(manifest(20, health=health(20)), broken(value))
    assert "Checkpoint of step 20: values in it are not finite; no run will use it" in caplog.text
    found = open_checkpoint(checkpoints.path(20)).manifest.health
    assert found == health(20, finite=False)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.manifest.step == 10
    assert newest.manifest.health == health(10)
    assert "Checkpoint of step 20 is passed over: values in it are not finite." in caplog.text
    good = checkpoints.last_good(updates=21, left=())
    assert good is not None
    assert good.manifest.step == 10


def test_when_no_values_are_finite_nothing_is_started_anew(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    checkpoints.save(manifest(10, health=health(10)), broken(math.nan))
    with pytest.raises(CheckpointError, match=r"All 1 checkpoints in .* damaged or not finite"):
        checkpoints.newest()


@pytest.mark.parametrize(
    ("newest", "left", "words"),
    [
        (health(20), (), None),
        (health(20, skipped_lately=2), (), "2 of the steps before it were not finite"),
        (health(25), (), "no update was made with its weights"),
        (health(20), ((10, 27),), "a rollback left it behind"),
        (health(20), ((4, 20),), None),  # saved when the run had gone back
        (None, (), "it is of a version that did not record its state"),
    ],
)
def test_the_last_good_checkpoint(
    newest: Health | None,
    left: tuple[tuple[int, int], ...],
    words: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a run that has made 25 updates."""
    checkpoints = store(tmp_path)
    checkpoints.save(manifest(10, health=health(10)), fragments())
    checkpoints.save(manifest(20, health=newest), fragments())
    with caplog.at_level(logging.WARNING):
        found = checkpoints.last_good(updates=25, left=left)
    assert found is not None
    assert found.manifest.step == (20 if words is None else 10)
    assert words is None or f"Checkpoint of step 20 is passed over: {words}" in caplog.text
    assert checkpoints.last_good(updates=10, left=left) is None


def test_one_to_go_back_to_is_always_kept(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=2)
    for step, found in (
        (10, health(10)),
        (20, health(19, skipped_lately=1)),
        (30, health(19, skipped_lately=2)),
    ):
        checkpoints.save(manifest(step, health=found), fragments())
    assert checkpoints.steps() == [10, 20, 30]
    # Once a newer one has proved good, the old one goes.
    checkpoints.save(manifest(40, health=health(29)), fragments())
    checkpoints.save(manifest(50, health=health(39)), fragments())
    assert checkpoints.steps() == [40, 50]


def test_another_schema_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, schema=2)
    with pytest.raises(CheckpointError, match="schema 2; this version of vltrain reads schema 1"):
        open_checkpoint(checkpoints.path(10))
