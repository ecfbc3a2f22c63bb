"""How long a bundle's stages take."""
