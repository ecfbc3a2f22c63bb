"""Public checkpoint layouts, in and out."""
