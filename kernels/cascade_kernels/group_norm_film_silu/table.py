"""Launch configurations of GroupNorm with FiLM and activation; none was measured to be the best.

`channels` are those of the image, `group` those of one group.
"""

from cascade_kernels.launch_table import Launches, LaunchRow, rows


def _launches(forward: int, backward: int) -> Launches:
    """Return every row, with the depths of the loops' pipelines."""
    return {
        "group_norm_film_silu_statistics": _two_passes(forward),
        "group_norm_film_silu_finalize": rows(("BLOCK",), ({}, (512,), 4, 1)),
        "group_norm_film_silu_apply": _two_passes(forward),
        "group_norm_film_silu_one_pass": _one_pass(forward),
        "group_norm_film_silu_backward_reduce": _two_passes(backward),
        "group_norm_film_silu_backward_finalize": rows(
            ("BLOCK_S", "BLOCK_C"), ({}, (32, 32), 4, 1)
        ),
        "group_norm_film_silu_backward_apply": _two_passes(backward),
        "group_norm_film_silu_backward_one_pass": _one_pass(backward),
    }


def _two_passes(stages: int) -> tuple[LaunchRow, ...]:
    return rows(
        ("BLOCK_HW", "BLOCK_C"),
        ({"channels": 32}, (64, 32), 4, stages),
        ({}, (32, 64), 4, stages),
    )


def _one_pass(stages: int) -> tuple[LaunchRow, ...]:
    return rows(
        ("BLOCK_HW", "BLOCK_C"),
        ({"group": 64}, (64, 64), 8, stages),
        ({"group": 128}, (32, 128), 8, stages),
    )


LAUNCHES = {"sm_80": _launches(3, 2), "sm_90": _launches(3, 2), "gfx942": _launches(1, 1)}
