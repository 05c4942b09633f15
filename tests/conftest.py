"""What all tests share: where the real data is, and one place that decides whether there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cuda" in item.keywords and not HAS_CUDA:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photo sets; the test skips where it is absent."""
    folder = os.environ.get("MAQUETTE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MAQUETTE_DATA does not name the folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")  # it keeps nothing: property tests may use it
def host_gpu() -> Callable[..., AbstractContextManager[None]]:
    """`with host_gpu(schedule="random", seed=1):` ops take the GPU path, kernels run on the CPU (tests/shim).

    Within it torch.empty gives NaN and the largest integers, so that no result may rest on memory never written.
    """
    from scene.ops.gpu.launch import on_host
    from tests.shim.launcher import HostLauncher, why_not

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)

    @contextmanager
    def in_force(**settings: Any) -> Iterator[None]:
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)  # its fill_uninitialized_memory is what is wanted
        try:
            with on_host(HostLauncher(**settings)):
                yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    return in_force
