"""Who feeds a training: a provider is one function and one entry here."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from cascade_bench.data_feeds import Provider
from cascade_bench.data_ours import ours
from cascade_bench.data_peers import datasets, webdataset

PROVIDERS: Final[Mapping[str, Provider]] = {
    "ours": ours,
    "webdataset": webdataset,
    "webdataset-reduced": partial(webdataset, reduced=True),
    "datasets": datasets,
}

COPIES: Final = frozenset({"datasets"})
"""Those that copy every picture before they give one: no large pack is opened by them."""
