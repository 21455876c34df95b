"""The page in a real browser: Debian's chromium, without a window."""

import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image
from support import User, fit

import lightning_compress as lc

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
FIGURES = {"history", "layers", "values", "sensitivity", "confusion", "fidelity"}
PAPER = {"light": (246, 247, 248), "dark": (20, 23, 27)}


def browse(*arguments, folder):
    options = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars"
    command = [CHROMIUM, *options.split(), f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=3000", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with every figure that there is."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    teacher = User("conv")
    fit(teacher, max_epochs=3)
    callbacks = (
        lc.NeuronPruning(0.3),
        lc.WeightPruning(0.6),
        lc.WeightClustering(8, start=4),
        lc.Distillation(teacher),
    )
    report = lc.CompressionReport(folder, file="model.lcz", sensitivity=True)
    fit(User("conv"), *callbacks, report, max_epochs=6)
    return folder / "report.html"


def test_every_figure_has_a_size_and_nothing_complains(page, tmp_path):
    probe = """<script>addEventListener("load", () => { const sizes = [...document.querySelectorAll("svg")].map(svg => {
      const box = svg.getBoundingClientRect(), marks = svg.querySelectorAll("path[d], use").length;
      return Math.round(box.width) + "x" + Math.round(box.height) + ":" + marks; });
      document.body.dataset.sizes = sizes.join(" ");
      document.body.dataset.wide = document.body.scrollWidth; });</script>"""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</head>", f"{probe}</head>"))
    result = browse("--window-size=1000,900", "--dump-dom", f"file://{copy}", folder=tmp_path)
    assert "CONSOLE" not in result.stderr
    sizes = re.search(r'data-sizes="([^"]*)"', result.stdout)[1].split()
    assert len(sizes) == len(FIGURES)
    for size in sizes:
        width, height, marks = map(int, re.split("[x:]", size))
        assert width > 700, sizes
        assert height > 60, sizes
        assert marks > 8, sizes
    names = set(re.findall(r'<svg.*?id="(\w+)-', result.stdout, re.DOTALL))
    assert names == FIGURES
    assert int(re.search(r'data-wide="(\d+)"', result.stdout)[1]) <= 1000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_follows_the_reader_s_light_or_dark(page, tmp_path, theme):
    options = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    picture = tmp_path / f"{theme}.png"
    browse(*options, "--window-size=1000,3000", f"--screenshot={picture}", f"file://{page}", folder=tmp_path)
    image = Image.open(picture).convert("RGB")
    assert image.getpixel((3, 3)) == PAPER[theme]
    colors = [color for _, color in image.getcolors(maxcolors=2**24)]
    text = (31, 41, 51) if theme == "light" else (228, 231, 235)
    assert text in colors
    assert min(abs(r - 59) + abs(g - 125) + abs(b - 196) for r, g, b in colors) < 6, "no blue line is drawn"
