"""The compilations that the rows of a launch table ask for, with the switches of their launches."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cache
from inspect import signature
from typing import Any

import torch

from cascade.config.folders import CONFIGS
from cascade_bench.kernels.compiling import Variant
from cascade_bench.kernels.shapes import levels
from cascade_kernels.group_norm_film_silu import backward as norm_backward
from cascade_kernels.group_norm_film_silu import forward as norm
from cascade_kernels.group_norm_film_silu import slab
from cascade_kernels.group_norm_film_silu.plan import Plan, holding, lanes
from cascade_kernels.joint_attention import backward as attention_backward
from cascade_kernels.joint_attention import backward_small as attention_small
from cascade_kernels.joint_attention import forward as attention
from cascade_kernels.launch_table import Launch, LaunchRow, Table
from cascade_kernels.sampler_step import forward as step
from cascade_kernels.sampler_step import percentile


def variants(table: Table) -> Iterator[Variant]:
    """Yield every compilation that the rows of a table ask for."""
    yield from _joint_attention(table)
    yield from _group_norm_film_silu(table)
    yield from _sampler_step(table)


def _joint_attention(table: Table) -> Iterator[Variant]:
    """Yield both sources with lengths, in heads that fill their block.

    Rows of two-byte types come once more with heads that leave a part of their block unused, or
    have a smaller one, and those of dQ with the text alone, which adds to what another's kernel has
    found for the image.
    """
    for kernel in (
        attention.joint_attention_forward,
        attention_backward.joint_attention_backward_q,
        attention_backward.joint_attention_backward_kv,
        attention_small.joint_attention_backward_small,
    ):
        for row in table.launches.get(_name(kernel), ()):
            width, element = row.limits["head"], "bf16" if row.limits["bytes"] == 2 else "fp32"
            kinds = {"LSE": "*fp32", "DELTA": "*fp32", "TEXT_LENGTH": "*i32"}
            heads = {64: (64, 40, 32), 128: (128, 80)}[width]
            sources: list[tuple[int, dict[str, Any]]] = [(head, {"ADD": False}) for head in heads]
            if "ADD" in _parameters(kernel):
                sources.append((width, {"ADD": True, "K": None, "V": None}))
            for head, switches in sources if element == "bf16" else sources[:1]:
                yield _variant(
                    f"{element}/d{head}" + ("/add" if switches["ADD"] else ""),
                    kernel,
                    row.launch,
                    {**attention.constants(head), **switches},
                    _kinds(f"*{element}", kinds),
                    {x for x in _parameters(kernel) if x.endswith(("_b", "_h", "_n"))},
                )


_IMAGES = ("X", "SKIP", "Y", "DY", "DX", "DSKIP")
_OPTIONAL = {"SKIP", "DSKIP", "SCALE", "SHIFT", "DSCALE", "DSHIFT"}


def _group_norm_film_silu(table: Table) -> Iterator[Variant]:
    """Yield all inputs in fp32, the fewest in bf16, and what trains: all in bf16."""
    for kernel in (
        norm.group_norm_film_silu_statistics,
        norm.group_norm_film_silu_finalize,
        norm.group_norm_film_silu_apply,
        norm.group_norm_film_silu_one_pass,
        slab.group_norm_film_silu_slab,
        norm_backward.group_norm_film_silu_backward_reduce,
        norm_backward.group_norm_film_silu_backward_finalize,
        norm_backward.group_norm_film_silu_backward_apply,
        norm_backward.group_norm_film_silu_backward_one_pass,
        slab.group_norm_film_silu_backward_slab,
    ):
        optional = _OPTIONAL & set(_parameters(kernel))
        for row in table.launches.get(_name(kernel), ()):
            first, *others = _whole_groups(table, kernel, row)
            yield _norm("fp32", kernel, row, first)
            if optional:
                yield _norm("bf16", kernel, row, first, optional)
                for groups in (first, *others):
                    yield _norm(f"bf16/all{groups.get('WIDTH', '')}", kernel, row, groups)


def _norm(
    name: str,
    kernel: Any,
    row: LaunchRow,
    groups: Mapping[str, int],
    absent: Set[str] = frozenset(),
) -> Variant:
    element, held = name.partition("/")[0], _name(kernel).endswith("slab")
    constants = {
        "SKIP_SCALE": 1.0 if absent else 0.5,
        "EPS": 1e-5,
        "ACTIVATION": "silu" if absent else "gelu",
        "STAGES": row.launch.num_stages,
        **groups,
        **dict.fromkeys(absent),
    }
    return _variant(
        name,
        kernel,
        holding(row.limits["pixels"], row.launch) if held else row.launch,
        constants,
        _kinds("*fp32", dict.fromkeys(_IMAGES, f"*{element}")),
        {"hw", "c1", "c2", "scale_b", "shift_b", "slice_rows"},
    )


def _whole_groups(table: Table, kernel: Any, row: LaunchRow) -> list[dict[str, int]]:
    """Return the constants of what programs own in the shipped networks, the best aligned first.

    Where programs begin, relative to multiples of eight channels, changes the code; of widths that
    are alike in this the widest is taken.
    """
    if "WIDTH" not in _parameters(kernel):
        return [{}]
    found: dict[int, dict[str, int]] = {}
    for plan in _norms():
        fits = lanes(plan.group) <= row.launch.blocks["BLOCK_C"]
        if fits and table.find(_name(kernel), plan.shape) == row.launch:
            _, groups = plan.whole_groups(row.launch)
            aligned = min(groups["WIDTH"] & -groups["WIDTH"], 8)
            found[aligned] = max(found.get(aligned, groups), groups, key=lambda x: (*x.values(),))
    whole = {"WIDTH": row.launch.blocks["BLOCK_C"], "GROUPS": 1}
    return [found[x] for x in sorted(found, reverse=True)] or [whole]


@cache
def _norms() -> tuple[Plan, ...]:
    """Plan every norm of the shipped networks that one launch can do, those over a skip too.

    At a level's resolution a norm is as wide as the level or a neighbour of it, or as the level and
    one of these together.
    """
    found = {}
    for path in sorted(CONFIGS.glob("*.toml")):
        network = tuple(levels(path.stem))
        for i, level in enumerate(network):
            near = [other.channels for other in network[max(i - 1, 0) : i + 2]]
            for channels in (*near, *(level.channels + other for other in near)):
                group, pixels = channels // level.groups, level.side**2
                shape = {"channels": channels, "group": group, "pixels": pixels, "bytes": 2}
                found[channels, group, pixels] = Plan(torch.device("cpu"), shape, 512, (), channels)
    return tuple(plan for plan in found.values() if plan.one_pass)


_FULL = {"GUIDED": True, "RECALLS": True, "NOISY": step.LEARNED, "out_pixel": 1}
_ABSENT = dict.fromkeys(("PREVIOUS", "NOISE", "SCALE"))
_BARE = {"GUIDED": False, "RECALLS": False, "NOISY": step.QUIET, **_ABSENT}


def _sampler_step(table: Table) -> Iterator[Variant]:
    """Yield everything switched on, and nothing."""
    digits = [
        {"BITS": bits, "SHIFT": shift, "BINS": percentile.BINS} for bits, shift in percentile.DIGITS
    ]
    picks = [{**d, "FIRST": d is digits[0], "LAST": d is digits[-1]} for d in digits]
    kinds = {
        **dict.fromkeys(("HISTOGRAM", "PREFIX", "RANK", "LARGER"), "*i32"),
        **dict.fromkeys(("from_x", "from_out", "guidance", "weight", "cap"), "fp32"),
        **dict.fromkeys(("keep", "pull", "recall", "std", "log_small", "log_range"), "fp32"),
        "OUT": "*bf16",
    }
    kernels: tuple[tuple[Any, Sequence[Mapping[str, Any]]], ...] = (
        (step.sampler_step_pointwise, [{**_FULL, "KIND": 2}, {**_BARE, "KIND": 0}]),
        (step.sampler_step_whole, [_FULL, _BARE]),
        (step.sampler_step_predict, [{**s, **digits[0]} for s in (_FULL, _BARE)]),
        (percentile.sampler_step_digit, digits[1:]),
        (percentile.sampler_step_pick, picks),
    )
    for kernel, switches in kernels:
        for row in table.rows(_name(kernel)):
            for i, constants in enumerate(switches):
                yield _variant(
                    str(i),
                    kernel,
                    row.launch,
                    constants,
                    _kinds("*fp32", kinds),
                    {"n", "pixels", "out_image"},
                    step.FUSION,
                )


def _variant(
    name: str,
    kernel: Any,
    launch: Launch,
    constants: Mapping[str, Any],
    kind: Callable[[str], str],
    multiples: Set[str],
    fusion: bool = True,
) -> Variant:
    values = {**constants, **launch.blocks}
    names = _parameters(kernel)
    blocks = "".join(f"/{block}{size}" for block, size in launch.blocks.items())
    return Variant(
        name=f"{_name(kernel)}/{name}{blocks}/w{launch.num_warps}s{launch.num_stages}",
        kernel=kernel,
        arguments={name: kind(name) for name in names if name not in values},
        constants={name: values[name] for name in names if name in values},
        multiples=frozenset(multiples).intersection(names) - values.keys(),
        launch=launch,
        fusion=fusion,
    )


def _kinds(pointer: str, others: Mapping[str, str]) -> Callable[[str], str]:
    """Return the type of an argument by its name; those of pointers are upper case."""
    return lambda name: others.get(name, pointer if name.isupper() else "i32")


def _parameters(kernel: Any) -> list[str]:
    return list(signature(kernel.fn).parameters)


def _name(kernel: Any) -> str:
    name: str = kernel.fn.__name__
    return name
