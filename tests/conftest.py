"""What tests share: where data lies, which of them need a GPU, one thread per worker."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Keep every test, and every process a test starts, off the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    """Parallel workers that each start a thread per core slow each other down."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that a test starts


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder (photos, captions, tokenizers); absent, the test is skipped."""
    folder = Path(os.environ.get("DREAMCASCADE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data folder at {folder}; name one in DREAMCASCADE_SHARED")
    return folder
