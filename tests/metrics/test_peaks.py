"""MFU: only of devices whose peak is known, never a guess."""

from __future__ import annotations

import pytest

from vltrain.metrics.peaks import known_peak, mean_mfu, with_mfu


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("A100-SXM4-40GB", 312.0),  # older drivers leave out the maker
        ("NVIDIA A800-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H800", 989.4),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA B200", 2250.0),
    ],
)
def test_known_devices(name: str, tera: float) -> None:
    assert known_peak(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H20",
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 4090",
        "H1000",
    ],
)
def test_other_devices_have_no_peak(name: str) -> None:
    assert known_peak(name) is None


def test_a_rows_mfu_is_its_operations_over_what_could_have_been_done(make_row) -> None:
    row = make_row(1, seconds=2.0, model_flops=3e15)
    assert with_mfu(row, peak_flops=8 * 312e12).mfu == pytest.approx(3e15 / (2 * 2.496e15))
    assert with_mfu(row, peak_flops=None) == row
    uncounted = make_row(1)
    assert with_mfu(uncounted, peak_flops=1e12) == uncounted


def test_the_mean_is_over_the_rows_that_have_one(make_row) -> None:
    rows = [make_row(1, seconds=1.0, mfu=0.5), make_row(2, seconds=3.0, mfu=0.1), make_row(3)]
    assert mean_mfu(rows) == pytest.approx(0.2)
    assert mean_mfu(rows[2:]) is None
