"""Pages in a real browser: Chromium without a window, a network, or anything to install."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REASON = "no chromium; .ci/run installs it"
SECONDS = 120
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)

EARLY = """<script>
window.faults = [];
addEventListener("error", (event) => faults.push(event.message || "a resource"), true);
addEventListener("securitypolicyviolation", (event) => faults.push(event.blockedURI));
</script>"""

LATE = """<script>
addEventListener("load", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const inked = (svg) => [...svg.querySelectorAll("path, use")].filter((mark) => {
    const box = mark.getBBox();
    return /series-/.test(mark.getAttribute("style")) && box.width + box.height > 0;
  }).length;
  const clipped = (svg) => [...svg.querySelectorAll("text")].filter((text) => {
    const inner = text.getBoundingClientRect(), outer = svg.getBoundingClientRect();
    return inner.left < outer.left - 2 || inner.right > outer.right + 8;
  }).map((text) => text.textContent.trim());
  const page = document.documentElement;
  const wide = [...document.querySelectorAll("main *")].filter((element) =>
    !element.closest(".wide, pre, .panel, svg") &&
    element.getBoundingClientRect().right > page.clientWidth + 1
  ).map((element) => element.outerHTML.slice(0, 120));
  const charts = [...document.querySelectorAll("figure.chart")].map((figure) => {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const pointer = (name, at) => svg.dispatchEvent(new PointerEvent(name, {
      clientX: box.left + at * box.width, clientY: box.top + box.height / 2, bubbles: true,
    }));
    pointer("pointermove", 0.6);
    const readout = figure.querySelector(".readout");
    const read = readout.hidden ? "" : readout.innerText;
    const place = readout.getBoundingClientRect(), outer = figure.getBoundingClientRect();
    const inside = place.left >= outer.left - 1 && place.right <= outer.right + 1;
    pointer("pointerleave", 0.6);
    return {
      title: figure.querySelector("figcaption").textContent, ink: inked(svg), read, inside,
      gone: readout.hidden, clipped: clipped(svg), width: box.width,
    };
  });
  const facts = {
    width: page.clientWidth, scroll: page.scrollWidth, wide, charts, faults,
    background: getComputedStyle(document.body).backgroundColor,
    images: [...document.images].map((image) => [image.naturalWidth, image.width]),
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
  };
  parent.postMessage(JSON.stringify(facts), "*");
});
</script>"""

# A window is 500 pixels wide at least; a frame is as wide as it is told to be.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><script>
addEventListener("message", (event) => {
  const pre = document.createElement("pre");
  pre.id = "facts";
  pre.textContent = event.data;
  document.body.append(pre);
});
</script><body><iframe src="%s" style="width: %dpx; height: 900px; border: 0"></iframe>"""


def look(page: Path, folder: Path, *, width: int = 1280, dark: bool = False) -> dict[str, Any]:
    """What a browser makes of a page: its layout, its charts, and whatever went wrong.

    Args:
        page: an HTML file.
        folder: where the browser may write.
        width: of its window, pixels.
        dark: whether its user prefers a dark page.
    """
    text = page.read_text(encoding="utf-8")
    watched = folder / f"watched_{page.name}"
    watched.write_text(
        text.replace('<meta name="viewport"', f'{EARLY}<meta name="viewport"', 1).replace(
            "</body>", f"{LATE}</body>", 1
        )
    )
    frame = folder / "frame.html"
    frame.write_text(FRAME % (watched.name, width))
    arguments = ("--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom")
    done = _run(frame, folder, *arguments, dark=dark)
    found = re.search(r'<pre id="facts">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    facts = json.loads(html.unescape(found[1]))
    facts["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return facts


def _run(page: Path, folder: Path, *arguments: str, dark: bool) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=SECONDS, check=True
    )
