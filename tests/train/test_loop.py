"""The loop with a fake engine: what it divides by, what it skips, where it stops and saves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch

from vltrain.batch import (
    IGNORE,
    Fault,
    MicroBatch,
    Modality,
    Origin,
    PackPlan,
    PieceRef,
    StepPlan,
)
from vltrain.data.config import RatioUnit
from vltrain.engine.engine import StepOutcome
from vltrain.errors import CheckpointError, DataError, NonFiniteError, StoppedError
from vltrain.metrics.rows import StepRow
from vltrain.train.agree import agree
from vltrain.train.config import StabilityConfig
from vltrain.train.loop import GoneBack, Hooks, Progress, Trainer
from vltrain.train.stability import Stability

ORIGIN = Origin(source="text", shard="a.tar", key="k")


class FakeEngine:
    """Loss sum of a micro-batch: the sum of its targets. Records every call."""

    device = torch.device("cpu")

    def __init__(self, *, not_finite_at: Collection[int] = (), loss_at: dict | None = None) -> None:
        self.calls: list[tuple] = []
        self._losses: list[float] = []
        self._not_finite_at, self._loss_at = not_finite_at, loss_at or {}
        self._applied = -1

    def begin_micro(self, *, last: bool) -> None:
        self.calls.append(("begin", last))

    def forward(self, inputs: dict) -> torch.Tensor:
        targets = inputs["targets"]
        return targets[targets != IGNORE].sum().float()

    def backward(self, loss: torch.Tensor) -> None:
        self._losses.append(float(loss))

    def apply(self, rates: dict[str, float]) -> StepOutcome:
        loss, self._losses = sum(self._losses), []
        self.calls.append(("apply", rates["adaptor"]))
        self._applied += 1
        finite = self._applied not in self._not_finite_at
        loss = self._loss_at.get(self._applied, loss)
        return StepOutcome(loss=loss if finite else float("nan"), grad_norm=1.0, finite=finite)


class NoTowers:
    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}


def micro(number: int, targets: Sequence[int], *, faults: tuple[Fault, ...] = ()) -> MicroBatch:
    """One pack of language tokens with these targets."""
    row = torch.tensor([[*targets, IGNORE]])
    zeros = torch.zeros_like(row)
    return MicroBatch(
        ids=zeros,
        positions=zeros,
        segments=zeros.int(),
        targets=row,
        image_positions=torch.zeros(0, dtype=torch.int64),
        images=torch.zeros(0, 4, 4, 3, dtype=torch.uint8),
        grids=torch.zeros(0, 2, dtype=torch.int64),
        image_tokens=torch.zeros(0, dtype=torch.int64),
        num_targets={"language": len(targets), "multimodal": 0},
        num_tokens={"language": len(targets) + 1, "multimodal": 0},
        num_images=0,
        pack_numbers=(number,),
        pack_digests=(bytes([number]) * 16,),
        origins=((ORIGIN,),),
        faults=faults,
    )


def plan(step: int, numbers: Sequence[int]) -> StepPlan:
    piece = PieceRef(source=0, piece=0, tokens=3, supervised=2, image_tokens=0, images=0)
    packs = tuple(PackPlan(number=n, modality=Modality.language, pieces=(piece,)) for n in numbers)
    return StepPlan(
        step=step,
        modality=Modality.language,
        packs=packs,
        tokens={"language": 3 * len(packs), "multimodal": 0},
        supervised={"language": 2 * len(packs), "multimodal": 0},
        language_share_target=1.0,
        cursor_after={"after": step},
    )


class Recorder:
    """Hooks that remember."""

    def __init__(self) -> None:
        self.rows: list[StepRow] = []
        self.saved: list[tuple[int, dict | None]] = []
        self.faults: list[tuple[int, int]] = []
        self.failed_after: int | None = None  # rows, after which a write has failed
        self.events: list[tuple[str, int, str]] = []
        self.good: list[GoneBack] = []  # what each rollback finds; then nothing
        self.doing: list[str] = []
        self.stop: list[str | None] = []  # what is answered to each question; then nothing

    def settle(self) -> None:
        self.doing.append("settle")
        if self.failed_after is not None:
            raise CheckpointError("disk full")

    def _count(self, plan: StepPlan, faults: tuple[Fault, ...]) -> dict[str, int]:
        self.faults.append((plan.step, len(faults)))
        return {"s": sum(count for _, count in self.faults)}

    def hooks(self) -> Hooks:
        return Hooks(
            row=self.rows.append,
            faults=self._count,
            save=lambda progress: self.saved.append((progress.step, progress.cursor)),
            copied=lambda: self.doing.append("copied"),
            save_failed=lambda: (
                self.failed_after is not None and len(self.rows) >= self.failed_after
            ),
            settle=self.settle,
            learning_rates=lambda step: {"adaptor": 0.1 * (step + 1)},
            flops=lambda plan, agreed: 70.0 * len(plan.packs),
            imbalance=lambda plan: 1.0 + plan.step,
            routers=lambda step, outcome: None,
            roll_back=lambda: self.good.pop(0) if self.good else None,
            event=lambda word, step, detail: self.events.append((word, step, detail)),
            stop=lambda: self.stop.pop(0) if self.stop else None,
            doing=lambda what, step: self.doing.append(f"{what.name} {step}"),
        )


def trainer(
    loader,
    *,
    engine: FakeEngine,
    recorder: Recorder,
    steps: int,
    save_every: int = 100,
    progress: Progress | None = None,
    stability: Stability | None = None,
) -> Trainer:
    return Trainer(
        stage="align",
        unit=RatioUnit.tokens,
        modalities={"text": Modality.language},
        engine=engine,  # type: ignore[arg-type]
        towers=NoTowers(),
        loader=loader,
        hooks=recorder.hooks(),
        progress=progress or Progress(),
        stability=stability or Stability(StabilityConfig()),
        steps=steps,
        save_every=save_every,
    )


def two_steps() -> list:
    return [
        (plan(0, [0, 1]), [micro(0, [6]), micro(1, [1, 1, 1, 3])]),
        (plan(1, [2]), [micro(2, [4, 2])]),
    ]


def test_loss_is_the_mean_over_the_label_tokens_of_the_step() -> None:
    engine, recorder = FakeEngine(), Recorder()
    progress = trainer(two_steps(), engine=engine, recorder=recorder, steps=2).run()
    # (6 + 6) / 5 label tokens; a mean of the two means would be 3.75.
    assert [row.loss for row in recorder.rows] == pytest.approx([12 / 5, 3.0])
    assert engine.calls == [
        ("begin", False),
        ("begin", True),
        ("apply", pytest.approx(0.1)),
        ("begin", True),
        ("apply", pytest.approx(0.2)),
    ]
    assert progress.step == 2
    assert progress.cursor == {"after": 1}
    assert progress.counters.supervised == {"language": 7, "multimodal": 0}
    assert progress.counters.tokens == {"language": 10, "multimodal": 0}
    assert progress.counters.packs == 3
    assert recorder.rows[0].supervised == {"language": 5, "multimodal": 0}
    assert [row.rank_imbalance for row in recorder.rows] == [1.0, 2.0]
    assert [row.model_flops for row in recorder.rows] == [140.0, 70.0]
    assert [row.slots for row in recorder.rows] == [2 + 5, 3]  # targets and one place of padding
    assert recorder.rows[0].chain != recorder.rows[1].chain == progress.chain


def test_a_step_without_labels_is_skipped_and_counted() -> None:
    engine, recorder = FakeEngine(), Recorder()
    loader = [(plan(0, [0]), [micro(0, [])]), two_steps()[1]]
    progress = trainer(loader, engine=engine, recorder=recorder, steps=2).run()
    assert progress.counters.skipped_steps == 1
    assert progress.step == 2
    assert [row.skipped for row in recorder.rows] == [True, False]
    assert recorder.rows[0].loss is None
    assert recorder.rows[0].grad_norm is None
    assert [row.model_flops for row in recorder.rows] == [0.0, 70.0]  # it was not even computed
    assert [call for call in engine.calls if call[0] == "apply"] == [("apply", pytest.approx(0.2))]


def nine_steps() -> list:
    return [(plan(n, [n]), [micro(n, [1])]) for n in range(9)]


def test_a_step_that_is_not_finite_is_skipped_within_the_budget() -> None:
    engine, recorder = FakeEngine(not_finite_at=[1, 4]), Recorder()
    stability = Stability(StabilityConfig(skip_budget=2))
    run = trainer(nine_steps(), engine=engine, recorder=recorder, steps=6, stability=stability)
    progress = run.run()
    assert [row.step for row in recorder.rows if row.skipped] == [2, 5]
    assert progress.step == 6
    assert progress.counters.skipped_steps == 2
    assert [(word, step) for word, step, _ in recorder.events] == [
        ("not_finite", 2),
        ("not_finite", 5),
    ]
    assert "loss nan" in recorder.events[0][2]
    assert "nothing was updated" in recorder.events[0][2]


def test_too_many_go_back_to_the_last_checkpoint_and_on_with_the_next_data() -> None:
    engine, recorder = FakeEngine(not_finite_at=[3, 4]), Recorder()
    recorder.good = [GoneBack(step=2, updates=2)]
    stability = Stability(StabilityConfig(skip_budget=1))
    run = trainer(nine_steps(), engine=engine, recorder=recorder, steps=7, stability=stability)
    progress = run.run()
    assert [row.step for row in recorder.rows] == [1, 2, 3, 4, 5, 6, 7], "no data twice"
    assert progress.cursor == {"after": 6}
    # 7 steps; 2 updates were in the checkpoint and 2 came after: 3 are lost or were skipped.
    assert progress.counters.skipped_steps == 3
    word, step, detail = recorder.events[-1]
    assert (word, step) == ("rollback", 5)
    assert "the weights of step 2, after 2 updates, go on with the data after step 5" in detail
    # At once, so that a restart goes on from there.
    assert recorder.saved == [(5, {"after": 4}), (7, {"after": 6})]
    assert stability.left == ((2, 5),)


def test_without_rollbacks_or_checkpoint_too_many_end_the_run() -> None:
    """Going back all the same, where that is possible: the same command must not begin with weights
    that no step is finite with."""
    good = GoneBack(step=1, updates=1)
    for config, found, words, saved in (
        (
            StabilityConfig(skip_budget=0, rollbacks=0),
            [good],
            r"went back to a checkpoint 0 times .* of step 1, .* are saved as those of step 2\. ",
            [(2, {"after": 1})],
        ),
        (StabilityConfig(skip_budget=0), [], "there is no good checkpoint to go back to: ", []),
    ):
        engine, recorder = FakeEngine(not_finite_at=[1]), Recorder()
        recorder.good = list(found)
        run = trainer(
            nine_steps(),
            engine=engine,
            recorder=recorder,
            steps=3,
            save_every=2,
            stability=Stability(config),
        )
        with pytest.raises(NonFiniteError, match=rf"step 2: loss nan.*skip_budget.*{words}"):
            run.run()
        assert [row.skipped for row in recorder.rows] == [False, True]
        assert recorder.saved == saved
        assert recorder.doing[-1] == "settle", "written before the end"


def test_the_run_ends_after_its_rollbacks() -> None:
    engine, recorder = FakeEngine(not_finite_at=[1, 3]), Recorder()
    recorder.good = [GoneBack(step=0, updates=0), GoneBack(step=2, updates=0)]
    stability = Stability(StabilityConfig(skip_budget=0, rollbacks=1))
    run = trainer(nine_steps(), engine=engine, recorder=recorder, steps=7, stability=stability)
    with pytest.raises(NonFiniteError, match=r"step 4: .*went back to a checkpoint 1 times"):
        run.run()


def test_losses_that_were_left_behind_are_no_measure_of_what_went_on() -> None:
    """The mean loss of a checkpoint, by which the best are kept, is of its own weights' branch."""
    recorder = Recorder()
    recorder.good = [GoneBack(step=0, updates=0)]
    kept: list[tuple[float, int]] = []
    hooks = replace(recorder.hooks(), save=lambda p: kept.append((p.nats, p.targets)))
    run = trainer(
        nine_steps(),
        engine=FakeEngine(not_finite_at=[2]),
        recorder=recorder,
        steps=4,
        stability=Stability(StabilityConfig(skip_budget=0)),
    )
    run._hooks = hooks
    run.run()
    assert kept == [(0.0, 0), (pytest.approx(1.0), 1)]


