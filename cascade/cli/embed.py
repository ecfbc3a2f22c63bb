"""`cascade embed`: the embeddings of captions, computed once and kept on disk."""

from pathlib import Path

from cascade.cli import values
from cascade.cli.console import Quiet
from cascade.cli.options import Flag, Options, with_options
from cascade.cli.shared import ENCODER_MODE
from cascade.config.embed import EmbedConfig
from cascade.config.folders import cascade_folder, read_manifest, read_stage_config
from cascade.config.stage import TextConfig
from cascade.files import user_cache
from cascade.launch import Launch

_TEXT = "Conventions, with --encoder; a cascade has its own"

FLAGS = (
    Flag("output", ("output",), names=values.OUTPUT, parser=values.writable, metavar="FOLDER"),
    Flag("encoder", ("encoder",), parser=values.folder, metavar="FOLDER"),
    Flag("cascade", ("cascade",), parser=values.cascade, metavar="FOLDER"),
    Flag("captions", ("captions",), parser=values.existing, metavar="FILE|FOLDER"),
    Flag("caption", ("caption",), metavar="TEXT"),
    Flag("data", ("data",), parser=values.place, metavar="PACK"),
    Flag("prefix", ("prefix",), metavar="TEXT"),
    Flag("cache", ("cache",), parser=values.writable, metavar="FOLDER"),
    Flag("cleaning", ("text.cleaning",), _TEXT),
    Flag("max_length", ("text.max_length",), _TEXT),
    Flag("masked", ("text.masked",), _TEXT, names=("--masked/--unmasked",)),
    ENCODER_MODE,
    Flag("batch_size", ("batch_size",)),
    Flag("shard", ("shard",), metavar="I/N"),
    Flag("shard_size", ("shard_size",)),
    Flag("device", ("device",)),
)


@with_options(EmbedConfig, FLAGS)
def embed(options: Options[EmbedConfig], quiet: Quiet = False) -> None:
    """Embed captions into a store that training, DreamBooth and sampling read.

    With --data, those of packs: a file of embeddings for each of a pack's shards, in its order.
    Captions that are there already are skipped, so the same command goes on after an interruption.
    With layerwise, a large --batch-size makes up for reading the encoder once per batch. On several
    GPUs: torchrun --nproc-per-node N -m cascade embed ...
    """
    config = options.settings()
    encoder, text = _encoder_and_conventions(config)

    from itertools import chain

    from cascade.data.embedding import PackEmbedding
    from cascade.data.place import Place
    from cascade.environment import usable_device
    from cascade.text.captions import read_captions
    from cascade.text.embed import Embedder, Share, fill

    launch = Launch.read()
    where = usable_device(config.device)
    device = f"cuda:{launch.local_rank}" if where == "cuda" and launch.world_size > 1 else where
    share = Share.parse(config.shard) if config.shard else Share.of_process()
    embedder = Embedder.open(encoder, text, config.encoder_mode, device, config.batch_size)
    cache = config.cache or user_cache("data")
    packs = [Place(address, cache) for address in config.data]
    beside = PackEmbedding.plan(config.output, embedder, packs, config.prefix, share)
    fill(
        config.output,
        embedder,
        chain(config.caption, *map(read_captions, config.captions)),
        share=share,
        shard_bytes=config.shard_size << 20,
    )
    beside.work()


def _encoder_and_conventions(config: EmbedConfig) -> tuple[Path, TextConfig]:
    if config.encoder is not None:
        return config.encoder, config.text or TextConfig()
    folder = cascade_folder(config.cascade or "")
    manifest = read_manifest(folder)
    stage = read_stage_config(folder / manifest.stages[0])
    return folder / manifest.text_encoder, stage.text
