"""What devices can do at most, and the share of it that a step used (MFU).

In: a device's name as CUDA gives it, and a step row with its counted operations. Out: operations
per second, and the row with its MFU. Dense products in bf16 or fp16 with sums in fp32: the makers'
figures "with sparsity" are twice these. A name that is not in the table has no peak: parts of a
device (MIG), other boards and other memories clock differently, and a guess would look like a
measurement. Rejected: measuring the peak with a large product at the start (the share would then
depend on how hot the device was).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vltrain.metrics.rows import StepRow

PEAK_TFLOPS = {
    # NVIDIA A100 data sheet, 2021: 312, the same for SXM and PCIe. The A800 differs in NVLink.
    "A100-SXM4-40GB": 312.0,
    "A100-SXM4-80GB": 312.0,
    "A100-PCIE-40GB": 312.0,
    "A100 80GB PCIe": 312.0,
    "A800-SXM4-80GB": 312.0,
    "A800 80GB PCIe": 312.0,
    # NVIDIA H100 Tensor Core GPU Architecture (white paper): SXM 989.4, PCIe 756. NVL: H100 data
    # sheet, 1,671 with sparsity. The H800 differs in NVLink and fp64.
    "H100 80GB HBM3": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H800": 989.4,
    # NVIDIA H200 data sheet: the compute of the H100 SXM.
    "H200": 989.4,
    # NVIDIA L40S data sheet: 362.05.
    "L40S": 362.0,
    # NVIDIA HGX B200 data sheet: 36 PFLOP/s of eight with sparsity.
    "B200": 2250.0,
}
"""By the name that CUDA gives, without the maker's."""


def known_peak(name: str) -> float | None:
    """Operations per second of the device ``name``, None where the table does not have it."""
    tflops = PEAK_TFLOPS.get(name.removeprefix("NVIDIA "))
    return None if tflops is None else tflops * 1e12


def with_mfu(row: StepRow, *, peak_flops: float | None) -> StepRow:
    """The row with its share of ``peak_flops``, which all devices of the run could do in a second;
    as it is where either is not known."""
    if peak_flops is None or row.model_flops is None:
        return row
    return replace(row, mfu=row.model_flops / (row.seconds * peak_flops))


def mean_mfu(rows: Sequence[StepRow]) -> float | None:
    """Over the wall time of the rows that have one, None where none has."""
    known = [(row.mfu, row.seconds) for row in rows if row.mfu is not None]
    seconds = sum(seconds for _, seconds in known)
    return sum(mfu * seconds for mfu, seconds in known) / seconds if seconds else None
