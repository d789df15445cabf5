"""Train one stage: deepspeed launch/train.py stage=1|2|3 [group=option] [key=value ...]

The same command again continues the run (resume=auto). Add --cfg job to see the composed config, -m
to sweep. docs/stages.md says what each stage trains; docs/cluster.md how to run on many nodes.
"""

from __future__ import annotations

from command_line import run_with_config

from stages import policy_of, start_of
from vltrain.runconfig import RunConfig


def train(config: RunConfig) -> None:
    """Check the config against its stage, build everything, run."""
    policy_of(config.stage.number).check(config)
    start = start_of(config.stage.number, without=config.stage.without)
    # Imported late: refusing a bad config must not wait for torch and DeepSpeed.
    from vltrain.assemble.training import train_stage

    train_stage(config, predecessors=start.predecessors, may_be_new=start.may_be_new)


if __name__ == "__main__":
    run_with_config(train)
