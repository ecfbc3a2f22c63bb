"""What the kernels owe a GPU at the network's sizes: the first shape of the benchmark's list."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cascade_bench.kernels.command import OPERATIONS
from cascade_bench.kernels.problem import OURS, Gate, KernelProblem, Operation, Shape
from cascade_bench.timing import side_stream

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


def _problem(operation: Operation[Shape]) -> KernelProblem:
    return operation.problem(operation.cases()[0], torch.bfloat16, DEVICE)


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


@each
def test_two_runs_are_equal_to_the_last_bit(operation: Operation[Shape]) -> None:
    problem = _problem(operation)
    function = problem.providers[OURS]()
    assert Gate(problem).excess(function) <= 1
    assert all(map(torch.equal, problem.answers(function), problem.answers(function)))


@each
def test_a_replayed_graph_gives_what_a_call_gives(operation: Operation[Shape]) -> None:
    problem = _problem(operation)
    function = problem.providers[OURS]()
    with side_stream(DEVICE), torch.no_grad():
        function(*problem.leaves)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            captured = function(*problem.leaves)
        for leaf in problem.leaves:
            leaf.normal_()
        graph.replay()
        assert all(map(torch.equal, _several(captured), _several(function(*problem.leaves))))


@each
def test_compiles_into_one_graph_with_inductor(operation: Operation[Shape]) -> None:
    problem = _problem(operation)
    torch.compiler.reset()
    assert Gate(problem).excess(torch.compile(problem.providers[OURS](), fullgraph=True)) <= 1


@each
def test_small_shapes_are_right(operation: Operation[Shape]) -> None:
    """What the memory checker below is given."""
    for shape in operation.dry_cases():
        problem = operation.problem(shape, torch.bfloat16, DEVICE)
        assert Gate(problem).excess(problem.providers[OURS]()) <= 1


@pytest.mark.slow
@each
def test_the_memory_checker_finds_no_faulty_access(operation: Operation[Shape]) -> None:
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("compute-sanitizer is not installed")
    test = f"{Path(__file__)}::{test_small_shapes_are_right.__name__}[{operation.name}]"
    # Every tensor gets an allocation of its own: inside the allocator's blocks no access is out
    # of bounds.
    memcheck = [checker, "--tool", "memcheck", "--error-exitcode", "99"]
    done = subprocess.run(
        [*memcheck, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
