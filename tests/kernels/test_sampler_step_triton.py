"""The step's kernels against the reference: in the interpreter, or on the GPU there is.

An image of 5 pixels a side is part of one block, one of 64 the base stage's, and one of 74 has more
values than one program holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cascade.config.stage import ThresholdConfig
from cascade_kernels.names import ThresholdKind
from cascade_kernels.sampler_step import Prediction, Update, clip, decompositions, sampler_step

SIDES = [5, 64, 74]
SMALL, LARGE = 64, 74  # one launch, and the radix select
FIXED = Update(0.7, 0.4, recall=-0.2, std=0.3)
LEARNED = Update(0.7, 0.4, recall=-0.2, log_variance=(-4.0, -1.0))
# x0 is what the network says, to the last bit.
IDENTITY = Prediction(0.0, 1.0)
STEP = Prediction(0.9, -1.5, 5.0)
DYNAMIC = ThresholdConfig(kind="dynamic", percentile=0.95)
fused = partial(sampler_step, backend="triton")


def draw(
    side: int, device: torch.device, batch: int = 2, channels: int = 3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, the network's guided output, a previous clean image and noise, in float32."""
    rng = torch.Generator().manual_seed(0)
    x, previous, noise = torch.randn(3, batch, 3, side, side, generator=rng)
    out = torch.randn(2 * batch, channels, side, side, generator=rng)
    return 4 * x.to(device), out.to(device), previous.to(device), noise.to(device)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every new tensor holds NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def apart(tensor: Tensor, axes: int) -> Tensor:
    """The same numbers inside a buffer that is larger in the first axes and NaN elsewhere."""
    gaps = [1] * axes + [0] * (tensor.dim() - axes)
    sizes = [size + 2 * gap for size, gap in zip(tensor.shape, gaps, strict=True)]
    buffer = torch.full(sizes, torch.nan, dtype=tensor.dtype, device=tensor.device)
    inner = buffer[tuple(slice(gap, -gap or None) for gap in gaps)]
    return inner.copy_(tensor)


Step = tuple[Prediction, ThresholdConfig, Update]


def assert_as_exact_as_the_reference(
    actual: tuple[Tensor, Tensor], args: tuple[Tensor, ...], step: Step
) -> None:
    x, out, previous, noise = args
    plain = sampler_step(x, out, *step, previous, noise, backend="reference")
    exact = sampler_step(x.double(), out.double(), *step, previous.double(), noise.double())
    for ours, theirs, truth in zip(actual, plain, exact, strict=True):
        error = (ours - truth).abs().max()
        # Twice the reference's own error; a unit in the last place where it happens to have none.
        assert error <= 2 * (theirs - truth).abs().max() + 2**-24 * truth.abs().max()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["none", "static", "dynamic"])
@pytest.mark.parametrize(
    ("guidance", "update"),
    [(1.0, Update(0.7, 0.3)), (5.0, FIXED), (5.0, LEARNED), (1.0, LEARNED)],
    ids=["ode", "guided sde", "guided learned", "learned"],
)
def test_matches_fp64(
    side: int, guidance: float, kind: ThresholdKind, update: Update, kernel_device: torch.device
) -> None:
    args = draw(side, kernel_device, channels=6 if update is LEARNED else 3)
    if guidance == 1:
        args = (args[0], args[1][:2], *args[2:])
    step = (
        replace(STEP, guidance=guidance),
        ThresholdConfig(kind=kind, percentile=0.9, cap=4.0),
        update,
    )
    with poisoned_memory():
        actual = fused(args[0], args[1], *step, *args[2:])
    assert_as_exact_as_the_reference(actual, args, step)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("percentile", [1e-9, 0.5, 0.95, 0.995, 1.0])
