"""All cascades of a bundle for a server: the entry point `dreamcascade.libraries`.

What is open shares what is equal: the text encoder, and one engine for stages of the same graph
and weights, such as those that a subject leaves untouched.
"""

import hashlib
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from cascade.config.encoder import EncoderModeName
from cascade.config.engine import BundleOptions
from cascade.config.folders import CascadeManifest
from cascade.config.stage import StageConfig
from cascade.config.unet import UNetConfig
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.pipeline import Cascade, print_licence
from cascade.stage import Stage
from cascade.text.prompts import PromptEncoder
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.manifest import ABOUT, BUNDLE, Subject, TextEntry, read_manifest
from cascade_export.engines import engine_class
from cascade_export.engines.base import Engine
from cascade_export.engines.opening import engine_opener
from cascade_export.engines.version import StageFiles


class _Key(NamedTuple):
    """What an engine depends on; a stage's other settings are its `Stage`'s."""

    kind: str
    graph: str
    weights: str
    islands: tuple[str, ...]
    plan: str | None
    unet: UNetConfig
    max_length: int


class _Opened(NamedTuple):
    cascade: Cascade
    keys: tuple[_Key, ...]


class BundleLibrary:
    """A bundle's own cascade, by the name "", and its subjects'.

    Methods may be called from several threads; only `open` and `close` wait for each other.

    Args:
        options: of its engines; under a limit of memory those of all subjects take turns.

    Raises:
        UserError: it is no bundle or not whole, or its engine cannot run so.
    """

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str | None = None,
        options: BundleOptions | None = None,
        embeddings: Path | str | None = None,
        encoder_mode: EncoderModeName = "auto",
    ) -> None:
        self._options = options or BundleOptions()
        if self._options.subject is not None:
            raise UserError("All of the bundle's subjects are served; leave the subject out.")
        bundle = Bundle.open(folder)
        self._folder = bundle.folder
        kind = self._kind(bundle)
        self._device = usable_device(device or engine_class(kind).default_device())
        self._embeddings = embeddings
        self._encoder_mode = encoder_mode
        self._changing = threading.Lock()
        self._open: dict[str, _Opened] = {}
        self._engines: dict[_Key, Engine] = {}
        self._openers: dict[str, Callable[[StageFiles], Engine]] = {}
        self._opener(kind)  # an option that it has no use for is told now
        self._encoder: tuple[TextEntry, PromptEncoder] | None = None

    @property
    def exact(self) -> bool:
        """Whether a row of an answer is the same, bit for bit, whatever rows are beside it."""
        kind = self._kind(self._bundle())
        return engine_class(kind).is_batch_invariant(torch.device(self._device))

    def names(self) -> tuple[str, ...]:
        """Return the names, looked up anew: a subject may be added at any time."""
        return "", *self._bundle().subjects()

    def configs(self, name: str) -> list[StageConfig]:
        """Return a cascade's stages, base first, without opening it.

        Raises:
            UserError: there is none of this name, or its settings are damaged.
        """
        bundle = self._bundle()
        return bundle.configs(_subject(bundle, name))

    def manifest(self, name: str) -> CascadeManifest:
        """Return what a cascade is; raises as `configs`."""
        bundle = self._bundle()
        subject = _subject(bundle, name)
        return bundle.manifest.cascade if subject is None else subject.cascade

    def revision(self, name: str) -> str:
        """Return a text that changes when what the name stands for does; raises as `configs`."""
        bundle = self._bundle()
        _subject(bundle, name)
        files = [BUNDLE] if name == "" else [BUNDLE, f"subjects/{name}/{ABOUT}"]
        told = [(bundle.folder / file).read_bytes() for file in files]
        return hashlib.sha256(b"\0".join(told)).hexdigest()

    def weight_bytes(self, name: str) -> int:
        """Return the bytes of weights that opening it would add now; raises as `configs`."""
        bundle = self._bundle()
        subject = _subject(bundle, name)
        entries = bundle.manifest.stages if subject is None else subject.stages
        sizes = [entry.weights.size for entry in entries.values()]
        added = dict(zip(self._keys(bundle, subject), sizes, strict=True))
        return sum(size for key, size in added.items() if key not in self._engines)

    def open(self, name: str) -> Cascade:
        """Open a cascade; again is the same one, until it is closed.

        Raises:
            UserError: there is none of this name, a file is damaged, or it cannot run.
        """
        with self._changing:
            if name not in self._open:
                self._open[name] = self._opened(name)
            return self._open[name].cascade

    def close(self, name: str) -> None:
        """Close the engines that no other open cascade uses, once nothing is drawn with them."""
        with self._changing:
            gone = self._open.pop(name, None)
            used = {key for each in self._open.values() for key in each.keys}
            for key in {*gone.keys} - used if gone else ():
                self._engines.pop(key).close()

    def _opened(self, name: str) -> _Opened:
        bundle = Bundle.open(self._folder)
        subject = bundle.subject(name) if name else None
        manifest = bundle.manifest.cascade if subject is None else subject.cascade
        print_licence(manifest)
        keys = self._keys(bundle, subject)
        with ExitStack() as undo:
            stages: list[Stage] = []
            made: dict[_Key, Engine] = {}
            for key, files in zip(keys, bundle.files(subject), strict=True):
                engine = self._engines.get(key) or made.get(key)
                if engine is None:
                    engine = made[key] = self._opener(key.kind)(files)
                    undo.callback(engine.close)
                stages.append(Stage(files.config, engine))
            cascade = bundle.assembled(manifest, self._text(bundle), stages)
            undo.pop_all()
        self._engines |= made
        return _Opened(cascade, keys)

    def _bundle(self) -> Bundle:
        """Return the bundle as it is now; its files are not proven."""
        return Bundle(self._folder, read_manifest(self._folder))

    def _kind(self, bundle: Bundle) -> str:
        return self._options.engine or bundle.manifest.engine

    def _keys(self, bundle: Bundle, subject: Subject | None) -> tuple[_Key, ...]:
        kind, own = self._kind(bundle), bundle.manifest.stages
        entries = own if subject is None else subject.stages
        return tuple(
            _Key(
                kind=kind,
                graph=own[config.name].graph,
                weights=entries[config.name].weights.sha256,
                islands=own[config.name].islands,
                plan=own[config.name].plan,
                unet=config.unet,
                max_length=config.text.max_length,
            )
            for config in bundle.configs(subject)
        )

    def _opener(self, kind: str) -> Callable[[StageFiles], Engine]:
        """Return what opens engines of a kind, which share the device's memory."""
        if kind not in self._openers:
            limit = self._options.max_memory
            self._openers[kind] = engine_opener(
                kind, self._device, self._options, None if limit is None else limit * 10**6
            )
        return self._openers[kind]

    def _text(self, bundle: Bundle) -> PromptEncoder:
        """Return the text encoder: the one that is open, unless the bundle has another now."""
        if self._encoder is None or self._encoder[0] != bundle.manifest.text:
            encoder = bundle.encoder(
                self._device, self._embeddings, self._encoder_mode, self._options
            )
            self._encoder = bundle.manifest.text, encoder
        return self._encoder[1]


def open_library(
    folder: Path | str,
    device: torch.device | str | None = None,
    embeddings: Path | str | None = None,
    encoder_mode: EncoderModeName = "auto",
    options: BundleOptions | None = None,
) -> BundleLibrary:
    """Open a bundle for a server; the arguments are as in `open_cascade`."""
    return BundleLibrary(folder, device, options, embeddings, encoder_mode)


def _subject(bundle: Bundle, name: str) -> Subject | None:
    return bundle.about(name) if name else None