def test_a_jump_of_the_loss_is_warned_of_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    engine, recorder = FakeEngine(loss_at={25: 9.0}), Recorder()
    loader = [(plan(n, [n]), [micro(n, [1])]) for n in range(30)]
    with caplog.at_level("WARNING", logger="vltrain.train.loop"):
        trainer(loader, engine=engine, recorder=recorder, steps=30).run()
    assert [(word, step) for word, step, _ in recorder.events] == [("loss_spike", 26)]
    assert "loss 9 after a median of 1 in the last 25 language steps" in caplog.text


def test_a_step_of_which_much_less_is_learned_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every step has two tokens, one of them learned; one step none."""
    recorder = Recorder()
    loader = [(plan(n, [n]), [micro(n, [1])]) for n in range(30)]
    loader[25] = (
        plan(25, [25]),
        [replace(micro(25, []), num_tokens={"language": 2, "multimodal": 0})],
    )
    with caplog.at_level("WARNING", logger="vltrain.train.loop"):
        trainer(loader, engine=FakeEngine(), recorder=recorder, steps=30).run()
    assert [(word, step) for word, step, _ in recorder.events] == [("label_share", 26)]
    assert "0.0% of the tokens are learned after a median of 50.0% in the last 25" in caplog.text


def test_saves_on_the_way_and_at_the_end() -> None:
    recorder = Recorder()
    loader = [(plan(n, [n]), [micro(n, [1])]) for n in range(9)]
    trainer(loader, engine=FakeEngine(), recorder=recorder, steps=5, save_every=2).run()
    assert [step for step, _ in recorder.saved] == [2, 4, 5]
    assert recorder.saved[-1][1] == {"after": 4}
    assert len(recorder.rows) == 5


def test_a_whole_run_does_not_say_that_the_data_ended(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="vltrain.train.loop"):
        trainer(two_steps(), engine=FakeEngine(), recorder=Recorder(), steps=2).run()
    assert caplog.text == ""


def test_a_signal_saves_what_is_done_and_ends_the_run() -> None:
    recorder = Recorder()
    recorder.stop = [None, None, "SIGTERM"]
    loader = [(plan(n, [n]), [micro(n, [1])]) for n in range(9)]
    run = trainer(loader, engine=FakeEngine(), recorder=recorder, steps=9)
    with pytest.raises(StoppedError, match=r"SIGTERM on rank 0: stopped after step 2 of 9") as end:
        run.run()
    assert end.value.exit_code == 75
    assert recorder.saved == [(2, {"after": 1})]
    assert [row.step for row in recorder.rows] == [1, 2]
    assert recorder.doing[-5:] == ["data 3", "agree 3", "save 2", "save 2", "settle"]


def test_the_update_waits_until_the_last_save_has_read_the_weights() -> None:
    recorder, engine = Recorder(), FakeEngine()
    apply = engine.apply

    def applied(rates: dict[str, float]) -> StepOutcome:
        recorder.doing.append("apply")
        return apply(rates)

    engine.apply = applied
    trainer(two_steps(), engine=engine, recorder=recorder, steps=2, save_every=1).run()
    assert [word for word in recorder.doing if word[:4] in ("copi", "appl", "save")] == [
        *("copied", "apply", "save 1"),
        *("copied", "apply", "save 2", "save 2"),
    ]


def test_a_signal_before_the_first_step_has_nothing_to_save() -> None:
    recorder = Recorder()
    recorder.stop = ["SIGTERM"]
    run = trainer(nine_steps(), engine=FakeEngine(), recorder=recorder, steps=9)
    with pytest.raises(StoppedError, match="stopped before the first of 9 steps; there was nothin"):
        run.run()
    assert recorder.saved == []


def test_an_error_closes_the_loader_at_once() -> None:
    """Its workers must not live as long as the traceback."""
    closed = []

    def loader():
        try:
            yield from nine_steps()
        finally:
            closed.append(True)

    recorder = Recorder()
    recorder.stop = [None, "SIGTERM"]
    with pytest.raises(StoppedError) as error:
        trainer(loader(), engine=FakeEngine(), recorder=recorder, steps=9).run()
    assert closed == [True]
    del error


def test_a_signal_after_a_save_does_not_save_again() -> None:
    recorder = Recorder()
    recorder.stop = [None, None, "SIGUSR1"]
    loader = [(plan(n, [n]), [micro(n, [1])]) for n in range(9)]
    run = trainer(loader, engine=FakeEngine(), recorder=recorder, steps=9, save_every=2)
    with pytest.raises(StoppedError, match="SIGUSR1 on rank 0"):
        run.run()
    assert recorder.saved == [(2, {"after": 1})]


def test_a_write_that_failed_ends_the_run_before_the_next_step() -> None:
    recorder = Recorder()
    recorder.failed_after = 3
    run = trainer(nine_steps(), engine=FakeEngine(), recorder=recorder, steps=9, save_every=2)
    with pytest.raises(CheckpointError, match="disk full"):
        run.run()
    assert [row.step for row in recorder.rows] == [1, 2, 3]
    assert recorder.doing[-3:] == ["agree 4", "save 3", "settle"]


def test_the_run_ends_when_the_last_checkpoint_is_written() -> None:
    recorder = Recorder()
    trainer(nine_steps(), engine=FakeEngine(), recorder=recorder, steps=3).run()
    assert recorder.doing[-2:] == ["save 3", "settle"]


def test_the_loss_since_the_last_save_is_kept_for_retention() -> None:
    recorder = Recorder()
    kept: list[tuple[float, int]] = []
    hooks = replace(recorder.hooks(), save=lambda p: kept.append((p.nats, p.targets)))
    run = trainer(two_steps(), engine=FakeEngine(), recorder=recorder, steps=2, save_every=1)
    run._hooks = hooks
    run.run()
    assert kept == [(pytest.approx(12.0), 5), (pytest.approx(6.0), 2)]


@pytest.mark.parametrize("save_every", [1, 2, 100])
def test_the_end_of_the_data_saves_and_says_so(
    caplog: pytest.LogCaptureFixture, save_every: int
) -> None:
    recorder = Recorder()
    with caplog.at_level("WARNING", logger="vltrain.train.loop"):
        loop = trainer(
            two_steps(), engine=FakeEngine(), recorder=recorder, steps=5, save_every=save_every
        )
        loop.run()
    saved = [step for step, _ in recorder.saved]
    assert saved[-1] == 2
    assert saved.count(2) == 1  # also where a save was due there
    assert "The data ended after step 2 of 5" in caplog.text


def test_goes_on_from_where_it_was() -> None:
    recorder, progress = Recorder(), Progress(step=1, cursor={"after": 0}, chain="ab" * 16)
    loader = two_steps()[1:]
    trainer(loader, engine=FakeEngine(), recorder=recorder, steps=2, progress=progress).run()
    assert [row.step for row in recorder.rows] == [2]
    assert recorder.rows[0].lr == {"adaptor": pytest.approx(0.2)}


def test_faults_are_handed_on_and_holes_counted() -> None:
    fault = Fault(origin=ORIGIN, reason="truncated", detail="half", action="hole")
    recorder = Recorder()
    micros = [micro(0, [1, 2], faults=(fault,)), micro(1, [1])]
    loader = [(plan(0, [0, 1]), micros)]
    progress = trainer(loader, engine=FakeEngine(), recorder=recorder, steps=1).run()
    assert recorder.faults == [(0, 1)]
    assert recorder.rows[0].holes == progress.counters.holes == 1
    assert recorder.rows[0].bad_records == {"s": 1}
    assert progress.counters.samples == {"language": 1, "multimodal": 0}  # two planned, one a hole


def test_faults_of_a_step_have_the_same_order_whoever_met_them() -> None:
    """On two ranks the order would be that of the ranks."""
    origins = [Origin(source=s, shard="a.tar", key=k) for s, k in (("b", "1"), ("a", "2"))]
    faults = [Fault(origin=o, reason="truncated", detail="cut", action="hole") for o in origins]
    for numbers in ([0, 1], [1, 0]):
        micros = [micro(n, [1], faults=(faults[n],)) for n in numbers]
        agreed = agree(plan(0, [0, 1]), micros, chain_head="", stop=None, failed=False)
        assert [str(fault.origin) for fault in agreed.faults] == ["a:a.tar:2", "b:a.tar:1"]


def test_targets_stay_on_the_cpu_where_the_head_wants_them() -> None:
    engine = FakeEngine()
    engine.device = torch.device("meta")
    seen: list[dict] = []
    forward = engine.forward

    def remember(inputs: dict) -> torch.Tensor:
        seen.append(inputs)
        return forward(inputs)

    engine.forward = remember  # type: ignore[method-assign]
    trainer(two_steps()[1:], engine=engine, recorder=Recorder(), steps=1).run()
    moved = {name: tensor.device.type for name, tensor in seen[0].items() if name != "features"}
    assert moved.pop("targets") == "cpu"
    assert set(moved.values()) == {"meta"}


@pytest.mark.parametrize("held", [[0], [0, 2], [0, 1, 1]])
def test_packs_that_are_not_the_plans_end_the_run(held: list[int]) -> None:
    loader = [(plan(0, [0, 1]), [micro(n, [1]) for n in held])]
    run = trainer(loader, engine=FakeEngine(), recorder=Recorder(), steps=1)
    with pytest.raises(DataError, match="step 0: the plan has packs 0 to 1"):
        run.run()


def test_the_chain_tells_steps_of_the_same_data_apart() -> None:
    recorder = Recorder()
    same = micro(0, [1])
    loader = [(replace(plan(n, [0]), step=n), [same]) for n in (0, 1)]
    trainer(loader, engine=FakeEngine(), recorder=recorder, steps=2).run()
    first, second = recorder.rows
    assert first.digest == second.digest
    assert first.chain != second.chain
