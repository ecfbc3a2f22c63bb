"""One training loop for all four flows: base and super-resolution, from scratch and DreamBooth."""
