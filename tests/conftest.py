"""What several tests need: synthetic rows, and the tiny model, made once and kept between runs in .cache."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import limits

settings.register_profile("shared machine", deadline=None)  # no test is timed: other programs may be running
settings.load_profile("shared machine")

# what the program keeps of videos (and nothing of the user's) lies in a folder that goes with the tests
_KEPT = tempfile.TemporaryDirectory(prefix="verl-stvg-tests-")
os.environ["XDG_CACHE_HOME"] = _KEPT.name

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("CACHE", ROOT / ".cache")).resolve()


def pytest_addoption(parser):
    limits.add_options(parser)


def pytest_configure(config):
    config.pluginmanager.register(limits.Limits(config))


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """Folder of a small synthetic data set: 32 training and 48 held-out clips."""
    from verl_stvg.data_builders.sets import synthetic

    return synthetic.build(tmp_path_factory.mktemp("data") / "synthetic", 32, 48, seed=7, progress=False)


@pytest.fixture(scope="session")
def model() -> Path:
    """Folder of the tiny warm-started model; the one `make demo` uses."""
    from verl_stvg.data_builders.testing import tiny_model

    folder = CACHE / "model"
    tiny_model.make(folder, seed=0)
    return folder


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter; returns the completed process. A crash shows both streams."""

    def run(code: str, *arguments: str, check: bool = True, **environment: str):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        assert not check or done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done

    return run
