import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plugin_environment(tmp_path_factory) -> Callable[..., Path]:
    """A function that makes a virtual environment with these example plugins installed by pip and returns its Python."""

    def make(*names: str) -> Path:
        home = tmp_path_factory.mktemp("venv")
        venv.create(home, with_pip=False, symlinks=True)
        site = next(home.glob("lib/python*/site-packages"))
        here = [path for path in sys.path if path.endswith("site-packages")] + [str(ROOT), str(ROOT / "plugins")]
        (site / "ours.pth").write_text("\n".join(here) + "\n")
        for name in names:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
            target = [*command, "--target", str(site), str(ROOT / "examples" / "plugins" / name)]
            ran = subprocess.run(target, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, ran.stderr
        return home / "bin" / "python"

    return make
