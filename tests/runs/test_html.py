"""The HTML of pages: tables for narrow screens, links, formulas."""

from bs4 import BeautifulSoup

from reproduce.files import ROOT
from reproduce.runs import html

TABLE = """<table><thead><tr><th></th><th></th><th colspan="2">ACC</th></tr>
<tr><th>data</th><th>weight</th><th>mean of so many runs</th><th>n</th></tr></thead>
<tbody><tr><th rowspan="2">CIFAR-10</th><th>0.1</th><td>36.3 ± 0.4 [1.0, 2.0]</td><td>3</td></tr>
<tr><th>2</th><td>13.8</td><td>5</td></tr></tbody></table>"""


def polished(body, pages=None, folder=ROOT / "results"):
    body, _ = html.polish(body, folder, pages)
    return BeautifulSoup(html.sanitise(body), "html.parser")


def test_a_wide_table_says_in_each_cell_which_column_it_is_of():
    table = polished(TABLE).table
    assert "stack" in table["class"] and table.parent["class"] == ["wide"]
    first, second = (row(["td", "th"]) for row in table.tbody("tr"))
    assert [c.get("data-label") for c in first[2:]] == ["ACC, mean of so many runs", "ACC, n"]
    assert [c.get("data-label") for c in second[2:]] == ["ACC, mean of so many runs", "ACC, n"]
    assert second[0]["class"] == ["again"] and second[0].text == "CIFAR-10"
    assert "num" in first[3]["class"] and "num" in first[2]["class"]


def test_a_narrow_table_stays_a_table():
    table = polished("<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody>")
    assert table.div["class"] == ["wide"] and "stack" not in table.table.get("class", [])


def test_links_lead_to_pages_and_files_as_they_lie():
    body = (
        '<p><a href="details.ipynb#A-b">a</a> <a href="gone.ipynb">b</a> '
        '<a href="../notebooks/settings/digits-quick.yaml">c</a></p>'
    )
    links = polished(body, ["details"])("a")
    assert [link.text for link in links] == ["a", "c"]
    assert [link["href"] for link in links] == [
        "details.html#A-b",
        "../notebooks/settings/digits-quick.yaml",
    ]
    links = polished(body, None, ROOT / "results" / "local")("a")
    assert len(links) == 3
    assert links[2]["href"] == "../../notebooks/settings/digits-quick.yaml"


def test_a_formula_is_mathml_and_everything_else_in_dollars_is_not():
    formulas = []
    text = html.take_formulas("Let $\\lambda_1 = 2$.\n\n$$L = \\frac{a}{b} < c$$\n", formulas)
    assert formulas == ["\\lambda_1 = 2", "L = \\frac{a}{b} < c"]
    body = html.put_formulas(html.sanitise(text), formulas)
    soup = BeautifulSoup(body, "html.parser")
    assert len(soup("math")) == 2 and soup.mfrac and "$" not in soup.text
    assert soup.math.text.startswith("λ") and not soup("script")
    hostile = []
    text = html.take_formulas("$\\text{<img src=x onerror=alert(1)>}$", hostile)
    assert not BeautifulSoup(html.put_formulas(text, hostile), "html.parser")("img")


def test_a_picture_and_what_is_said_below_it_are_a_figure():
    picture = (
        '<div class="output_area"><div class="output_png">'
        '<img src="data:image/png;," alt="It rises."></div></div>'
    )
    said = '<div class="output_area"><div class="output_markdown"><p>{}</p></div></div>'
    with_caption = polished(f"<div>{picture}{said.format('<em>It rises by 3 %.</em>')}</div>")
    assert with_caption.figure.img["alt"] == "It rises."
    assert with_caption.figcaption.text == "It rises by 3 %." and not with_caption("p")
    without = polished(f"<div>{picture}{said.format('<em>It</em> rises.')}</div>")
    assert not without("figure") and without.p.text == "It rises."
