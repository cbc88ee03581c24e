"""Stands in for the trainer in tests of sweeps: a run folder in milliseconds, without the package.

Top-1 is 90 - 1000 |lr - 0.01| + seed. A rate of 0.5 fails with one line; with 0.25 the first run of
a folder waits for SIGTERM, writes a state, and the second one ends only if it has that state.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def terminate(number: int, frame: object) -> None:
    state.write_text("saved")
    sys.exit(143)


flags = [word.removeprefix("--").split("=", 1) for word in sys.argv[1:]]
values = dict(pair for pair in flags if len(pair) == 2)
overrides = dict(text.split("=", 1) for name, *rest in flags if name == "override" for text in rest)
folder, seed = Path(values["model_dir"]), int(values["seed"])
rate = float(overrides.get("train.lr", 0.01))
state = folder / "state"
with Path(os.environ["FAKE_TRAINER_LOG"]).open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\n")
if rate == 0.5:
    print("first line\n--lr: got 0.5, expected less", file=sys.stderr)
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text(os.environ["FAKE_TRAINER_CONFIG"])
if rate == 0.25 and not state.exists():
    signal.signal(signal.SIGTERM, terminate)
    (folder / "waits").touch()
    time.sleep(60)
    sys.exit(1)
top1 = 90 - 1000 * abs(rate - 0.01) + seed
history = [{"epoch": 1, "val_top1": top1 + 2, "kept": 1}, {"epoch": 2, "val_top1": top1 - 2}]
stages = [
    {"stage": "train", "top1": top1 + 1, "top5": 99.0, "bytes": 4000, "history": history},
    {"stage": "convert", "top1": top1, "top5": 99.0, "bytes": 1000 + seed, "latency_ms": 0.25},
]
for name in ("train", "export"):
    (folder / name).mkdir(exist_ok=True)
(folder / "report.json").write_text(json.dumps({"stages": stages}))
