"""wandb: offline without a key, never a question, never the end of a run."""

from __future__ import annotations

import logging
import sys
import time

import pytest
import wandb
from wandb.errors import CommError, Error

from vltrain.metrics.config import WandbConfig, WandbMode
from vltrain.metrics.sinks import Interval
from vltrain.metrics.wandb_sink import WandbSink, choose_mode, has_key, wandb_metrics


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_no_key_means_offline():
    assert choose_mode(WandbMode.auto) == "offline"


def test_a_key_in_the_environment_means_online(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode(WandbMode.auto) == "online"
    assert choose_mode(WandbMode.offline) == "offline"


def test_a_key_in_netrc_means_online(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()


def test_a_damaged_netrc_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine\nnonsense here\n")
    assert not has_key()


def test_online_without_a_key_goes_offline_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="vltrain.metrics.wandb_sink"):
        assert choose_mode(WandbMode.online) == "offline"
    assert "no key is set (WANDB_API_KEY or netrc)" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "mode"),
    [
        ("WANDB_MODE", "offline", "offline"),
        ("WANDB_MODE", "disabled", "disabled"),
        ("WANDB_DISABLED", "true", "disabled"),
    ],
)
def test_the_environment_has_the_last_word_on_auto(monkeypatch, name, value, mode):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv(name, value)
    assert choose_mode(WandbMode.auto) == mode


def test_metrics_leave_out_what_is_not_known(make_row):
    interval = Interval()
    interval.add(make_row(3, grad_norm=None))
    metrics = wandb_metrics(interval.take())
    assert metrics["step"] == 3
    assert metrics["loss"] == metrics["loss/multimodal"] == 2.5
    assert metrics["lr/adaptor"] == 1e-3
    assert metrics["tokens/multimodal"] == 600
    assert metrics["ratio/language_realised"] == 0.0
    assert metrics["throughput/tokens_per_second"] == 300.0
    assert "grad_norm" not in metrics
    assert "throughput/model_flops_per_second" not in metrics
    assert "throughput/rank_imbalance" not in metrics
    assert not {"throughput/mfu", "throughput/useful_token_share"} & metrics.keys()


def test_a_point_holds_the_sums_of_its_steps(make_row):
    interval = Interval()
    words = {"tokens": {"language": 50, "multimodal": 0}, "modality": "language"}
    words["supervised"] = {"language": 40, "multimodal": 0}
    interval.add(make_row(1, holes=2, skipped=True, grad_norm=None, loss=None))
    interval.add(make_row(2, grad_norm=1.0, rank_imbalance=1.0, mfu=0.5, slots=1200))
    interval.add(
        make_row(3, grad_norm=4.0, rank_imbalance=1.5, holes=1, bad_records={"a": 7}, **words)
    )
    metrics = wandb_metrics(interval.take())
    assert metrics["tokens/multimodal"] == 1200
    assert metrics["tokens/language"] == 50
    assert metrics["supervised/multimodal"] == 200
    assert metrics["supervised/language"] == 40
    assert metrics["holes"] == 3
    assert metrics["bad_records/a"] == 7
    assert metrics["skipped"] == 1
    assert metrics["grad_norm"] == 2.5
    assert metrics["throughput/rank_imbalance"] == 1.25
    assert metrics["throughput/mfu"] == metrics["throughput/useful_token_share"] == 0.5


def test_a_point_shows_the_layer_whose_experts_are_spread_worst(make_row):
    interval = Interval()
    routers = {"max_over_mean": [1.5, 3.0, 1.25], "entropy": [0.9, 0.75, 1.0]}
    interval.add(make_row(1, routers=routers))
    metrics = wandb_metrics(interval.take())
    assert metrics["routers/max_over_mean"] == 3.0
    assert metrics["routers/entropy"] == 0.75
    interval.add(make_row(2))
    assert not [name for name in wandb_metrics(interval.take()) if name.startswith("routers")]


def open_sink(directory, *, run_id=None, mode="auto"):
    return WandbSink(
        WandbConfig(mode=WandbMode(mode)),
        directory=directory,
        name="test",
        run_id=run_id,
        config={"optim": {"lr": 1e-3}},
        every=1,
    )


def test_an_offline_run_is_recorded_and_its_id_kept(tmp_path, make_row):
    sink = open_sink(tmp_path)
    sink.write(make_row(1))
    sink.close()
    again = open_sink(tmp_path, run_id=sink.run_id)
    again.write(make_row(2))
    again.close()
    assert again.run_id == sink.run_id
    files = sorted(p.name for p in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert set(files) == {f"run-{sink.run_id}.wandb"}


def test_no_secret_of_tags_and_name_is_recorded(tmp_path, monkeypatch):
    given = {}

    def refuse(**arguments):
        given.update(arguments)
        raise Error("not now")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED1234")
    WandbSink(
        WandbConfig(tags=["a", "with-hf_PLANTED1234"]),
        directory=tmp_path,
        name="hf_PLANTED1234",
        run_id=None,
        config={},
        every=1,
    )
    assert given["tags"] == ["a", "with-REDACTED"]
    assert given["name"] == "REDACTED"


def test_no_secret_of_the_command_line_is_recorded(tmp_path, monkeypatch, make_row):
    words = [
        "data.sources.x.path=https://user:hunter2pass@host/x.tar",
        "+engine.extra.api_key=topsecretword",
        "optim.lr=0.125",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    sink = open_sink(tmp_path)
    assert sys.argv == ["train.py", *words]
    sink.write(make_row(1))
    end = time.monotonic() + 60  # wandb looks at the words by and by, and not at all once closed
    while time.monotonic() < end:
        if any(b"optim.lr=0.125" in p.read_bytes() for p in tmp_path.rglob("*.wandb")):
            break
        time.sleep(0.05)
    sink.close()
    files = [p.read_bytes() for p in (tmp_path / "wandb").rglob("*") if p.is_file()]
    assert any(b"optim.lr=0.125" in content for content in files), "the words are recorded"
    assert any(b"https://REDACTED@host/x.tar" in content for content in files)
    for secret in (b"hunter2pass", b"topsecretword"):
        assert not any(secret in content for content in files)


def test_a_failed_start_is_a_warning_and_falls_back(tmp_path, monkeypatch, make_row, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    tried: list[str] = []

    def fail(**arguments):
        tried.append(arguments["mode"])
        raise CommError("no way out")

    monkeypatch.setattr(wandb, "init", fail)
    with caplog.at_level(logging.WARNING, logger="vltrain.metrics.wandb_sink"):
        sink = open_sink(tmp_path)
    sink.write(make_row(1))
    sink.close()
    assert tried == ["online", "offline"]
    assert "wandb did not start online (no way out); going on offline instead" in caplog.text
    assert sink.run_id


def test_a_run_that_breaks_later_is_left_alone(tmp_path, monkeypatch, make_row, caplog):
    class Broken:
        def define_metric(self, *_, **__):
            pass

        def log(self, _):
            raise Error("gone")

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    sink = open_sink(tmp_path)
    with caplog.at_level(logging.WARNING, logger="vltrain.metrics.wandb_sink"):
        sink.write(make_row(1))
        sink.write(make_row(2))
    sink.close()
    assert caplog.text.count("wandb stopped (gone)") == 1
