"""The Pareto page in a real browser: no error in its console, every figure drawn, light and dark."""

import shutil
import subprocess

import pytest
from fake_sweep import write_sweep

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
PROBE = """
<script>
addEventListener("load", () => {
  const shown = (one) => { const box = one.getBoundingClientRect(); return box.width > 50 && box.height > 50; };
  const figures = [...document.querySelectorAll("figure svg")];
  document.title = [figures.length, figures.every(shown), getComputedStyle(document.body).backgroundColor].join("|");
});
</script></body>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
def test_page_is_drawn_without_errors_in_light_and_dark(command, tmp_path):
    write_sweep(tmp_path / "sweep")
    assert command("pareto", "sweep") == 0
    page = tmp_path / "probe.html"
    page.write_text((tmp_path / "sweep" / "pareto.html").read_text().replace("</body>", PROBE))
    titles = []
    for scheme in (0, 1):  # dark, light
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        arguments = [BROWSER, *options, f"--blink-settings=preferredColorScheme={scheme}", page.as_uri()]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
        assert "CONSOLE" not in done.stderr
        titles.append(done.stdout.partition("<title>")[2].partition("</title>")[0])
    assert [title.rpartition("|")[0] for title in titles] == ["1|true", "1|true"]
    assert titles[0] != titles[1]
