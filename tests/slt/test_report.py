"""The HTML page of an estimate and of a sweep: whole, readable, and without anything from outside."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

import slt
from slt.cli import main
from tests.slt.models import fitted_regression, half_squares

SHORT = {"num_draws": 40, "num_warmup": 10, "num_chains": 2, "progress": False, "sampler": "mala", "step_size": 0.02}
PAGES = ("llc.html", "sweep.html", "parts.html")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    model, data, _ = fitted_regression()
    slt.estimate_llc(model, data, half_squares, **SHORT).save(folder / "llc.nc")
    series = {
        10 * (place + 1): {name: value * (1 + 0.02 * place) for name, value in model.state_dict().items()}
        for place in range(4)
    }
    series[50] = {"<b>other</b>": torch.ones(2)}
    slt.sweep(model, series, data, half_squares, store=folder / "store", **SHORT)
    parts = {"whole": None, "first <entry>": {"weight": torch.tensor([[True, False, False]])}}
    some = {step: series[step] for step in (10, 20, 50)}
    slt.sweep(model, some, data, half_squares, parts=parts, store=folder / "parts", **SHORT)
    assert main(["report", str(folder / "llc.nc"), "--out", str(folder / "llc.html")]) == 0
    assert main(["report", str(folder / "store"), "--out", str(folder / "sweep.html"), "--title", "A <sweep>"]) == 0
    assert main(["report", str(folder / "parts"), "--out", str(folder / "parts.html")]) == 0
    return folder


class Addresses(HTMLParser):
    """Whatever a browser would fetch; and whether tags close."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", PAGES)
def test_nothing_comes_from_outside_and_every_tag_closes(pages, name):
    text = (pages / name).read_text()
    parser = Addresses()
    parser.feed(text)
    assert not parser.open
    assert parser.fetched
    assert all(address.startswith("data:") for address in parser.fetched)
    assert not re.search(r"https?://|@import|url\(", text)


def test_a_large_number_has_a_page_without_a_slope(tmp_path):
    model = torch.nn.Linear(2000, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    # nβ·L goes from 0 to about 1000, and a draw of 100 more has e¹⁰ times the weight at 0.9 nβ
    estimate = slt.estimate_llc(
        model, None, lambda model: model.weight.square().sum(-1).sum(-1) / 2, n_beta=1000.0, sampler="mala",
        step_size=1e-4, num_warmup=10, num_draws=100, num_chains=4, progress=False,
    )  # fmt: skip
    assert estimate.cross_check().slope is None
    assert "slope" not in str(estimate.cross_check())
    slt.write_report(estimate, tmp_path / "llc.html")
    page = (tmp_path / "llc.html").read_text()
    assert "variance of the energy, λ̂ − ∂λ̂/∂log nβ" in page
    assert "slope of E[L]" not in page


def test_what_stands_there(pages):
    estimate, sweep = (pages / "llc.html").read_text(), (pages / "sweep.html").read_text()
    assert repr(slt.load_estimate(pages / "llc.nc")) in estimate
    for shown in ("Verdict", "Configuration", "n / log n (Watanabe 2013)", "torch", torch.__version__):
        assert shown in estimate
    assert "A &lt;sweep&gt;" in sweep
    assert "failed: ValueError" in sweep
    assert "&lt;b&gt;other" in sweep
    assert "<b>other" not in sweep
    assert sweep.count("<tr>") > 5
    assert "<th>part</th>" not in sweep
    for shown in ("Rank plots of every chain", "variance of the energy, λ̂ − ∂λ̂/∂log nβ", "Beside other estimates"):
        assert shown in estimate
    assert "ladder of replica exchange" not in estimate


def test_a_page_of_parts_has_a_row_for_each_and_their_figure(pages):
    page = (pages / "parts.html").read_text()
    assert "3 checkpoints and 2 parts" in page
    assert "λ̂ of every part over training" in page
    assert page.count("<td>first &lt;entry&gt;</td>") == 3
    assert "first <entry>" not in page
    found = slt.load_sweep(pages / "parts")
    assert found.parts == ("whole", "first <entry>")
    assert f"<td>{found.rows[1].estimate.llc:.4g}</td>" in page


def test_a_page_of_replica_exchange_has_its_ladder(tmp_path):
    weight = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(weight.weight)
    options = {"n_beta": 50.0, "num_draws": 20, "num_warmup": 10, "progress": False}
    estimate = slt.estimate_llc(weight, None, lambda model: model.weight.square().sum(), **options)
    slt.write_report(estimate, tmp_path / "llc.html")
    assert "Over the ladder of replica exchange" in (tmp_path / "llc.html").read_text()


def test_a_folder_that_does_not_exist_is_named(pages):
    with pytest.raises(FileNotFoundError, match=r"path: '.*nowhere/x\.html' is in a folder that does not exist"):
        slt.write_report(slt.load_estimate(pages / "llc.nc"), pages / "nowhere" / "x.html")


def test_a_sweep_comes_back_from_its_store(pages, capsys):
    found = slt.load_sweep(pages / "store")
    assert [row.step for row in found.rows] == [10, 20, 30, 40, 50]
    assert found.rows[4].estimate is None
    assert all(row.key for row in found.rows[:4])
    with pytest.raises(FileNotFoundError, match=r"no sweep\.json"):
        slt.load_sweep(pages)
    assert main(["report", str(pages / "llc.nc"), "--out", str(pages / "llc.txt")]) == 2
    assert "ends in .html" in capsys.readouterr().err


def console(page, picture):
    """What a browser writes in its console while it renders a page into a picture."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--screenshot={picture}", "--window-size=1000,1600", page.as_uri(),
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in found.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_renders_it_and_refuses_whatever_would_leave_the_page(pages):
    """The page's own policy forbids every request, and a browser says in its console what it forbade."""
    for name in PAGES:
        picture = pages / f"{name}.png"
        assert console(pages / name, picture) == []
        assert picture.stat().st_size > 20_000
    leaking = pages / "leaking.html"
    leaking.write_text((pages / "llc.html").read_text().replace("</body>", '<img src="http://localhost/a.png"></body>'))
    assert any("Content Security Policy" in line for line in console(leaking, pages / "leaking.png"))
