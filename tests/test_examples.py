"""The example job for SLURM."""

import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "examples" / "slurm.sh"


def test_the_job_for_slurm_is_valid_and_starts_one_torchrun_per_node(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    for name, body in {"scontrol": 'printf "one\\ntwo\\n"', "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "one,two", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    ran = subprocess.run(
        ["bash", str(SCRIPT), "--seed", "3"],
        env={**slurm, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    words = ran.stdout.split()
    assert words[:5] == ["torchrun", "--nnodes", "2", "--nproc-per-node", "4"] and words[-2:] == ["--seed", "3"]
    assert "one:29500" in words and re.search("ntasks-per-node=1", SCRIPT.read_text())
