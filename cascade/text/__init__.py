"""Prompts to embeddings: cleaning, T5's tokenizer and frozen encoder, DreamBooth identifiers."""
