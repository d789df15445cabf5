"""The interval that lossy sinks share, and several sinks as one."""

from __future__ import annotations

import pytest

from vltrain.metrics.sinks import Interval, Sinks


def test_an_interval_weights_losses_by_targets(make_row):
    interval = Interval()
    interval.add(make_row(1, loss=2.0, supervised={"language": 0, "multimodal": 100}))
    interval.add(
        make_row(2, loss=5.0, modality="language", supervised={"language": 300, "multimodal": 0})
    )
    summary = interval.take()
    assert summary.loss == pytest.approx((2.0 * 100 + 5.0 * 300) / 400)
    assert summary.loss_by_modality == {"multimodal": 2.0, "language": 5.0}
    assert summary.tokens_per_second == pytest.approx(1200 / 4.0)
    assert summary.images_per_second == pytest.approx(8 / 4.0)
    assert summary.data_wait_share == pytest.approx(0.25)
    assert summary.flops_per_second is None
    assert (summary.mfu, summary.useful_share) == (None, None)
    assert len(interval) == 0


def test_mixed_steps_have_no_loss_by_modality(make_row):
    interval = Interval()
    interval.add(make_row(1, modality=None, model_flops=8e9))
    summary = interval.take()
    assert summary.loss_by_modality == {}
    assert summary.flops_per_second == pytest.approx(4e9)


def test_an_interval_weights_mfu_by_time(make_row):
    interval = Interval()
    interval.add(make_row(1, seconds=1.0, mfu=0.5, slots=600))
    interval.add(make_row(2, seconds=3.0, mfu=0.1, slots=1000))
    summary = interval.take()
    assert summary.mfu == pytest.approx(0.2)
    assert summary.useful_share == pytest.approx(0.75)


def test_an_interval_of_lost_losses_has_none(make_row):
    interval = Interval()
    interval.add(make_row(1, loss=None, skipped=True))
    assert interval.take().loss is None


def test_sinks_pass_rows_to_all(make_row):
    class Kept:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.closed = False

        def write(self, row) -> None:
            self.steps.append(row.step)

        def close(self) -> None:
            self.closed = True

    one, two = Kept(), Kept()
    sinks = Sinks([one, two])
    sinks.write(make_row(1))
    sinks.close()
    assert one.steps == two.steps == [1]
    assert one.closed
    assert two.closed
