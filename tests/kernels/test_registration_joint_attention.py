"""Joint attention as an operator of PyTorch: tracing, autocast, checkpointing, sharding, export.

Run as a program by several processes, this file compares sharded gradients with those of one.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode

from cascade_kernels.joint_attention import decompositions, joint_attention

pytest.importorskip("triton")
OPERATOR = torch.ops.cascade.joint_attention.default
LENGTH = torch.tensor([3, 7], dtype=torch.int32)


class Layer(nn.Module):
    """A residual attention layer with the projections of the U-Net's."""

    def __init__(self, width: int = 32, text_width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.text_kv = nn.Linear(text_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, length: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        text = self.text_kv(text).unflatten(-1, (2, self.heads, -1))
        text_k, text_v = text.permute(2, 0, 3, 1, 4).unbind()
        h = joint_attention(q, k, v, text_k, text_v, length, backend="triton")
        attended: Tensor = x + self.out(h.transpose(1, 2).flatten(2))
        return attended


@pytest.fixture
def layer(kernel_device: torch.device) -> Layer:
    torch.manual_seed(0)
    return Layer().to(kernel_device)


@pytest.fixture
def inputs(kernel_device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Image tokens, text tokens and lengths of two images."""
    torch.manual_seed(1)
    x, text = torch.randn(2, 9, 32), torch.randn(2, 7, 8)
    return x.to(kernel_device), text.to(kernel_device), LENGTH.to(kernel_device)


def gradients(layer: nn.Module, out: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), list(layer.parameters())))


def all_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "sources", [pytest.param("joint", marks=pytest.mark.slow), "self", "cross"]
)
def test_opcheck(sources: str, kernel_device: torch.device) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 9, 16, device=kernel_device)
    text_k, text_v = torch.randn(2, 2, 2, 7, 16, device=kernel_device)
    image = (k, v) if sources != "cross" else (None, None)
    text = (text_k, text_v) if sources != "self" else (None, None)
    given = [None if x is None else x.requires_grad_() for x in (q, *image, *text)]
    length = LENGTH.to(kernel_device)
    # Tracing is slow and the same for any sources: once is enough.
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    tests += ["test_aot_dispatch_dynamic"] if sources == "joint" else []
    torch.library.opcheck(OPERATOR, (*given, length, "own"), test_utils=tests)
    detached = [None if x is None else x.detach() for x in given]
    out, lse = OPERATOR(*detached, length, "own")
    backward = torch.ops.cascade.joint_attention_backward.default
    call = (torch.randn_like(out), *detached, length, out, lse, "own")
    torch.library.opcheck(backward, call, test_utils=tests)


def test_a_call_that_nobody_traces_is_the_operator_s(
    layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    expected = layer(*inputs)
    with FlopCounterMode(display=False):  # a mode looks on
        seen = layer(*inputs)
    assert "cascade_joint_attention" in nodes(seen)
    assert "cascade_joint_attention" not in nodes(expected)
    assert all_equal(gradients(layer, seen), gradients(layer, expected))


def nodes(out: Tensor) -> str:
    """Names of the nodes that a result's gradient passes through."""
    names, waiting = [], [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.append(type(node).__name__)
            waiting += [following for following, _ in node.next_functions]
    return " ".join(names)


def test_second_derivatives_are_refused(
    layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    x = inputs[0].requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x, *inputs[1:]).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="joint_attention_backward has no derivative"):
        gradient.sum().backward()


def test_checkpointing_changes_no_bit(layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    expected = gradients(layer, layer(*inputs))
    again = checkpoint(layer, *inputs, use_reentrant=False)
    assert all_equal(gradients(layer, again), expected)


def test_selective_checkpointing_can_keep_its_output(
    layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    runs = []

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator != OPERATOR:
            return CheckpointPolicy.PREFER_RECOMPUTE
        runs.append(context.is_recompute)
        return CheckpointPolicy.MUST_SAVE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    expected = gradients(layer, layer(*inputs))
    out = checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)
    assert all_equal(gradients(layer, out), expected)
    assert False in runs  # the policy saw the operator


@pytest.mark.usefixtures("bfloat16_interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_chooses_the_type(dtype: torch.dtype, kernel_device: torch.device) -> None:
    torch.manual_seed(0)
    # Under autocast the projections of image and text need not agree in type.
    q, k, v = torch.randn(3, 2, 2, 9, 16, device=kernel_device).to(dtype)
    text_k, text_v = torch.randn(2, 2, 2, 7, 16, device=kernel_device).requires_grad_()
    with torch.autocast(kernel_device.type, dtype):
        out = joint_attention(q, k, v, text_k, text_v, None, backend="triton")
    assert out.dtype == dtype
    (gradient,) = torch.autograd.grad(out.sum(), [text_v])
    assert gradient.dtype == torch.float32
    assert gradient.any()


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_into_one_graph(
    dynamic: bool, layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 4) if dynamic else (2,):
        repeated = [x.repeat(batch // 2, *[1] * (x.ndim - 1)) for x in inputs]
        expected, actual = layer(*repeated), compiled(*repeated)
        assert torch.equal(actual, expected)
        # The same operations; only sums over the batch may be taken in another order.
        torch.testing.assert_close(gradients(layer, actual), gradients(layer, expected))


def test_an_exported_graph_can_do_without_the_operator(
    layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    program = torch.export.export(layer.eval(), inputs)
    assert operators(program) == {OPERATOR}
    plain = program.run_decompositions(decompositions())
    assert operators(plain) == set()
    # Two fp32 computations of values of order one, each within a few units in the last place.
    torch.testing.assert_close(plain.module()(*inputs), layer(*inputs), rtol=0, atol=4e-6)


def operators(program: torch.export.ExportedProgram) -> set[Any]:
    """The operators of this project in a graph."""
    targets = (node.target for node in program.graph.nodes if node.op == "call_function")
    return {target for target in targets if str(target).startswith("cascade.")}


@pytest.mark.parametrize("sources", ["joint", "self", "cross"])
def test_decompositions_are_the_kernels(sources: str, kernel_device: torch.device) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 9, 16, device=kernel_device)
    text_k, text_v = torch.randn(2, 2, 2, 7, 16, device=kernel_device)
    image = (k, v) if sources != "cross" else (None, None)
    text = (text_k, text_v) if sources != "self" else (None, None)
    length = torch.tensor([0, 7], device=kernel_device)
    forward, backward = decompositions().items()
    expected = forward[0](q, *image, *text, length, "own")
    # Units in the last place, of logarithms up to ten and of sums of sixteen products.
    near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    near(forward[1](q, *image, *text, length, "own"), expected)
    call = (torch.randn_like(q), q, *image, *text, length, *expected, "own")
    near(backward[1](*call), backward[0](*call))
    for one, other in zip(backward[1](*call), backward[0](*call), strict=True):
        assert one.stride() == other.stride()


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_shards_of_two_processes_get_the_gradients_of_one() -> None:
    kernels = Path(__file__).parents[2] / "kernels"
    # The processes compute on CPUs, also where there is a GPU.
    changes = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(kernels), "TRITON_INTERPRET": "1"}
    environment = {**os.environ, **changes}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", __file__]
    for _ in range(2):
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        # Once in several runs a process of gloo aborts at its start or end (SIGABRT).
        if "SIGABRT" not in ran.stderr:
            break
    assert ran.returncode == 0, ran.stderr


def _compare_shards() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    alone, sharded = Layer(), Layer()
    sharded.load_state_dict(alone.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    assert isinstance(sharded, FSDPModule)
    torch.manual_seed(dist.get_rank())
    x, text = torch.randn(2, 9, 32), torch.randn(2, 7, 8)
    alone(x, text, LENGTH).square().sum().backward()
    checkpoint(sharded, x, text, LENGTH, use_reentrant=False).square().sum().backward()
    for mine, parameter in zip(alone.parameters(), sharded.parameters(), strict=True):
        assert mine.grad is not None
        dist.all_reduce(mine.grad)
        mean, shards = mine.grad / dist.get_world_size(), parameter.grad
        assert isinstance(shards, DTensor)
        # Two numbers are added and halved on either way.
        torch.testing.assert_close(shards.full_tensor(), mean, rtol=1e-6, atol=1e-6)
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_with_inductor(dynamic: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(width=128).to("cuda", torch.bfloat16)
    x = torch.randn(2, 64, 128, device="cuda", dtype=torch.bfloat16)
    text = torch.randn(2, 7, 8, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    expected, actual = layer(x, text, LENGTH.cuda()), compiled(x, text, LENGTH.cuda())
    # Two roundings to bfloat16 of values up to four: the projections are fused differently.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2**-5)
    for one, other in zip(gradients(layer, actual), gradients(layer, expected), strict=True):
        # A norm, not every element: sums over the tokens round in another order.
        assert (one - other).norm() <= 4 * torch.finfo(torch.bfloat16).eps * other.norm()


if __name__ == "__main__":
    _compare_shards()
    # All is compared. Without the interpreter's end, where a thread of gloo may abort the process.
    os._exit(0)
