"""Descriptions of a cascade's folder, its stages' memory, and this machine."""
