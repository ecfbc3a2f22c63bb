"""Launch configurations of a sampler's step; none was measured to be the best.

`values` are those of one image.
"""

from cascade_kernels.launch_table import Launches, rows


def _launches(most_warps: int) -> Launches:
    return {
        "sampler_step_pointwise": rows(("BLOCK",), ({}, (1024,), 4, 1)),
        "sampler_step_whole": rows(
            ("BLOCK", "CHUNK"),
            ({"values": 1024}, (1024, 1024), 4, 1),
            ({"values": 4096}, (4096, 2048), 8, 1),
            ({"values": 16384}, (16384, 4096), most_warps, 1),
        ),
        "sampler_step_predict": rows(("BLOCK",), ({}, (4096,), 8, 1)),
        "sampler_step_digit": rows(("BLOCK",), ({}, (4096,), 8, 1)),
        "sampler_step_pick": rows((), ({}, (), 4, 1)),
    }


LAUNCHES = {"sm_80": _launches(32), "sm_90": _launches(32), "gfx942": _launches(16)}
