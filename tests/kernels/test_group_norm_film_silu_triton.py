"""The Triton kernels of GroupNorm with FiLM and activation against the formula in fp64.

Whatever is allocated holds NaN until it is written, and inputs lie between NaN: a kernel that reads
what it may not is found out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kernels import dispatch
from cascade_kernels.group_norm_film_silu import Activation, group_norm_film_silu
from cascade_kernels.group_norm_film_silu.inputs import Inputs

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """One shape, with `skip` channels stacked behind `channels`, and what is switched on."""

    channels: int
    groups: int
    height: int
    width: int
    batch: int = 2
    skip: int = 0
    film: bool = True
    activation: Activation = "silu"
    offset: float = 0.0
    dtype: torch.dtype = torch.float32


@pytest.fixture(autouse=True)
def _allocated_memory_is_nan() -> Iterator[None]:
    """PyTorch fills new tensors with NaN where deterministic algorithms are asked for."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def no_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest images take the way of the small ones."""
    plan = pytest.importorskip("cascade_kernels.group_norm_film_silu.plan")
    monkeypatch.setattr(plan.Plan, "slab", lambda *_: None)


@pytest.fixture
def two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small images take the way of the large ones."""
    plan = pytest.importorskip("cascade_kernels.group_norm_film_silu.plan")
    monkeypatch.setattr(plan, "ONE_PASS_PIXELS", 0)


def draw(case: Case, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs by their names, and the gradient of the output; images in channels_last memory."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def image(channels: int, offset: float) -> Tensor:
        values = normal(case.batch, case.height, case.width, channels) + offset
        return poisoned(values.to(device, case.dtype)).permute(0, 3, 1, 2)

    channels = case.channels + case.skip
    inputs = {
        "x": image(case.channels, case.offset),
        "weight": poisoned(normal(channels).to(device)),
        "bias": poisoned(normal(channels).to(device)),
    }
    if case.film:
        film = poisoned(normal(case.batch, 2 * channels).to(device))
        inputs["scale"], inputs["shift"] = film.chunk(2, dim=1)
    if case.skip:
        inputs["skip"] = image(case.skip, case.offset)
    return inputs, image(channels, 0.0)


def poisoned(values: Tensor) -> Tensor:
    """The same values in a piece of memory that has NaN before and behind them."""
    room = values.new_full((values.numel() + 128,), float("nan"))
    return room[64:-64].view(values.shape).copy_(values)


def differentiate(
    case: Case, inputs: dict[str, Tensor], dy: Tensor, backend: dispatch.Backend
) -> dict[str, Tensor]:
    """The output, and the gradient of every input by its name."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = run(case, leaves, backend)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def run(case: Case, inputs: dict[str, Tensor], backend: dispatch.Backend) -> Tensor:
    return group_norm_film_silu(
        inputs["x"],
        inputs["weight"],
        inputs["bias"],
        case.groups,
        EPS,
        inputs.get("scale"),
        inputs.get("shift"),
        case.activation,
        skip=inputs.get("skip"),
        skip_scale=2**-0.5,
        backend=backend,
    )


def error(actual: Tensor, exact: Tensor) -> float:
    """The relative error in the Frobenius norm; the absolute one where the answer is zero."""
    return float((actual.double() - exact).norm()) / (float(exact.norm()) or 1.0)


def check(case: Case, device: torch.device) -> None:
    """Every output and gradient errs at most twice as much as plain PyTorch in the same type."""
    inputs, dy = draw(case, device)
    wide = {name: t.double() for name, t in inputs.items()}
    exact = differentiate(case, wide, dy, "reference")
    # In channels_last memory a CPU's GroupNorm takes E[x^2] - E[x]^2 for the variance.
    packed = {name: t.contiguous() for name, t in inputs.items()}
    plain = differentiate(case, packed, dy, "reference")
    ours = differentiate(case, inputs, dy, "triton")
    for name, value in ours.items():
        assert value.dtype == plain[name].dtype
        # On a few numbers plain PyTorch can be exact by chance; there are about eight roundings of
        # fp32 between an input and a gradient.
        allowed = max(2 * error(plain[name], exact[name]), 8 * 2**-24)
        assert error(value, exact[name]) <= allowed, name
    for name in {"y", "x", "skip"} & ours.keys():
        assert ours[name].is_contiguous(memory_format=torch.channels_last), name


