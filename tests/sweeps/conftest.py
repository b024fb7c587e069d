import sys
from pathlib import Path

import pytest

WORKER = """
import os, sys, time
from pathlib import Path
from inat_ft_sweeps.folder import open_sweep
from inat_ft_sweeps.worker import run_worker

id, folder, storage, seconds = sys.argv[1:]
log = Path(folder) / "log"

def objective(job):
    settings = dict(job.overrides)
    with log.open("a") as out:
        out.write(f"start {os.getpid()}\\n")
    for epoch in range(1, 4):
        time.sleep(float(seconds) / 3)
        job.report(epoch, 0.5)
    with log.open("a") as out:
        out.write(f"end {job.name}\\n")
    return 0.5 + settings["model.dropout"] / 10 + settings["optim.epochs"] / 100

print(run_worker(open_sweep(id, Path(folder), storage or None), objective))
"""


@pytest.fixture
def worker_command(tmp_path: Path):
    """The command of a worker whose trials take some seconds each."""
    return lambda id, seconds, storage="": [sys.executable, "-c", WORKER, id, str(tmp_path), storage, str(seconds)]
