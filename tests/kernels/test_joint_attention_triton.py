"""The kernels of joint attention against fp64: interpreted on a CPU, compiled on a GPU.

All inputs are slices of larger tensors full of NaN, and all memory that a kernel is given to write
holds NaN at first: whatever reads or leaves what it should not shows up as NaN.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kernels import dispatch, launching
from cascade_kernels.joint_attention import joint_attention
from cascade_kernels.joint_attention.inputs import Inputs, settled
from cascade_kernels.names import BackwardPath

gradients = pytest.importorskip("cascade_kernels.joint_attention.gradients")

BATCH = 2


@dataclass(frozen=True)
class Case:
    """One call: sizes, what it sees of the text, and the scale of its queries."""

    heads: int
    image: int
    text: int
    width: int
    lengths: tuple[int, int] | None
    sources: str = "joint"
    scale: float = 1.0

    def inputs(self, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
        """Q, k, v, text_k and text_v, views of two fused projections in the midst of NaN."""
        generator = torch.Generator().manual_seed(0)
        qkv = poisoned((BATCH, self.image, 3, self.heads, self.width), generator, dtype, device)
        text = poisoned((BATCH, self.text, 2, self.heads, self.width), generator, dtype, device)
        qkv[:, :, 0] *= self.scale
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        text_k, text_v = text.permute(2, 0, 3, 1, 4)
        image_source = (k, v) if self.sources != "cross" else (None, None)
        text_source = (text_k, text_v) if self.sources != "self" else (None, None)
        return [q, *image_source, *text_source]

    @property
    def recomputed(self) -> float:
        """The relative error of gradients that comes from computing huge logits twice.

        Logits reach 4 scale. A weight comes from a logit and a logarithm, each rounded in fp32, and
        dS is the difference of two products with it: four roundings. Plain PyTorch keeps the
        weights instead. Where logits are small this is less than what it is compared with.
        """
        return 16 * self.scale * torch.finfo(torch.float32).eps if self.scale > 1 else 0.0

    def length(self, device: torch.device) -> Tensor | None:
        return None if self.lengths is None else torch.tensor(self.lengths, device=device)


def poisoned(
    shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Unit normal numbers of a shape B rows k H d within a larger tensor of NaN."""
    batch, rows, kinds, heads, width = shape
    room = torch.full(
        (batch, rows + 2, kinds, heads, width + 8), torch.nan, dtype=dtype, device=device
    )
    inner = room[:, 1:-1, :, :, :width]
    inner.copy_(torch.randn(shape, generator=generator))
    return inner


def results(
    case: Case,
    inputs: list[Tensor | None],
    dtype: torch.dtype,
    backend: dispatch.Backend,
    backward: BackwardPath = "auto",
) -> list[Tensor]:
    """The output and the gradients of all inputs, computed in one type."""
    given = [x for x in inputs if x is not None]
    leaves = iter([x.to(dtype).detach().requires_grad_() for x in given])
    q, k, v, text_k, text_v = (None if x is None else next(leaves) for x in inputs)
    assert q is not None
    length = case.length(q.device)
    out = joint_attention(q, k, v, text_k, text_v, length, backend=backend, backward=backward)
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, case.image, case.heads, case.width)
    grad = torch.randn(shape, generator=generator).to(given[0]).transpose(1, 2).to(dtype)
    wanted = [x for x in (q, k, v, text_k, text_v) if x is not None]
    return [out, *torch.autograd.grad(out, wanted, grad)]


def check(
    case: Case, dtype: torch.dtype, device: torch.device, backward: BackwardPath = "auto"
) -> None:
    """Hold the error of the kernels against twice that of plain PyTorch in the same type."""
    inputs = case.inputs(dtype, device)
    exact = results(case, inputs, torch.float64, "reference")
    plain = results(case, inputs, dtype, "reference")
    for name, true, usual, ours in zip(
        ("out", "q", "k", "v", "text_k", "text_v"),
        exact,
        plain,
        results(case, inputs, dtype, "triton", backward),
        strict=False,
    ):
        # Besides, one rounding of the result, which plain PyTorch may happen to get exactly.
        size = true.norm().item()
        rounding = torch.finfo(dtype).eps + case.recomputed
        bound = 2 * (usual - true).norm().item() + rounding * size
        error = (ours - true).norm().item()
        assert error <= bound, f"{name}: {error:.2e} > {bound:.2e} of {size:.2e}"
        assert ours.dtype == dtype
        assert ours.transpose(1, 2).is_contiguous()


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


RAGGED = Case(heads=1, image=100, text=77, width=64, lengths=(77, 1))
CASES = [
    RAGGED,
    Case(heads=3, image=63, text=7, width=40, lengths=(0, 7)),
    Case(heads=3, image=1, text=1, width=80, lengths=(1, 0)),
    Case(heads=1, image=64, text=77, width=128, lengths=(33, 77)),
    Case(heads=1, image=64, text=77, width=64, lengths=None),
    Case(heads=1, image=70, text=7, width=64, lengths=(0, 3), sources="self"),
    Case(heads=1, image=100, text=77, width=64, lengths=(40, 77), sources="cross"),
    Case(heads=1, image=63, text=7, width=64, lengths=(0, 3), sources="cross"),
    # Queries of this scale make logits of about 1e3, and rows that see practically one key.
    Case(heads=1, image=63, text=7, width=64, lengths=(3, 7), scale=1000.0),
    # All logits are equal: every visible key weighs the same.
    Case(heads=1, image=63, text=7, width=64, lengths=(3, 7), scale=0.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_output_and_gradients(case: Case, dtype: torch.dtype, kernel_device: torch.device) -> None:
    check(case, dtype, kernel_device)


@pytest.mark.usefixtures("bfloat16_interpreter")
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_output_and_gradients_in_bfloat16(case: Case, kernel_device: torch.device) -> None:
    check(case, torch.bfloat16, kernel_device)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[5], CASES[7]], ids=str)
