"""The proof that an engine samples what eager samples."""
