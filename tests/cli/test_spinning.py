import os
import subprocess
import sys

import pytest

CODE = """
import sys
from inat_ft.cli.main import _call
assert "torch" not in sys.modules
_call(lambda: __import__("torch"), set())
"""


def test_threads_of_torch_sleep_after_a_short_wait_unless_the_user_wants_otherwise() -> None:
    def openmp(**asked: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        environment = {**kept, "OMP_DISPLAY_ENV": "VERBOSE", **asked}
        return subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment
        ).stderr

    shown = openmp()
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this build of torch does not use GNU OpenMP")
    assert "GOMP_SPINCOUNT = '1000'" in shown
    assert "GOMP_SPINCOUNT = '1000'" not in openmp(OMP_WAIT_POLICY="ACTIVE")
