"""``python -m gemma_alignment.pipelines.follower``: one more process of a run, started by its first one."""

import sys

from gemma_alignment.pipelines.arm_nodes import answer_with_policy, train_policy
from gemma_alignment.pipelines.several import follow

if __name__ == "__main__":
    sys.exit(follow(train_policy, answer_with_policy))
