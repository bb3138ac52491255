"""What every test may use: the folder of real photos, where it is there."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: spinning threads starve the others
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the same with more threads than cores
    SHARE = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(variable, str(SHARE))

import hypothesis
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True)  # a run fails or passes for what changed, not by chance
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real photo sets, named by RECONX_DATA; tests that need them are skipped elsewhere."""
    folder = Path(os.environ.get("RECONX_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "posed").is_dir():
        pytest.skip(f"no real photos in {folder} (set RECONX_DATA)")
    return folder
