"""`cascade train`: one stage from scratch, or on from a stage's weights, on captioned pictures."""

import shutil
import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from cascade.config.folders import read_stage_config
from cascade.config.stage import StageConfig
from cascade.config.train import FREE, PretrainConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.held_out import HeldOut, open_held_out
from cascade.data.opening import data_identity, open_samples, place_of, with_texts
from cascade.data.place import is_address
from cascade.data.resident import ResidentSamples
from cascade.data.stream import SKIPPED, Skipping, Stream
from cascade.data.texts import bring_store
from cascade.errors import UserError
from cascade.files import file_digest
from cascade.progress import is_heard
from cascade.stage import check_weights
from cascade.text.encoder import TextEncoder
from cascade.text.files import EncoderFiles
from cascade.text.prompts import (
    OnlinePrompts,
    PromptEncoder,
    PromptSource,
    open_text,
)
from cascade.text.store import EmbeddingStore
from cascade.text.tokenizer import SAMPLED, report_lost
from cascade.training.checkpoint import CHECKPOINTS, checkpoint_steps, remove_checkpoints
from cascade.training.distributed import Processes, process_group
from cascade.training.forecast import Probe, micro_batch, tell, training
from cascade.training.loop import train
from cascade.training.objective import check_variance, without_variance
from cascade.training.optim import check_optimizer
from cascade.training.other_stages import OtherStages, open_others
from cascade.training.pretrain_validation import make_validation
from cascade.training.publish import can_grow, publish, published
from cascade.training.resident import require_memory, resident_prompts
from cascade.training.resources import require_disk, require_room
from cascade.training.run_dir import (
    RunClaim,
    acquire_run_dir,
    require_free,
    text_identity,
)
from cascade.training.shared_encoder import EMBEDDINGS, SharedEncoder, open_encoder
from cascade.training.trackers import check_trackers
from cascade.training.validation import Validation
from cascade.training.weights import FreshWeights, StoredWeights, Weights


