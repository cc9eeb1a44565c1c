import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and so do the processes that they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the checkout; CI always has it, other machines need not."""
    if not SHARED.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{SHARED} is missing, and CI must have it")
        pytest.skip(f"needs {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Some commands have the processor flush denormal numbers, which other tests draw."""
    yield
    torch.set_flush_denormal(False)
