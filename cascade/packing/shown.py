"""A data set's description as tables and bars for a terminal."""

from collections.abc import Iterator, Mapping

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascade.packing.looking import DataDescription
from cascade.progress import amount
from cascade.tables import DASH

_WIDTH = 32  # characters of the longest bar
_MOST = 40  # characters of a name
_TITLES = {
    "side": "shorter side, pixels",
    "aspect": "width:height, the nearest",
    "captions": "captions of a picture",
    "words": "words of a caption",
}
_PLAIN = {"licence": "not stated", "source": "no folder"}  # what an empty name means


def described(found: DataDescription) -> RenderableType:
    """Return the description as it is printed."""
    parts: list[RenderableType] = [_splits(found), _spreads(found.spreads)]
    for name, counts in found.histograms.items():
        parts.append(_bars(_TITLES[name], counts, sum(counts.values())))
    for name, counts in found.tops.items():
        plain = _PLAIN.get(name, "")
        named = {key or plain: count for key, count in counts.items()}
        parts.append(_bars(f"most frequent {name}", named, found.pictures))
    if found.left_out:
        parts.append(_bars("left out", found.left_out, sum(found.left_out.values())))
    return Group(*_spaced(parts))


def _spaced(parts: list[RenderableType]) -> Iterator[RenderableType]:
    for part in parts:
        yield part
        yield Text()


def _splits(found: DataDescription) -> RenderableType:
    table = Table(title=f"{found.place} {found.id}".rstrip(), title_justify="left")
    table.add_column("split")
    for name in ("pictures", "shards", "size"):
        table.add_column(name, justify="right")
    rows = dict(found.splits)
    if len(rows) > 1:
        rows["all"] = {name: sum(of[name] for of in rows.values()) for name in rows["train"]}
    for name, of in rows.items():
        table.add_row(name, f"{of['pictures']:,}", f"{of['shards']:,}", amount(of["bytes"]))
    return table


def _spreads(spreads: Mapping[str, Mapping[str, float]]) -> RenderableType:
    columns = list(dict.fromkeys(name for of in spreads.values() for name in of if name != "mean"))
    table = Table()
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, of in spreads.items():
        figures = (_figure(of[column]) if column in of else DASH for column in columns)
        table.add_row(Text(name[:_MOST]), *figures)
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _bars(title: str, counts: Mapping[str, int], total: int) -> RenderableType:
    """Draw a bar for each count, and its share of the total."""
    table = Table(box=None, title=title, title_justify="left", show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column(width=_WIDTH)
    table.add_column(justify="right")
    table.add_column(justify="right")
    most = max(counts.values(), default=1)
    for name, count in counts.items():
        label = name if len(name) <= _MOST else f"{name[:_MOST]}..."
        share = count / max(1, total)
        table.add_row(Text(label), Bar(most, 0, count), f"{count:,}", f"{share:.1%}")
    return table
