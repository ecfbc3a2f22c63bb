"""Engines: each takes the U-Net's place in the unchanged samplers."""