def test_the_percentile_is_exact(side: int, percentile: float, kernel_device: torch.device) -> None:
    x, out, _, _ = draw(side, kernel_device)
    out = 8 * out[:2] + 3  # the scale is above 1 at every percentile but the least
    _, x0 = fused(
        x, out, IDENTITY, ThresholdConfig(kind="dynamic", percentile=percentile), Update(1.0, 0.0)
    )
    sizes = out.abs().flatten(1)
    position = percentile * (sizes.shape[1] - 1)
    below = sizes.kthvalue(int(position) + 1).values
    above = sizes.kthvalue(min(int(position) + 2, sizes.shape[1])).values
    s = torch.lerp(below, above, position - int(position)).clamp(min=1).view(2, 1, 1, 1)
    if position in (0.0, sizes.shape[1] - 1):  # no interpolation: to the last bit
        assert torch.equal(x0, out.clamp(-s, s) / s)
    # A GPU may fuse the interpolation's product and sum: one rounding of s, one of the quotient.
    torch.testing.assert_close(x0, out.clamp(-s, s) / s, rtol=2**-22, atol=0)
    wanted = torch.quantile(sizes.double(), percentile, dim=1).clamp(min=1)
    torch.testing.assert_close(s.flatten().double(), wanted, rtol=2**-22, atol=0)


