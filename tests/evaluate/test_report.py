"""The report: self-contained, escaped, well-formed; the curves: smoothed and complete."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cascade.evaluate.report import Figure, Report, Section, loss_curves
from cascade.tables import Table

VOID = {"meta", "img", "link", "br", "hr", "path", "use"}


class Page(HTMLParser):
    """Reads a page, keeps the tags and checks that every element is closed."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def log(scale: float) -> list[dict[str, float]]:
    return [{"images": 4.0 * i, "step": i, "loss": scale * (1 + i % 2)} for i in range(100)]


def drawing() -> str:
    pytest.importorskip("matplotlib", reason="extra 'evaluate' not installed")
    return loss_curves({"base & co": log(1.0), "super-resolution": log(0.5)})


def report(*sections: Section) -> Report:
    return Report("A <dog>", "It & the class.", "cascade x < y", {"torch": "2.13"}, sections)


def test_the_page_is_well_formed_and_points_nowhere() -> None:
    picture = Image.new("RGB", (6, 4), (10, 200, 30))
    curves = drawing()
    page = report(
        Section("One", "First.\n\nSecond.", [Figure(picture, "Green", "A green field")]),
        Section("Two", figures=[Figure(curves, "Loss"), Figure(curves, "Again")]),
        Section("Three", tables=[Table(("model", "score"), [("tuned", 0.25)])]),
    ).render()
    parsed = Page(page)
    assert parsed.open == []
    targets = [
        value or ""
        for tag, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in parsed.tags)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)


def test_a_picture_survives_exactly_with_its_size_and_alternative_text() -> None:
    picture = Image.new("RGB", (6, 4), (10, 200, 30))
    page = Page(report(Section("One", figures=[Figure(picture, "Green", 'a "field"')])).render())
    (attributes,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert attributes["alt"] == 'a "field"'
    assert (attributes["width"], attributes["height"]) == ("6", "4")
    data = base64.b64decode((attributes["src"] or "").partition(",")[2])
    assert Image.open(io.BytesIO(data)).getcolors() == [(24, (10, 200, 30))]


def test_text_is_escaped_and_parted_into_paragraphs() -> None:
    page = report(Section("<i>One</i>", "5 < 6\n\n<script>x</script>")).render()
    assert "<script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<p>5 &lt; 6</p>" in page
    assert "cascade x &lt; y" in page
    assert "<title>A &lt;dog&gt;</title>" in page


def test_tables_print_four_digits_and_a_dash_for_nothing() -> None:
    rows = [("tuned", 0.123456, 400), ("frozen", None, 1234567)]
    page = report(
        Section("Scores", tables=[Table(("model", "DIV", "steps"), rows, "Up.")])
    ).render()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert cells == ["0.1235", "400", "\N{EN DASH}", "1234567"]
    assert '<th scope="row">tuned</th>' in page
    with pytest.raises(ValueError, match="2 values under 1 columns"):
        Table(("model",), [("tuned", 1)])


def test_writing_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    written = report(Section("One", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"))
    written.write(path)
    assert path.read_text(encoding="utf-8") == written.render()
    assert list(tmp_path.iterdir()) == [path]


def test_curves_are_the_same_bytes_for_the_same_log_and_follow_the_text_colour() -> None:
    curves = drawing()
    assert curves == drawing()
    root = ElementTree.fromstring(curves)
    assert root.tag.endswith("svg")
    assert "currentColor" in curves
    texts = {
        (element.text or "").strip() for element in root.iter() if element.tag.endswith("text")
    }
    assert {"base & co", "super-resolution", "loss", "images seen"} <= texts


def test_the_line_is_the_smoothed_loss() -> None:
    """A loss that flips between 1 and 2 is drawn near 1.5 once ten points are averaged."""
    pytest.importorskip("matplotlib", reason="extra 'evaluate' not installed")
    raw = heights(loss_curves({"run": log(1.0)}, smoothing=0.0))
    smooth = heights(loss_curves({"run": log(1.0)}, smoothing=0.2))
    assert max(raw[50:]) - min(raw[50:]) > 5 * (max(smooth[50:]) - min(smooth[50:])) > 0


def heights(svg: str) -> list[float]:
    """The heights of the drawing's longest line, in its own units."""
    paths = re.findall(r'<path d="(M [^"]+)"', svg)
    longest = max(paths, key=len)
    return [float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", longest)]


def test_a_key_that_one_run_lacks_is_drawn_for_the_others_and_refused_for_none() -> None:
    pytest.importorskip("matplotlib", reason="extra 'evaluate' not installed")
    tuned = [{**line, "loss/prior": 0.1} for line in log(1.0)]
    curves = loss_curves({"base": log(1.0), "tuned": tuned}, ("loss", "loss/prior"))
    assert "loss/prior" in curves
    with pytest.raises(ValueError, match="'loss/subject'"):
        loss_curves({"base": log(1.0)}, ("loss/subject",))
