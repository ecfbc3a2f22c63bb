"""Bundles: an exported cascade as a folder."""
