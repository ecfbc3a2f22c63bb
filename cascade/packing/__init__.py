"""Data sets in shards: made, looked at, checked and rid of copies."""
