"""What the devices of a run can do at most: the 100 % of its MFU.

In: the run config and this process's device. Out: operations per second of all ranks' devices
together, or None, and one line in the log that says which.
"""

from __future__ import annotations

import logging

import torch

from vltrain import distributed
from vltrain.engine.config import Dtype
from vltrain.metrics.peaks import known_peak
from vltrain.runconfig import RunConfig

log = logging.getLogger(__name__)


def run_peak(config: RunConfig, device: torch.device) -> float | None:
    """The sum over all ranks (collective). None where nobody can say what one of the devices can
    do: a CPU or another device that the table lacks, or fp32, without metrics.peak_tflops."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    ranks = distributed.gather_objects((name, _own_peak(config, name)))
    peaks = [peak for _, peak in ranks if peak is not None]
    if len(peaks) == len(ranks):
        log.info("MFU: of %.1f TFLOP/s, what all devices can do at most", sum(peaks) / 1e12)
        return sum(peaks)
    if unknown := sorted({name for name, peak in ranks if peak is None and name is not None}):
        log.info(
            "no MFU is reported: what %s can do in %s is not known here; set metrics.peak_tflops",
            ", ".join(unknown),
            config.engine.dtype.value,
        )
    return None


def _own_peak(config: RunConfig, name: str | None) -> float | None:
    given = config.metrics.peak_tflops
    if given is not None:
        return given * 1e12
    if name is None or config.engine.dtype is Dtype.fp32:
        return None
    return known_peak(name)
