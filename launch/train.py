"""Train one stage: deepspeed launch/train.py stage=1|2|3 [group=option] [key=value ...]

The same command again continues the run (resume=auto). Add --cfg job to see the composed config, -m
to sweep. docs/stages.md says what each stage trains; docs/cluster.md how to run on many nodes.
"""

from __future__ import annotations

from command_line import run_with_config

from stages import policy_of
from vltrain.runconfig import RunConfig


def train(config: RunConfig) -> None:
    """Check the config against its stage, build everything, run."""
    policy = policy_of(config.stage.number)
    policy.check(config)
    # Imported late: refusing a bad config must not wait for torch and DeepSpeed.
    from vltrain import distributed
    from vltrain.assemble.training import assemble_training

    with distributed.answered():
        training = assemble_training(
            config, predecessors=policy.predecessors, may_be_new=policy.may_be_new
        )
    training.run()


if __name__ == "__main__":
    run_with_config(train)
