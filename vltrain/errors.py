"""The errors that a user can reach.

Each message says what was found, what was expected, where, and what to do. ``assert`` is for our
own mistakes; everything a config, a shard, an image or a checkpoint can cause is one of these.
"""

from __future__ import annotations


class VltrainError(Exception):
    """Base of every error that is the user's to mend; launchers print it without a traceback.

    ``on_all_ranks``: every rank raises it at the same point, so the first speaks for all.
    ``exit_code``: what a launch script ends with (docs/cluster.md lists them).
    """

    on_all_ranks = False
    exit_code = 2


class ConfigError(VltrainError):
    """A value, key or combination in the run config is refused."""

    on_all_ranks = True


class DataError(VltrainError):
    """A shard, index, sidecar or source as a whole cannot be used."""


class RecordFault(VltrainError):
    """One record cannot be used. It is counted in the ledger and leaves a hole; it never stops a
    run by itself.

    ``reason`` is a short stable word (``not_an_image``, ``truncated``, ``too_long``, ...), for
    counting.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RecordFault], tuple[str, str]]:
        """Pickles (between worker processes) with both arguments."""
        return type(self), (self.reason, self.detail)


class FaultBudgetExceeded(DataError):
    """More records of a source are bad than its budget allows."""

    on_all_ranks = True


class CheckpointError(VltrainError):
    """A checkpoint is incomplete, damaged or does not fit."""

    on_all_ranks = True


class RecordingError(VltrainError):
    """A file of the run directory cannot be written."""


class ContractError(VltrainError):
    """A stage was started from something that it may not start from."""

    on_all_ranks = True


class WeightsError(VltrainError):
    """Published or exported weights are missing, unexpected or of another shape."""

    on_all_ranks = True


class EngineError(VltrainError):
    """The engine's settings contradict each other or the machine."""


class NonFiniteError(VltrainError):
    """Loss or gradients are not finite."""

    on_all_ranks = True


class StoppedError(VltrainError):
    """A signal asked the run to stop. What was done, if anything, is saved; the same command goes
    on."""

    on_all_ranks = True
    exit_code = 75  # EX_TEMPFAIL of sysexits.h: not a failure, try again


class RankLostError(VltrainError):
    """Another process of the run failed, was killed or stands still."""

    exit_code = 3
