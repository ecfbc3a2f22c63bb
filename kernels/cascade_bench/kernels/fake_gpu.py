"""A GPU that is not there: kernels are compiled for it and launched on it, and nothing runs.

What is left of a call is what it takes of the CPU, short of the driver's own launch.
"""

from typing import Any, Final
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from cascade_bench.kernels.compiling import SHARED_KIB
from cascade_kernels import dispatch

_ARCHITECTURE: Final = dispatch.INTERPRETED  # whose table a CPU's tensors take


class _Utils:
    """What Triton asks of a driver's library."""

    def load_binary(self, *_: Any) -> tuple[object, int, int, int, int]:
        """Return a module, a function, its registers, what it spills and the most threads."""
        return object(), 1, 0, 0, 1024

    def unload_module(self, _: object) -> None:
        """Do nothing."""

    def get_device_properties(self, _: int) -> dict[str, int]:
        """Return what a launch is checked against."""
        return {"max_shared_mem": 1024 * SHARED_KIB[_ARCHITECTURE]}


class _Launcher:
    """Launches nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        pass


class _Driver(DriverBase):  # type: ignore[misc]
    """A device of the architecture, with nothing behind it."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = _Utils(), _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(_ARCHITECTURE.removeprefix("sm_")), 32)

    def get_active_torch_device(self) -> str:
        return "cpu"

    def get_benchmarker(self) -> None:
        return None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def take_fake_gpu() -> None:
    """Let tensors of the CPU take the kernels, for the rest of this process."""
    driver.set_active(_Driver())
    mock.patch.object(dispatch, "unsupported_reason", return_value="").start()
