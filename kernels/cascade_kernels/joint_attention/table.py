"""Launch configurations of joint attention; none was measured to be the best.

`queries` and `tokens` are counts, `head` the channels of one, `bytes` the size of an element.
Products of float32 matrices are exact and run beside the matrix units: small blocks.
"""

from cascade_kernels.launch_table import rows

_MNT = ("BLOCK_M", "BLOCK_N", "BLOCK_T")  # queries, keys of the image, keys of the text
_MN = _MNT[:2]

_SM_90 = {
    "joint_attention_forward": rows(
        _MNT,
        ({"bytes": 2, "head": 64, "queries": 256}, (64, 64, 32), 4, 3),
        ({"bytes": 2, "head": 64}, (128, 64, 32), 8, 2),
        ({"bytes": 2, "head": 128}, (128, 64, 32), 8, 2),
        ({"bytes": 4, "head": 64}, (32, 32, 32), 8, 1),
        ({"bytes": 4, "head": 128}, (32, 32, 32), 8, 1),
    ),
    "joint_attention_backward_q": rows(
        _MNT,
        ({"bytes": 2, "head": 64}, (64, 64, 32), 4, 2),
        ({"bytes": 2, "head": 128}, (64, 32, 32), 4, 2),
        ({"bytes": 4, "head": 64}, (32, 32, 32), 8, 1),
        ({"bytes": 4, "head": 128}, (32, 32, 32), 8, 1),
    ),
    "joint_attention_backward_kv": rows(
        _MN,
        ({"bytes": 2, "head": 64}, (64, 64), 4, 2),
        ({"bytes": 2, "head": 128}, (32, 64), 8, 2),
        ({"bytes": 4, "head": 64}, (32, 32), 8, 1),
        ({"bytes": 4, "head": 128}, (32, 32), 8, 1),
    ),
    # One launch for everything, where all queries fit into one tile: two or more tiles of dQ, held
    # beside those of the keys, spill at any size.
    "joint_attention_backward_small": rows(
        _MN, ({"bytes": 2, "head": 64, "queries": 64, "tokens": 320}, (64, 64), 4, 1)
    ),
}

_SM_80 = _SM_90 | {
    "joint_attention_forward": rows(
        _MNT,
        ({"bytes": 2, "head": 64, "queries": 256}, (64, 64, 32), 4, 3),
        ({"bytes": 2, "head": 64}, (128, 64, 32), 8, 2),
        ({"bytes": 2, "head": 128}, (64, 64, 32), 8, 2),
        ({"bytes": 4, "head": 64}, (32, 32, 32), 8, 1),
        ({"bytes": 4, "head": 128}, (32, 32, 32), 8, 1),
    ),
    "joint_attention_backward_q": rows(
        _MNT,
        ({"bytes": 2, "head": 64}, (64, 32, 32), 4, 2),
        ({"bytes": 2, "head": 128}, (32, 32, 32), 4, 2),
        ({"bytes": 4, "head": 64}, (32, 32, 32), 8, 1),
        ({"bytes": 4, "head": 128}, (32, 32, 32), 8, 1),
    ),
    "joint_attention_backward_kv": rows(
        _MN,
        ({"bytes": 2, "head": 64}, (32, 64), 4, 2),
        ({"bytes": 2, "head": 128}, (32, 32), 8, 2),
        ({"bytes": 4, "head": 64}, (32, 32), 8, 1),
        ({"bytes": 4, "head": 128}, (32, 32), 8, 1),
    ),
}

_GFX942 = {
    "joint_attention_forward": rows(
        _MNT,
        ({"bytes": 2, "head": 64, "queries": 256}, (64, 64, 32), 4, 1),
        ({"bytes": 2, "head": 64}, (128, 64, 32), 8, 1),
        ({"bytes": 2, "head": 128}, (128, 64, 32), 8, 1),
        ({"bytes": 4, "head": 64}, (64, 32, 32), 4, 1),
        ({"bytes": 4, "head": 128}, (32, 32, 32), 4, 1),
    ),
    "joint_attention_backward_q": rows(
        _MNT,
        ({"bytes": 2, "head": 64}, (64, 64, 32), 4, 1),
        ({"bytes": 2, "head": 128}, (64, 32, 32), 4, 1),
        ({"bytes": 4, "head": 64}, (32, 32, 32), 4, 1),
        ({"bytes": 4, "head": 128}, (16, 32, 32), 4, 1),
    ),
    "joint_attention_backward_kv": rows(
        _MN,
        ({"bytes": 2, "head": 64}, (64, 64), 4, 1),
        ({"bytes": 2, "head": 128}, (32, 64), 8, 1),
        ({"bytes": 4, "head": 64}, (32, 32), 4, 1),
        ({"bytes": 4, "head": 128}, (16, 32), 8, 1),
    ),
    "joint_attention_backward_small": rows(
        _MN, ({"bytes": 2, "head": 64, "queries": 64, "tokens": 320}, (64, 64), 4, 1)
    ),
}

LAUNCHES = {"sm_80": _SM_80, "sm_90": _SM_90, "gfx942": _GFX942}
