"""Prompts to embeddings: cleaning, T5's tokenizer and frozen encoder, DreamBooth identifiers."""

from cascade.text.cleaning import Cleaning, clean
from cascade.text.identifier import check_identifier, find_identifiers, rare_range
from cascade.text.prompts import Null, OnlinePrompts, PromptSource, PromptTable
from cascade.text.resident import ResidentPrompts
from cascade.text.store import EmbeddingStore, StoredPrompts
from cascade.text.t5 import TextEmbedding, TextEncoder
from cascade.text.tokenizer import Tokenizer

__all__ = [
    "Cleaning",
    "EmbeddingStore",
    "Null",
    "OnlinePrompts",
    "PromptSource",
    "PromptTable",
    "ResidentPrompts",
    "StoredPrompts",
    "TextEmbedding",
    "TextEncoder",
    "Tokenizer",
    "check_identifier",
    "clean",
    "find_identifiers",
    "rare_range",
]
