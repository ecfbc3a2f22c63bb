"""The commands that this package brings to `cascade`, by entry points; importing them is quick."""