def pretrain(config: PretrainConfig, minutes: float | None = None) -> Path:
    """Train a stage and write it to `output/stage`; started again, it goes on where it was.

    Args:
        minutes: after which it stops with a checkpoint, counted from here; None is never.

    Returns:
        The stage's folder.

    Raises:
        UserError: data, weights or text encoder are missing or do not fit, or the output folder
            holds a run with other settings.
        TimeIsUp: the minutes are over and the run is not.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    plan, folder = _plan(config), _folder(config)
    samples = plan.samples
    with process_group(config.train.parallel.timeout_minutes, config.output) as processes:
        _require_memory(plan, processes)
        with acquire_run_dir(_claim(plan), processes):
            finished = published(folder, config.output, config.train.steps)
            if processes.is_main and not finished:
                _tell(plan, processes)
            processes.barrier()  # all processes have looked before the first one publishes
            if not finished:
                prompts, validation = _embedded(plan, processes)
                trained = train(
                    plan.stage,
                    plan.weights,
                    _stream(config, samples, processes.device),
                    prompts,
                    config.train,
                    config.output,
                    processes,
                    validation,
                    deadline,
                )
                publish(trained, folder, config.output, processes)
            if processes.is_main and not config.train.keep_checkpoints:
                remove_checkpoints(config.output / CHECKPOINTS)
                shutil.rmtree(config.output / EMBEDDINGS, ignore_errors=True)
            processes.barrier()
    return folder


@dataclass(frozen=True)
class _Plan:
    """Everything a run needs.

    Attributes:
        config: the run's settings.
        samples: the rows of its stream.
        text: the encoder, not loaded, or the store of embeddings used instead.
        stage: what is trained.
        weights: what it begins with.
        others: the stages that complete it to a cascade, in validation.
        held_out: the rows that it is scored on.
    """

    config: PretrainConfig
    samples: CaptionedSamples
    text: EncoderFiles | EmbeddingStore
    stage: StageConfig
    weights: Weights
    others: OtherStages | None
    held_out: HeldOut | None


def _plan(config: PretrainConfig) -> _Plan:
    """Check the settings, the data and the weights."""
    check_variance(config.stage, config.train.objective)
    check_optimizer(config.train.optimizer)
    check_trackers(config.train, config.output)
    samples = open_samples(config.data, config.stage, config.train.seed, config.train.batch_size)
    held_out = open_held_out(config.validation, config.data, samples)
    text, samples, held_out = _open_text(config, samples, held_out)
    report_lost(text.tokenizer, samples.some_captions(SAMPLED), config.stage.text)
    named = config.validation.cascade
    others = None if named is None else open_others(named, config.stage, text)
    require_room([(config.stage, config.train)])
    weights, stage = _initial(config), config.stage
    if config.train.objective.variance == "drop":
        stage = without_variance(stage)
    require_disk(config.output, [(config.stage, config.train)])
    return _Plan(config, samples, text, stage, weights, others, held_out)


def foretell(config: PretrainConfig) -> None:
    """Tell what `pretrain` would do, and do nothing."""
    plan = _plan(config)
    with process_group(config.train.parallel.timeout_minutes, config.output) as processes:
        _require_memory(plan, processes)
        if processes.is_main:
            require_free(_claim(plan))
            _tell(plan, processes)


def _folder(config: PretrainConfig) -> Path:
    """Return the folder of the trained stage."""
    return config.output / "stage"


def _require_memory(plan: _Plan, processes: Processes) -> None:
    if plan.config.data.resident:
        require_memory(plan.config, plan.samples, plan.text, processes.device)


def _tell(plan: _Plan, processes: Processes) -> None:
    """Tell what is going to be done, and about how long it will take."""
    config, pictures = plan.config, len(plan.samples)
    if not is_heard():  # nobody would see what the probe costs
        return
    steps = checkpoint_steps(config.output / CHECKPOINTS)
    done, run = steps[-1] if steps else 0, config.train
    rows = micro_batch(run, processes.world_size)
    seconds = (run.steps - done) * Probe(processes.device).step(config.stage, run, rows)
    batch = f"{run.batch_size} of {pictures} pictures"
    tell([training(config.stage, run, done, seconds, batch)], processes.device)


def _claim(plan: _Plan) -> RunClaim:
    config, folder = plan.config, _folder(plan.config)
    grows = can_grow(config.train, folder, config.output)
    return RunClaim(
        output=config.output,
        identity=_identity(config, plan.text, plan.samples),
        growing={"train.steps"} if grows else set(),
        onwards=f"set initial_weights to {folder}",
    )


def _identity(
    config: PretrainConfig, text: EncoderFiles | EmbeddingStore, samples: CaptionedSamples
) -> dict[str, object]:
    """Return everything that the weights depend on; files by their content, not their path."""
    start = config.initial_weights
    return {
        "stage": config.stage.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude=set(FREE)),
        "data": data_identity(samples),
        "text": text_identity(text),
        "initial_weights": None if start is None else file_digest(start / "model.safetensors"),
    }


def _open_text(
    config: PretrainConfig, samples: CaptionedSamples, held_out: HeldOut | None
) -> tuple[EncoderFiles | EmbeddingStore, CaptionedSamples, HeldOut | None]:
    """Check what captions are turned into embeddings by; a store must have every one of them.

    Returns:
        The encoder or the store, and the samples and what is held out, which bring what lies beside
        the pictures.
    """
    store = None if config.embeddings is None else place_of(config.data, config.embeddings)
    text = open_text(config.text_encoder, None if store is None else bring_store(store))
    if text.width != config.stage.unet.text_width:
        raise UserError(
            f"The text embeddings of {config.embeddings or config.text_encoder} are {text.width} "
            f"wide but the network expects {config.stage.unet.text_width}; set unet.text_width to "
            f"{text.width}."
        )
    if store is not None and isinstance(text, EmbeddingStore):
        text.check_text(config.stage.text)
        samples = with_texts(samples, store)
        captions = () if samples.has_texts else chain.from_iterable(samples.all_captions())
        more: tuple[str, ...] = ()
        if held_out is not None:
            held_out = replace(held_out, samples=with_texts(held_out.samples, store))
            more = () if held_out.samples.has_texts else held_out.prompts
        text.require(chain(["", *config.validation.prompts, *more], captions))
    return text, samples, held_out


def _stream(config: PretrainConfig, samples: CaptionedSamples, device: torch.device) -> Stream:
    data = config.data
    if data.resident:
        return Stream(ResidentSamples(samples, device), prefetch=False)
    return Stream(
        samples,
        workers=data.workers,
        pin=device.type == "cuda",
        bring=samples.bring if any(is_address(one.folder) for one in data.all_sets) else None,
        ahead=data.window // 2,
        skipping=Skipping(data.most_skipped, config.output / SKIPPED),
    )


def _embedded(plan: _Plan, processes: Processes) -> tuple[PromptSource, Validation | None]:
    """Embed everything the encoder is needed for; it is freed on return if captions are cached."""
    config, samples = plan.config, plan.samples
    encoder = open_encoder(plan.text, config.encoder_mode, processes.device, processes)
    if config.data.resident:
        prompts: PromptSource = resident_prompts(
            config, plan.text, encoder, samples, processes.device
        )
    else:
        prompts = _prompts(encoder, config, samples)
    validation = make_validation(
        config, samples, plan.others, encoder, prompts, plan.held_out, processes
    )
    return prompts, validation


def _prompts(
    encoder: PromptEncoder, config: PretrainConfig, samples: CaptionedSamples
) -> PromptSource:
    text = config.stage.text
    if isinstance(encoder, TextEncoder | SharedEncoder) and encoder.mode == "layerwise":
        raise UserError(
            "Held in layerwise, the text encoder would be read from disk anew for every caption; "
            "embed the captions first with 'cascade embed' and give the store as embeddings."
        )
    if isinstance(encoder, SharedEncoder):
        encoder = encoder.keep(config.output, chain.from_iterable(samples.all_captions()), text)
    if isinstance(encoder, EmbeddingStore):  # as quick as memory, and its rows may be far larger
        return OnlinePrompts(encoder, text, cache_size=0)
    return OnlinePrompts(encoder, text)


def _initial(config: PretrainConfig) -> Weights:
    if config.initial_weights is None:
        return FreshWeights(config.stage, config.train.seed)
    there = read_stage_config(config.initial_weights)
    check_weights(config.initial_weights, there)
    if there.unet != config.stage.unet:
        raise UserError(
            f"The network in {config.initial_weights} has another shape than [stage.unet]; "
            "give the same values."
        )
    return StoredWeights(config.initial_weights)
