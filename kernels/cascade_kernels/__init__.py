"""The U-Net's hot operations, one file each: `joint_attention` and `group_norm_film_silu`."""