CASES = {
    # So many that their errors average out: a bias alone is a sum of 70 numbers that cancel.
    "one channel per group": Case(48, 48, 5, 7),
    "three": Case(9, 3, 5, 7, activation="gelu"),
    "twelve, the last program ragged": Case(60, 5, 5, 7, film=False),
    "forty": Case(120, 3, 4, 3, batch=1, activation="none"),
    "three, between multiples of eight": Case(63, 21, 10, 13, film=False, offset=1000.0),
    "thirteen, programs begin anywhere": Case(65, 5, 5, 7, activation="gelu"),
    "eighteen, a stack within a group": Case(100, 7, 5, 7, skip=26),
    "eighteen, a stack within eight channels": Case(45, 6, 3, 5, batch=1, skip=63),
    "forty-four, a stack within a group": Case(100, 3, 5, 7, batch=1, skip=32),
    "sixty-two, more lanes than a block": Case(124, 2, 3, 5, batch=1),
    "sixty-six, a stack within a group": Case(120, 3, 5, 7, batch=1, skip=78, offset=100.0),
    "no whole block of pixels": Case(48, 2, 11, 9, batch=1, skip=24, activation="gelu"),
    "one pixel": Case(24, 2, 1, 1),
    "one pixel, one image, one group": Case(3, 1, 1, 1, batch=1, film=False),
    "whole blocks": Case(64, 4, 16, 16, batch=1),
    "groups over the border of a stack": Case(20, 4, 5, 7, skip=28),
    "a stack in one group": Case(5, 1, 3, 3, skip=7, film=False, activation="gelu"),
    "a stack of whole blocks": Case(64, 8, 3, 3, batch=1, skip=64, activation="none"),
    "far from zero": Case(36, 3, 16, 16, batch=1, offset=1000.0),
    "a stack far from zero": Case(10, 2, 5, 7, skip=14, offset=1000.0),
    "fp16": Case(48, 4, 5, 7, batch=1, skip=16, dtype=torch.float16),
    "fp16, far from zero": Case(24, 2, 16, 16, batch=1, offset=50.0, dtype=torch.float16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_launch_is_the_formula(case: Case, kernel_device: torch.device) -> None:
    check(case, kernel_device)


@pytest.mark.usefixtures("no_slab")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_launch_that_reads_twice_is_the_formula(
    case: Case, kernel_device: torch.device
) -> None:
    check(case, kernel_device)


@pytest.mark.usefixtures("two_passes")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_three_launches_are_the_formula(case: Case, kernel_device: torch.device) -> None:
    check(case, kernel_device)


@pytest.mark.usefixtures("bfloat16_interpreter")
def test_bfloat16(kernel_device: torch.device) -> None:
    check(Case(48, 4, 5, 7, skip=16, offset=3.0, dtype=torch.bfloat16), kernel_device)
    check(Case(130, 1, 3, 3, dtype=torch.bfloat16), kernel_device)  # three launches


def test_a_large_group_takes_three_launches(kernel_device: torch.device) -> None:
    check(Case(130, 1, 3, 3), kernel_device)


@pytest.mark.parametrize("way", [None, "no_slab", "two_passes"])
def test_a_group_without_variance_is_its_offset(
    way: str | None, kernel_device: torch.device, request: pytest.FixtureRequest
) -> None:
    if way:
        request.getfixturevalue(way)
    case = Case(12, 3, 16, 16, activation="none")
    inputs, _ = draw(case, kernel_device)
    inputs["x"].fill_(1000.1)
    expected = inputs["bias"] * (1 + inputs["scale"]) + inputs["shift"]
    actual = run(case, inputs, "triton")
    # The mean of equal numbers is that number, exactly; what remains is the affine map's rounding.
    torch.testing.assert_close(actual, expected[:, :, None, None].expand_as(actual))


def test_repeats_itself_bit_for_bit(kernel_device: torch.device) -> None:
    # One launch that reads once or, backward, twice; three launches.
    for case in (Case(24, 2, 5, 7), Case(54, 3, 10, 7), Case(130, 1, 1, 3, skip=6)):
        inputs, dy = draw(case, kernel_device)
        first = differentiate(case, inputs, dy, "triton")
        second = differentiate(case, inputs, dy, "triton")
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_takes_images_in_any_layout(kernel_device: torch.device) -> None:
    case = Case(16, 4, 4, 6, skip=8)
    inputs, dy = draw(case, kernel_device)
    expected = differentiate(case, inputs, dy, "triton")
    inputs["x"], inputs["skip"] = inputs["x"].contiguous(), inputs["skip"].mT.contiguous().mT
    inputs["weight"] = inputs["weight"].repeat_interleave(2)[::2]
    actual = differentiate(case, inputs, dy.contiguous(), "triton")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_conditioning_and_parameters_may_be_of_another_type(kernel_device: torch.device) -> None:
    case = Case(16, 4, 4, 6, dtype=torch.float16)
    inputs, dy = draw(case, kernel_device)
    for name in ("weight", "bias", "scale", "shift"):
        inputs[name] = inputs[name].half()
    rounded = {name: t.float() for name, t in inputs.items() if name != "x"}
    wide = differentiate(case, {"x": inputs["x"], **rounded}, dy, "triton")
    narrow = differentiate(case, inputs, dy, "triton")
    assert torch.equal(narrow["y"], wide["y"])
    for name in rounded:
        assert torch.equal(narrow[name], wide[name].half())


@pytest.mark.parametrize("frozen", [{"weight", "bias"}, {"x"}, {"x", "weight", "bias", "scale"}])
def test_frozen_inputs_get_no_gradient(frozen: set[str], kernel_device: torch.device) -> None:
    case = Case(16, 4, 4, 6)
    inputs, dy = draw(case, kernel_device)
    expected = differentiate(case, inputs, dy, "triton")
    leaves = {n: t.detach().requires_grad_(n not in frozen) for n, t in inputs.items()}
    run(case, leaves, "triton").backward(dy)
    for name, leaf in leaves.items():
        if name in frozen:
            assert leaf.grad is None
        else:
            assert leaf.grad is not None
            assert torch.equal(leaf.grad, expected[name])


def bare(x: Tensor, groups: int) -> Inputs:
    """A call without a skip and without FiLM."""
    vector = torch.empty(x.shape[1])
    return Inputs(x, None, vector, vector, None, None, groups, EPS, "silu", 1.0)


def test_slices_cover_an_image_exactly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks, the last slice not empty, and enough of them to keep a GPU busy."""
    plan = pytest.importorskip("cascade_kernels.group_norm_film_silu.plan")
    monkeypatch.setattr(plan, "multiprocessors", lambda device: 100)
    chosen = dispatch.Launch({"BLOCK_HW": 32, "BLOCK_C": 64}, 4, 1)
    for batch, channels, side in ((1, 128, 512), (64, 192, 64), (3, 40, 33), (1, 8, 1)):
        x = torch.empty(batch, channels, side, side, device="meta")
        (blocks, slices, _), rows = plan.Plan.of(bare(x, 1)).slices(chosen)
        assert rows % 32 == 0
        assert (slices - 1) * rows < side * side <= slices * rows
        # 8 programs for each of the 100 multiprocessors, less what rounding to blocks takes.
        assert batch * blocks * slices >= min(400, batch * blocks * side * side // 32)


def test_a_program_owns_whole_groups() -> None:
    plan = pytest.importorskip("cascade_kernels.group_norm_film_silu.plan")
    chosen = dispatch.Launch({"BLOCK_HW": 64, "BLOCK_C": 64}, 8, 1)
    for channels, groups, width, together in (
        (384, 32, 48, 4),
        (2048, 32, 64, 1),
        (90, 5, 54, 4),
        (6, 6, 64, 64),
        (320, 16, 60, 4),  # two groups would be 40 channels, and leave many lanes idle
    ):
        x = torch.empty(2, channels, 8, 8, device="meta")
        expected = (-(-channels // width), 2), {"WIDTH": width, "GROUPS": together}
        assert plan.Plan.of(bare(x, groups)).whole_groups(chosen) == expected


@pytest.mark.parametrize("pixels", [64, 256, 1024])
def test_lanes_hold_every_group_from_a_multiple_of_eight(pixels: int) -> None:
    plan = pytest.importorskip("cascade_kernels.group_norm_film_silu.plan")
    for group in range(1, 122):  # more fill 128 lanes only if they begin there
        x = torch.empty(2, 32 * group, 1, pixels, device="meta")
        planned = plan.replace(plan.Plan.of(bare(x, 32)), device=torch.device("cpu"))
        for direction in ("", "backward_"):
            chosen = planned.slab(f"{direction}slab") or planned.twice(f"{direction}one_pass")
            (programs, _), constants = planned.whole_groups(chosen)
            for begin in range(0, programs * constants["WIDTH"], constants["WIDTH"]):
                assert begin % 8 + constants["WIDTH"] <= chosen.blocks["BLOCK_C"], group


THREE = ("statistics", "finalize", "apply", "backward_reduce", "backward_finalize")
ONE = ("one_pass", "slab", "backward_one_pass", "backward_slab")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kernel", [*THREE, "backward_apply", *ONE])
def test_every_row_of_the_launch_table(
    kernel: str, dtype: torch.dtype, kernel_device: torch.device, request: pytest.FixtureRequest
) -> None:
    plan = pytest.importorskip("cascade_kernels.group_norm_film_silu.plan")
    patch, name = request.getfixturevalue("monkeypatch"), f"group_norm_film_silu_{kernel}"
    case = Case(64, 8, 67, 61, batch=3, skip=32, dtype=dtype)
    method = "launch"
    if kernel in ONE:
        case = replace(case, height=8, width=7)
        method = "_owning"
    else:
        request.getfixturevalue("two_passes")
    ordinary = getattr(plan.Plan, method)
    for row in dispatch.table(kernel_device).rows(name):
        if row.limits.get("pixels", 1024) > 64:
            case = replace(case, height=16, width=15)
        patch.setattr(plan.Plan, method, partialmethod(launch, ordinary, kernel, row.launch))
        dispatch.table.cache_clear()  # or the plan of the row before would stand
        check(case, kernel_device)


def launch(
    planned: Any, ordinary: Any, tried: str, chosen: dispatch.Launch, kernel: str
) -> dispatch.Launch | None:
    """The chosen configuration for one kernel; for the others what the table says, no slab's."""
    if kernel == tried:
        return chosen
    return None if kernel.endswith("slab") else ordinary(planned, kernel)


@pytest.mark.gpu
def test_more_elements_than_32_bits_count(kernel_device: torch.device) -> None:
    torch.use_deterministic_algorithms(False)  # spares filling 8 GiB with NaN
    x = torch.empty(64, 512, 512, 128, device=kernel_device, dtype=torch.bfloat16)
    x = x.normal_().permute(0, 3, 1, 2)
    weight, bias = torch.randn(2, 128, device=kernel_device)
    y = group_norm_film_silu(x, weight, bias, 32, EPS, backend="triton")
    for b in (0, 63):
        expected = group_norm_film_silu(x[b : b + 1], weight, bias, 32, EPS, backend="reference")
        # One rounding of bf16 on either side of a boundary that fp32's errors can cross.
        torch.testing.assert_close(y[b : b + 1], expected, rtol=2**-7, atol=1e-5)
