"""The workers of a run on several hosts, as `TF_CONFIG` describes them; no TensorFlow."""

from __future__ import annotations

import dataclasses
import os

from mobilenet import strict_json
from mobilenet.errors import UsageError

_VARIABLE = "TF_CONFIG"
_CHIEF, _WORKER = "chief", "worker"


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process of a run.

    Attributes:
        index: in the cluster; 0 is the chief, which alone writes the run folder.
        count: of workers.
    """

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        return self.index == 0


def this_worker(strategy: str) -> Worker:
    """The worker that this process is: with `multi_worker` by `TF_CONFIG`, else the only one.

    Args:
        strategy: name of the distribution strategy.

    Raises:
        UsageError: `TF_CONFIG` does not describe workers, or not this one.
    """
    text = os.environ.get(_VARIABLE)
    if strategy != "multi_worker" or not text:
        return Worker()
    try:
        config = strict_json.loads(text.encode())
        cluster, task = config["cluster"], config["task"]
        tasks = [
            (kind, index)
            for kind in (_CHIEF, _WORKER)
            for index in range(len(cluster.get(kind, ())))
        ]
        return Worker(tasks.index((task["type"], int(task["index"]))), len(tasks))
    except (AttributeError, KeyError, TypeError, ValueError):
        cluster, task = '{"worker": ["HOST:PORT", ...]}', '{"type": "worker", "index": 0}'
        expected = f'{{"cluster": {cluster}, "task": {task}}}'
        raise UsageError(_VARIABLE, text, expected, "each worker has its own index") from None
