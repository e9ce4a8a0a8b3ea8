from __future__ import annotations

import pytest

from mainspring.kernels import Kernels, load_kernels
from mainspring.kernels.cpu import machine


@pytest.fixture(scope="package")
def reference() -> Kernels:
    return load_kernels("reference")


@pytest.fixture(scope="package", params=machine().isas)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Every instruction set that this machine has, on two threads."""
    return load_kernels(request.param, threads=2)


@pytest.fixture(scope="package")
def alone(kernels: Kernels) -> Kernels:
    """The same instruction set on one thread."""
    return load_kernels(kernels.name, threads=1)
