"""Personalised pixel-space diffusion: an Imagen-style cascade and DreamBooth on all its stages."""
