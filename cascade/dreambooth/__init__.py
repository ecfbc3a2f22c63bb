"""DreamBooth on every stage of a cascade (Ruiz et al. 2022)."""
