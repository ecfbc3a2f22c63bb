"""A text encoder's files, copied as one: shards and variants become `model.safetensors`."""

from pathlib import Path

from cascade.files import copy_file
from cascade.formats.weights import Weights, write_weights
from cascade.text.encoder import meta_model
from cascade.text.files import EncoderFiles


def encoder_weights(source: EncoderFiles) -> Weights:
    """Open the weights of an encoder under the names in its files.

    Raises:
        UserError: a file is damaged, or they do not fit each other.
    """
    meta_model(source)
    return Weights(dict(source.weights.values()))


def write_encoder(source: EncoderFiles, folder: Path, vocabulary: Path) -> None:
    """Write an encoder's configuration and weights, and its vocabulary where it is wanted.

    Raises:
        UserError: a file is damaged.
    """
    copy_file(source.folder / "config.json", folder / "config.json")
    copy_file(source.vocabulary, vocabulary)
    weights = encoder_weights(source)
    # transformers refuses files that do not say what they were saved from.
    metadata = {"format": "pt"}
    write_weights(folder / "model.safetensors", weights.headers, weights.__getitem__, metadata)
