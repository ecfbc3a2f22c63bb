"""Launch configurations of GroupNorm with FiLM and activation; none was measured to be the best.

`channels` are those of the image, `group` those of one group.
"""

from cascade_kernels.launch_table import Launches, LaunchRow, rows


def _launches(forward: int, backward: int, small: int) -> Launches:
    """Return every row, with the depths of the pipelines of loops, `small` in a small image's."""
    one_pass = ("BLOCK_HW", "BLOCK_C")
    return {
        "group_norm_film_silu_statistics": _two_passes(forward),
        "group_norm_film_silu_finalize": rows(("BLOCK",), ({}, (512,), 4, 1)),
        "group_norm_film_silu_apply": _two_passes(forward),
        "group_norm_film_silu_one_pass": rows(
            one_pass,
            ({"channels": 32}, (32, 32), 4, small),
            ({"group": 64}, (32, 64), 4, small),
            ({"group": 128}, (16, 128), 4, small),
        ),
        "group_norm_film_silu_slab": rows(
            ("BLOCK_C",),
            ({"pixels": 64, "group": 64}, (64,), 4, 1),
            ({"pixels": 64, "group": 128}, (128,), 8, 1),
            ({"pixels": 256, "group": 32}, (32,), 8, 1),
        ),
        "group_norm_film_silu_backward_reduce": _two_passes(backward),
        "group_norm_film_silu_backward_finalize": rows(
            ("BLOCK_S", "BLOCK_C"), ({}, (32, 32), 4, 1)
        ),
        "group_norm_film_silu_backward_apply": _two_passes(backward),
        "group_norm_film_silu_backward_one_pass": rows(
            one_pass,
            ({"channels": 32}, (32, 32), 4, small),
            ({"group": 64}, (16, 64), 4, small),
            ({"group": 128}, (8, 128), 4, small),
        ),
        # With more pixels a program's registers, or its idle lanes, leave a multiprocessor to one.
        "group_norm_film_silu_backward_slab": rows(
            ("BLOCK_C",),
            ({"pixels": 64, "group": 32}, (32,), 4, 1),
            ({"pixels": 64, "group": 64}, (64,), 4, 1),
        ),
    }


def _two_passes(stages: int) -> tuple[LaunchRow, ...]:
    return rows(
        ("BLOCK_HW", "BLOCK_C"),
        ({"channels": 32}, (64, 32), 4, stages),
        ({}, (32, 64), 4, stages),
    )


LAUNCHES = {
    "sm_80": _launches(3, 2, 3),
    "sm_90": _launches(3, 2, 3),
    "gfx942": _launches(1, 1, 1),
}
