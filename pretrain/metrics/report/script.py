"""The pages' few lines of JavaScript: numbers under the pointer, nothing that is not there too."""

SCRIPT = """\
"use strict";
for (const figure of document.querySelectorAll("figure.chart")) {
  const chart = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const [left, right, top, bottom] = chart.box;
  const [first, last] = chart.x;
  const say = (value) => {
    if (chart.percent) return (100 * value).toFixed(2) + " %";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    return size && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const nearest = (places, x) => {
    let low = 0, high = places.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(places[low] - x) <= Math.abs(places[high] - x) ? low : high;
  };
  const rule = document.createElementNS("http://www.w3.org/2000/svg", "line");
  rule.setAttribute("class", "rule");
  rule.setAttribute("y1", top);
  rule.setAttribute("y2", bottom);
  const box = document.createElement("div");
  box.className = "readout";
  box.hidden = true;
  figure.append(box);
  svg.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY);
    const at = place.matrixTransform(svg.getScreenCTM().inverse()).x;
    if (at < left - 4 || at > right + 4) return;
    const x = first + (last - first) * (at - left) / (right - left);
    box.replaceChildren();
    let shown = null;
    for (const line of chart.lines) {
      const index = nearest(line.at, x);
      if (shown === null || Math.abs(line.at[index] - x) < Math.abs(shown - x)) {
        shown = line.at[index];
      }
    }
    const head = document.createElement("div");
    head.textContent = chart.axis + " " + shown.toLocaleString("en-US");
    box.append(head);
    for (const line of chart.lines) {
      const index = nearest(line.at, shown);
      const row = document.createElement("div");
      const key = document.createElement("i");
      key.style.setProperty("--colour", "var(--series-" + line.colour + ")");
      row.append(key, (line.label ? line.label + " " : "") + say(line.y[index]));
      if (line.at[index] !== shown) row.className = "apart";
      box.append(row);
    }
    const ruled = left + (right - left) * (shown - first) / ((last - first) || 1);
    rule.setAttribute("x1", ruled);
    rule.setAttribute("x2", ruled);
    if (!rule.parentNode) svg.append(rule);
    box.hidden = false;
    const side = at > (left + right) / 2;
    box.classList.toggle("at-left", side);
  });
  svg.addEventListener("pointerleave", () => { rule.remove(); box.hidden = true; });
}
"""
