"""A bundle: a cascade's graphs, weights and engines as one folder, and sampling from it.

    BUNDLE/bundle.json                                    what it holds, with hashes; written last
    BUNDLE/text/                                          the text encoder, as a folder or a graph
    BUNDLE/stages/<stage>/{config.json, graph.onnx, weights.safetensors}
    BUNDLE/subjects/<name>/{about.json, <stage>.safetensors}
    BUNDLE/engines/<key>/{plan, manifest.json}            of the TensorRT kinds
    BUNDLE/report/                                        how the engines compare with eager

A graph is exported once per architecture. A subject, which is a fine-tune of the same cascade, is a
weights file for each stage that it changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cascade.config.encoder import EncoderMode
from cascade.config.engine import EngineOptions
from cascade.config.folders import CascadeManifest, check_chain, read_stage_config
from cascade.config.stage import StageConfig
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.pipeline import Cascade, print_licence
from cascade.request import whole
from cascade.stage import Stage
from cascade.text.files import EncoderFiles
from cascade.text.prompts import PromptEncoder, load_text, open_text
from cascade_export.bundle.manifest import (
    ABOUT,
    BundleManifest,
    Subject,
    Weights,
    check_file,
    read_manifest,
    read_subject,
)
from cascade_export.engines import engine_class
from cascade_export.engines.opening import open_engines
from cascade_export.engines.text_encoder import GraphTextEncoder
from cascade_export.engines.version import StageFiles
from cascade_export.graph.graph import GRAPH, Graph
from cascade_export.graph.weights import check_weights, require_numbers


@dataclass(frozen=True)
class Bundle:
    """An exported cascade on disk."""

    folder: Path
    manifest: BundleManifest

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Open a bundle and prove its files against their hashes.

        Raises:
            UserError: it is none, not whole, altered, or of a later version of this project.
        """
        folder = _folder(path)
        bundle = cls(folder, read_manifest(folder))
        for name, entry in bundle.manifest.stages.items():
            check_file(bundle.stage_folder(name) / "config.json", entry.config)
            check_file(bundle.stage_folder(name) / GRAPH, entry.graph)
            bundle.check_weights(entry.weights)
            _check_config(name, read_stage_config(bundle.stage_folder(name)), folder)
            if (entry.plan is not None) != engine_class(bundle.manifest.engine).runs_plans:
                raise UserError(
                    f"{folder} is for {bundle.manifest.engine} and has "
                    f"{'a' if entry.plan else 'no'} plan for stage '{name}'; export it again."
                )
        bundle._check_text()
        return bundle

    @property
    def text_folder(self) -> Path:
        """Return the text encoder's folder; one too large to copy is outside of the bundle."""
        return self.folder / self.manifest.cascade.text_encoder

    @property
    def plans(self) -> Path:
        """Return the folder of TensorRT's plans."""
        return self.folder / "engines"

    def stage_folder(self, name: str) -> Path:
        """Return the folder of a stage's graph, weights and settings."""
        return self.folder / "stages" / name

    def subjects(self) -> list[str]:
        """List the fine-tunes that the bundle serves beside its own weights."""
        return sorted(path.parent.name for path in self.folder.glob(f"subjects/*/{ABOUT}"))

    def subject(self, name: str) -> Subject:
        """Open a subject and prove its files against their hashes.

        Raises:
            UserError: there is none of this name, or it is damaged.
        """
        subject = self.about(name)
        for entry in subject.stages.values():
            self.check_weights(entry.weights)
        return subject

    def about(self, name: str) -> Subject:
        """Read what a subject is; its weights are not looked at.

        Raises:
            UserError: there is none of this name, or its description is damaged.
        """
        known = self.subjects()
        if name not in known:
            others = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(
                f"{self.folder} has no subject {name!r}, {others}; add one: cascade export "
                f"--cascade TUNED --into {self.folder} --subject NAME."
            )
        path = self.folder / "subjects" / name / ABOUT
        subject = read_subject(path)
        own, its = self.manifest.cascade, subject.cascade
        moved = (own.stages, own.text_encoder) != (its.stages, its.text_encoder)
        if subject.name != name or moved:
            raise UserError(
                f"{path} is of another subject or bundle; delete its folder, add it again."
            )
        for stage, entry in subject.stages.items():
            _check_config(stage, entry.config, path)
        return subject

    def configs(self, subject: Subject | None = None) -> list[StageConfig]:
        """Return the stages' settings, base first; of the bundle's own they are proven."""
        if subject is not None:
            return [subject.stages[name].config for name in self.manifest.stages]
        for name, entry in self.manifest.stages.items():
            check_file(self.stage_folder(name) / "config.json", entry.config)
        return [read_stage_config(self.stage_folder(name)) for name in self.manifest.stages]

    def files(self, subject: Subject | None = None) -> list[StageFiles]:
        """Return what the engines are opened from, base first."""
        files = [self._stage_files(name, subject) for name in self.manifest.stages]
        configs = [part.config for part in files]
        check_chain(configs, configs[0].unet.text_width, self.folder)
        return files

    def cascade(
        self,
        subject: str | Subject | None = None,
        device: torch.device | str = "cpu",
        *,
        engine: str | None = None,
        options: EngineOptions | None = None,
        max_memory: int | None = None,
        embeddings: Path | str | None = None,
        encoder_mode: EncoderMode = "auto",
    ) -> Cascade:
        """Put the engines together to a cascade, which samples as any other.

        Args:
            subject: a fine-tune, or its name; the bundle's own weights by default.
            max_memory: bytes for the stages' weights; a stage that waits leaves if it must.
            encoder_mode: how a text encoder that is no graph is held.

        Raises:
            UserError: the subject is unknown, or an engine or the text encoder cannot be opened.
        """
        chosen = self.subject(subject) if not isinstance(subject, Subject | None) else subject
        manifest = chosen.cascade if chosen else self.manifest.cascade
        print_licence(manifest)
        stages = self.stages(chosen, device, engine=engine, options=options, max_memory=max_memory)
        return self.assembled(
            manifest, self.encoder(device, embeddings, encoder_mode, options), stages
        )

    def assembled(
        self, manifest: CascadeManifest, encoder: PromptEncoder, stages: Sequence[Stage]
    ) -> Cascade:
        """Put stages and a text encoder together.

        Raises:
            UserError: they do not fit each other.
        """
        check_chain([stage.config for stage in stages], encoder.width, self.folder)
        return Cascade(manifest, encoder, stages)

    def stages(
        self,
        subject: Subject | None = None,
        device: torch.device | str = "cpu",
        *,
        engine: str | None = None,
        options: EngineOptions | None = None,
        max_memory: int | None = None,
    ) -> list[Stage]:
        """Open the engines, base first; the arguments are as in `cascade`.

        Raises:
            UserError: an engine cannot be opened.
        """
        kind = engine or self.manifest.engine
        engine_class(kind)
        where = usable_device(device)
        if max_memory is not None:
            max_memory = whole(max_memory, "max_memory", 1, 2**63 - 1)
        files = self.files(subject)
        engines = open_engines(kind, files, where, options, max_memory)
        return [Stage(part.config, each) for part, each in zip(files, engines, strict=True)]

    def encoder(
        self,
        device: torch.device | str = "cpu",
        embeddings: Path | str | None = None,
        mode: EncoderMode = "auto",
        options: EngineOptions | None = None,
    ) -> PromptEncoder:
        """Open the text encoder, which all subjects share; the arguments are as in `cascade`.

        Raises:
            UserError: it, or the store that stands in for it, cannot be opened.
        """
        as_graph = self.manifest.text.form == "graph"
        if as_graph and embeddings is None:
            return GraphTextEncoder(self.text_folder, options or EngineOptions())
        store = None if embeddings is None else Path(embeddings)
        text = open_text(None if as_graph else self.text_folder, store)
        return load_text(text, mode, device)

    def check_weights(self, weights: Weights) -> None:
        """Prove a weights file against its size and hash, and that it holds numbers."""
        check_file(self.folder / weights.file, weights.sha256, weights.size)
        require_numbers(self.folder / weights.file)

    def _check_text(self) -> None:
        text, folder = self.manifest.text, self.text_folder
        inside = bool(text.files) and not Path(self.manifest.cascade.text_encoder).is_absolute()
        # A store of embeddings may stand in for an encoder that is elsewhere.
        if not inside and not folder.is_dir():
            return
        for name, sha256 in text.files.items():
            check_file(folder / name, sha256)
        if inside:
            return
        files = EncoderFiles.open(folder)
        if (files.model_digest, files.tokenizer_digest) != (text.model, text.tokenizer):
            raise UserError(
                f"{folder} is not the text encoder that {self.folder} was made with; put that one "
                "there, or export again."
            )

    def _stage_files(self, name: str, subject: Subject | None) -> StageFiles:
        entry = self.manifest.stages[name]
        tuned = subject.stages[name] if subject else None
        weights = tuned.weights if tuned else entry.weights
        folder = self.stage_folder(name)
        config = tuned.config if tuned else read_stage_config(folder)
        graph = Graph.open(folder / GRAPH)
        graph.check(config, self.manifest.precision)
        check_weights(self.folder / weights.file, graph)
        return StageFiles(
            config=config,
            precision=self.manifest.precision,
            graph=graph,
            weights=self.folder / weights.file,
            weights_sha256=weights.sha256,
            islands=entry.islands,
            plan=None if entry.plan is None else self.plans / entry.plan,
        )


def _folder(path: object) -> Path:
    if not isinstance(path, (str, Path)) or not str(path):
        raise UserError(f"A bundle is a folder, not {path!r}; give its path.")
    return Path(path)


def _check_config(name: str, config: StageConfig, source: Path) -> None:
    if config.name != name:
        raise UserError(
            f"{source} has stage '{config.name}' in the place of '{name}'; copy the bundle or "
            "export it again."
        )
