"""What must not be found in a compiled kernel, looked for in what the compiler made of it.

Triton 3.4 to 3.7.0 computes wrong gradients on Hopper where the result of a dot product is
transposed and multiplied again, `dot(trans(dS), q)` (fla-org/flash-linear-attention#640, #826,
#983): a kernel computes S^T instead. `dot(x, trans(x))` crashes on some versions (#734 there).
Double precision slips in through a Python float (linkedin/Liger-Kernel#1358). A loop that was to
be pipelined and has no asynchronous copy waits for every load.
"""

import re
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from cascade_bench.kernels.compiling import Compiled, Variant

_DOUBLE = {"ptx": re.compile(r"\.f64\b"), "amdgcn": re.compile(r"\bv_\w+_f64\b")}
_TRANSPOSED = re.compile(r"= tt\.trans .*, #mma\d*> ->")
_ASYNCHRONOUS = re.compile(r"async_copy|async_tma")
_LOCATION = re.compile(r'([^/"]+)":(\d+)')


def defects(variant: Variant, architecture: str, compiled: Compiled) -> list[str]:
    """Return what is wrong with a compiled kernel, nothing if all is well.

    Raises:
        ValueError: the kernel has a `while` loop, through which the lint does not follow values.
    """
    texts = compiled.texts
    found = Flow.read(texts["ttir"]).defects()
    if _TRANSPOSED.search(texts["ttgir"]):
        found.append("the compiler transposes the accumulator of a tensor core")
    for name, pattern in _DOUBLE.items():
        if pattern.search(texts.get(name, "")):
            found.append("computes in double precision")
    if architecture.startswith("sm_"):
        if variant.launch.num_stages > 1 and not _ASYNCHRONOUS.search(texts["ttgir"]):
            found.append("has several stages but no asynchronous copy; give it one stage")
        if not variant.fusion and "fma.rn" in texts["ptx"]:
            found.append("rounds a product and a sum at once")
    return [*found, *compiled.excess]


class Flow:
    """How values flow through a kernel in Triton's first dialect, the same for every device.

    Values are known by the ids that Triton's bindings give them.
    """

    def __init__(self) -> None:
        self.flows: list[tuple[int, int]] = []  # from, to
        self.dots: list[tuple[int, int, int, str]] = []  # left, right, result, where
        self.transposes: dict[int, tuple[int, str]] = {}  # result: operand, where
        self._bodies: dict[int, tuple[list[int], list[int]]] = {}  # region: arguments, yielded

    @classmethod
    def read(cls, ttir: str) -> "Flow":
        """Follow the values of a module.

        Args:
            ttir: the module's text.

        Raises:
            ValueError: it has a `while` loop.
        """
        from triton._C.libtriton import ir  # no public way leads to the operations

        flow = cls()
        context = ir.context()
        ir.load_dialects(context)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.ttir"
            path.write_text(ttir, encoding="utf-8")
            module = ir.parse_mlir_module(str(path), context)
        module.walk(flow._visit)  # inner operations first
        return flow

    def defects(self) -> list[str]:
        """Return the transposed results of dot products and the products with own transposes."""
        tainted = {result for _, _, result, _ in self.dots}
        size = 0
        while size != len(tainted):  # loops carry values back
            size = len(tainted)
            tainted.update(to for source, to in self.flows if source in tainted)
        found = [
            f"transposes what depends on a dot product, {where}"
            for operand, where in self.transposes.values()
            if operand in tainted
        ]
        for left, right, _, where in self.dots:
            if self._origin(left) == self._origin(right) and left != right:
                found.append(f"multiplies a value with its own transpose, {where}")
        return found

    def _origin(self, value: int) -> int:
        return self.transposes[value][0] if value in self.transposes else value

    def _visit(self, operation: Any) -> None:
        name = operation.get_name()
        uses = [operation.get_operand(i).id() for i in range(operation.get_num_operands())]
        values = [operation.get_result(i) for i in range(operation.get_num_results())]
        results = [value.id() for value in values]
        match name:
            case "scf.while":
                raise ValueError("the lint follows no values through a while loop; use a for loop.")
            case "scf.yield":
                block = operation.get_block()
                arguments = [block.get_argument(i).id() for i in range(block.get_num_arguments())]
                self._bodies[block.get_parent().id()] = arguments, uses
            case "scf.for" | "scf.if":
                self._enter(operation, uses[3:], results)  # after a loop's bounds and its step
            case _:
                self.flows += product(uses, results)
        if name == "tt.dot":
            self.dots.append((uses[0], uses[1], results[0], _where(values[0])))
        elif name == "tt.trans":
            self.transposes[results[0]] = uses[0], _where(values[0])

    def _enter(self, operation: Any, initial: list[int], results: list[int]) -> None:
        """Let values flow into a loop, around it and out of it, or out of a branch."""
        for i in range(operation.get_num_regions()):
            arguments, yielded = self._bodies.get(operation.get_region(i).id(), ([], []))
            carried = arguments[1:]  # after the loop's index; a branch has none
            for sources in (initial, yielded):
                self.flows += zip(sources, carried, strict=False)
                self.flows += zip(sources, results, strict=False)


def _where(value: Any) -> str:
    """The file and line of the source that a value is from."""
    match = _LOCATION.search(str(value.get_loc()))
    return f"{match[1]}:{match[2]}" if match else "at an unknown place"