@pytest.mark.parametrize("side", [SMALL, LARGE])
def test_ties_and_constants(side: int, kernel_device: torch.device) -> None:
    """Equal values, zeros of both signs, neighbours that differ in the first digit or the last."""
    n = 3 * side * side
    row = torch.arange(n)
    rows = torch.stack(
        [
            torch.full((n,), -2.0),
            torch.zeros(n),
            torch.where(row % 2 == 0, -0.0, 0.0),
            torch.where(row < n // 2, -1.5, 3e4),  # the median lies between two distant values
            torch.where(row < n // 2, 2.0, 2.0 + 2**-22),  # and between two adjacent ones
            torch.where(row < n // 2, 1.0, 3e38),
            (row % 7).float(),
        ]
    )
    out = rows[:, torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    out = out.view(-1, 3, side, side).to(kernel_device)
    for percentile in (0.5, 0.9):
        threshold = SimpleNamespace(kind="dynamic", percentile=percentile, cap=2e4)
        _, x0 = fused(torch.zeros_like(out), out, IDENTITY, threshold, Update(1.0, 0.0))
        # A GPU may fuse the interpolation's product and sum.
        torch.testing.assert_close(x0, clip(out, threshold), rtol=2**-22, atol=0)
        assert x0.abs().max() <= 1


@pytest.mark.parametrize("side", [SMALL, LARGE])
@pytest.mark.parametrize("cap", [1.0, 1.5])
def test_the_cap(side: int, cap: float, kernel_device: torch.device) -> None:
    x, out, _, _ = draw(side, kernel_device)
    out = out[:2] * torch.tensor([0.1, 30.0], device=kernel_device).view(2, 1, 1, 1)
    _, x0 = fused(
        x,
        out,
        IDENTITY,
        ThresholdConfig(kind="dynamic", percentile=0.95, cap=cap),
        Update(1.0, 0.0),
    )
    assert torch.equal(x0[0], out[0])
    # By a tensor: a GPU divides by a number of Python's by multiplying with its reciprocal.
    assert torch.equal(x0[1], out[1].clamp(-cap, cap) / torch.full_like(out[1], cap))


@pytest.mark.parametrize("side", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("bfloat16_interpreter")
def test_a_half_precision_network(
    side: int, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    x, out, previous, noise = draw(side, kernel_device, channels=6)
    args = (x, out.to(dtype), previous, noise)
    actual = fused(*args[:2], STEP, DYNAMIC, LEARNED, previous, noise)
    assert [result.dtype for result in actual] == [torch.float32] * 2
    assert_as_exact_as_the_reference(actual, args, (STEP, DYNAMIC, LEARNED))


@pytest.mark.parametrize("side", [5, SMALL, LARGE])
def test_layout_and_surroundings_do_not_matter(side: int, kernel_device: torch.device) -> None:
    """An H200 disagreed in last bits while products were fused; the cure was compiled, not run."""
    args = draw(side, kernel_device, channels=6)
    step = (STEP, DYNAMIC, LEARNED)
    expected = fused(*args[:2], *step, *args[2:])
    last = tuple(tensor.contiguous(memory_format=torch.channels_last) for tensor in args)
    # Images that follow one another are read where they are; the output may have gaps as well.
    inside = (apart(args[0], 1), apart(args[1], 2), apart(args[2], 1), apart(args[3], 1))
    turned = tuple(tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in args)
    for x, out, *others in (last, inside, turned, (args[0], last[1], *args[2:])):
        assert all(map(torch.equal, fused(x, out, *step, *others), expected))


@pytest.mark.parametrize("side", [SMALL, LARGE])
def test_an_image_does_not_depend_on_its_batch(side: int, kernel_device: torch.device) -> None:
    x, out, previous, noise = draw(side, kernel_device, batch=3)
    together = fused(x, out, STEP, DYNAMIC, FIXED, previous, noise)
    alone = fused(x[1:2], out[[1, 4]], STEP, DYNAMIC, FIXED, previous[1:2], noise[1:2])
    assert all(torch.equal(one, all_[1:2]) for one, all_ in zip(alone, together, strict=True))


@pytest.mark.parametrize("side", [SMALL, LARGE])
@pytest.mark.parametrize("kind", ["none", "static", "dynamic"])
def test_nan_is_not_cleaned(side: int, kind: ThresholdKind, kernel_device: torch.device) -> None:
    x, out, previous, noise = draw(side, kernel_device)
    out[0, 1, 2, 3] = torch.nan  # one value: the percentile stays finite
    out[1] = torch.nan
    args = (x, out, STEP, ThresholdConfig(kind=kind, percentile=0.9), FIXED, previous, noise)
    actual = fused(*args)
    for ours, theirs in zip(actual, sampler_step(*args, backend="reference"), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert ours[0].isnan().sum() == 1
        assert ours[1].isnan().all()


def test_what_has_no_kernel(kernel_device: torch.device) -> None:
    x, out, previous, noise = draw(5, kernel_device)
    step = (STEP, DYNAMIC, FIXED, previous, noise)
    with pytest.raises(ValueError, match="float64"):
        fused(x.double(), out, *step)
    with pytest.raises(ValueError, match="backward"):
        fused(x, out.requires_grad_(), *step)
    with torch.no_grad():
        assert not fused(x, out, *step)[0].requires_grad
    assert sampler_step(x, out, *step)[0].requires_grad  # "auto" takes the reference


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_the_registration_is_sound(kind: ThresholdKind, kernel_device: torch.device) -> None:
    x, out, previous, noise = draw(5, kernel_device, channels=6)
    args = (x, out, previous, noise, [1.0, -2.0, 5.0], kind, 0.9, None)
    op = torch.ops.cascade.sampler_step.default
    torch.library.opcheck(op, (*args, [0.7, 0.4, -0.2, 0.0], [-4.0, -1.0]))
    torch.library.opcheck(op, (*args, [0.7, 0.4, -0.2, 0.3], None))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic: bool, kernel_device: torch.device) -> None:
    def step(x: Tensor, out: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
        return fused(x, out, STEP, DYNAMIC, FIXED, previous, noise)[0] + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3):
        args = draw(5, kernel_device, batch)
        assert torch.equal(compiled(*args), step(*args))


def test_exports_as_plain_operations(kernel_device: torch.device) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor, out: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
            return fused(x, out, STEP, DYNAMIC, LEARNED, previous, noise)[0]

    args = draw(5, kernel_device, channels=6)
    program = torch.export.export(Network(), args).run_decompositions(decompositions())
    assert not any("cascade" in str(node.target) for node in program.graph.nodes)
    # The two paths round the exponential differently.
    torch.testing.assert_close(program.module()(*args), Network()(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("side", [SMALL, 1024])
def test_a_step_is_captured_in_a_graph(side: int, kernel_device: torch.device) -> None:
    args = draw(side, kernel_device)
    fused(*args[:2], STEP, DYNAMIC, FIXED, *args[2:])  # compiles the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused(*args[:2], STEP, DYNAMIC, FIXED, *args[2:])
    for factor in (1.0, 0.5, 3.0):
        args[1].mul_(factor)
        graph.replay()
        expected = fused(*args[:2], STEP, DYNAMIC, FIXED, *args[2:])
        assert all(map(torch.equal, captured, expected))


@pytest.mark.gpu
def test_eight_images_of_1024_pixels(kernel_device: torch.device) -> None:
    """25 million values, more than `torch.quantile` takes; twice, bit for bit the same."""
    args = draw(1024, kernel_device, batch=8)
    step = (STEP, ThresholdConfig(kind="dynamic", percentile=0.995), FIXED)
    first, second = (fused(*args[:2], *step, *args[2:]) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert_as_exact_as_the_reference(first, args, step)