def test_a_small_image_takes_either_backward_pass(
    case: Case, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"head": case.width, "queries": case.image, "tokens": case.text, "bytes": 2}
    held = dispatch.table(kernel_device)
    if held.find("joint_attention_backward_small", shape) is None:
        pytest.skip("this architecture's table has no backward pass in one launch")
    bare = replace(held, launches={})
    for module in (gradients, launching):
        monkeypatch.setattr(module, "table", lambda device: bare)
    check(case, torch.float16, kernel_device)


@pytest.mark.parametrize("case", [case for case in CASES if case.sources != "cross"], ids=str)
def test_the_image_s_part_may_be_pytorch_s(case: Case, kernel_device: torch.device) -> None:
    on_gpu = kernel_device.type == "cuda"
    paths: tuple[BackwardPath, ...] = ("cudnn", "flash") if on_gpu else ("flash",)
    for path in paths:
        check(case, torch.float16 if on_gpu else torch.float32, kernel_device, path)


def test_who_cannot_compute_the_image_s_part_is_named(kernel_device: torch.device) -> None:
    q, text = torch.randn(2, 1, 1, 4, 16, device=kernel_device).requires_grad_()

    def attend(path: Any, *keys: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        given = (None if x is None else x.to(dtype) for x in (q, *keys, text, text))
        joint_attention(*given, None, backend="triton", backward=path)

    with pytest.raises(ValueError, match=r"'flash': the image is no source of keys\.$"):
        attend("flash", None, None)
    with pytest.raises(ValueError, match=r"'best': known are auto, own, cudnn, flash\.$"):
        attend("best", q, q)
    refused = (
        "it takes no float32" if kernel_device.type == "cuda" else "there is no cudnn on a CPU"
    )
    with pytest.raises(ValueError, match=rf"'cudnn': {refused}\.$"):
        attend("cudnn", q, q)


def test_a_measured_route_says_who_computes_the_image_s_part(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def route(op: str, device: torch.device, training: bool, shape: dict[str, int]) -> str:
        asked.append((op, training, shape["queries"]))
        return "flash"

    monkeypatch.setattr("cascade_kernels.joint_attention.inputs.route", route)
    q = torch.randn(1, 1, 4, 16, device=kernel_device)
    inputs = Inputs(q, q, q, None, None, None)
    half = Inputs(*(None if x is None else x.half() for x in inputs))
    torch.use_deterministic_algorithms(False)
    assert settled("auto", half) == "flash"
    assert settled("auto", half._replace(k=None, v=None)) == "own"
    assert settled("own", half) == "own"
    torch.use_deterministic_algorithms(True)
    assert settled("auto", half) == "own"  # PyTorch's do not repeat their bits
    assert asked == 3 * [("joint_attention_backward", True, 4)]


def test_repeats_to_the_last_bit(kernel_device: torch.device) -> None:
    inputs = RAGGED.inputs(torch.float16, kernel_device)
    first, second = (results(RAGGED, inputs, torch.float16, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_lies_beyond_the_length_has_no_influence(kernel_device: torch.device) -> None:
    case = Case(heads=1, image=20, text=40, width=64, lengths=(3, 33))
    inputs = case.inputs(torch.float32, kernel_device)
    clean = results(case, inputs, torch.float32, "triton")
    for source in inputs[3:]:
        assert source is not None
        for image, length in enumerate((3, 33)):
            source[image, :, length:] = torch.nan
    spoiled = results(case, inputs, torch.float32, "triton")
    assert all(torch.equal(a, b) for a, b in zip(clean, spoiled, strict=True))
    for gradient in clean[4:]:
        assert not gradient[0, :, 3:].any()
        assert not gradient[1, :, 33:].any()


def test_a_tensor_with_scattered_channels_is_copied(kernel_device: torch.device) -> None:
    q, k, v = (torch.randn(2, 1, 9, 32).to(kernel_device) for _ in range(3))
    scattered = q.mT.contiguous().mT
    expected = joint_attention(q, k, v, None, None, None, backend="triton")
    actual = joint_attention(scattered, k, v, None, None, None, backend="triton")
    assert torch.equal(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_row_of_this_devices_table(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    for kernel, rows in dispatch.table(device).launches.items():
        if not kernel.startswith("joint_attention"):
            continue
        for limits in (row.limits for row in rows if row.limits["bytes"] == 2):
            for lengths in ((0, 77), None):
                width, image = limits["head"], min(limits.get("queries", 1000), 1000)
                check(Case(6, image, 77, width, lengths), dtype, device)


@pytest.mark.gpu
def test_a_call_can_be_captured_in_a_graph() -> None:
    device = torch.device("cuda")
    inputs = RAGGED.inputs(torch.bfloat16, device)
    expected = results(RAGGED, inputs, torch.bfloat16, "triton")[0]  # compiles before the capture
    q, k, v, text_k, text_v = inputs
    assert q is not None
    length = RAGGED.length(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = joint_attention(q, k, v, text_k, text_v, length, backend="triton")
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
