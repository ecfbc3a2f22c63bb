"""The proof that an engine draws what eager draws."""
