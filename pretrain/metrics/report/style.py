"""How the pages look: light and dark, wide and narrow."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1b1b19; --ink-soft: #5d5c57; --grid: #e4e3de;
  --mark: #8a8982; --good: #1d7a3a; --bad: #b3261e; --bad-page: #fdf1f0; --link: #1f5fae;
  --series-1: #0a6cb4; --series-2: #d55e00; --series-3: #00845f; --series-4: #b8528f;
  --series-5: #3fa7dd; --series-6: #c98a00; --series-7: #6a51a3; --series-8: #6b6b66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141413; --card: #1d1d1b; --ink: #efeee9; --ink-soft: #b3b2aa; --grid: #383733;
    --mark: #84837b; --good: #6fcf8a; --bad: #f28b82; --bad-page: #2c1a18; --link: #8ab8f0;
    --series-1: #5aa9ec; --series-2: #f08a4b; --series-3: #35c198; --series-4: #e08fc0;
    --series-5: #9ad6f7; --series-6: #f0bd4a; --series-7: #b4a0e5; --series-8: #aaa9a2;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1220px; margin: 0 auto; padding: 24px 20px 64px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; font-weight: 600; margin: 36px 0 10px; }
h3 { font-size: 15px; font-weight: 600; margin: 22px 0 8px; }
h4 { font-size: 14px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
p { margin: 8px 0; }
a { color: var(--link); }
small { color: var(--ink-soft); font-size: 13px; font-weight: 400; }
nav { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 10px 0 0; font-size: 13.5px; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
details { margin: 14px 0; border-top: 1px solid var(--grid); padding-top: 12px; }
summary { cursor: pointer; }
summary h2 { display: inline; }
details[open] > summary { margin-bottom: 10px; }
.state {
  font-weight: 600; font-size: 13.5px; padding: 1px 10px; border-radius: 99px;
  border: 1px solid currentColor; color: var(--link);
}
.state.done { color: var(--good); }
.state.stopped, .state.failed { color: var(--bad); }
progress {
  appearance: none; display: block; width: 100%; height: 6px; margin: 14px 0 0; border: 0;
  border-radius: 3px; overflow: hidden; background: var(--grid);
}
progress::-webkit-progress-bar { background: var(--grid); }
progress::-webkit-progress-value { background: var(--series-1); border-radius: 3px; }
progress::-moz-progress-bar { background: var(--series-1); border-radius: 3px; }
.alert {
  margin: 18px 0 0; padding: 12px 16px; border-radius: 8px; background: var(--bad-page);
  border: 1px solid var(--bad); border-left-width: 5px; overflow-wrap: anywhere;
}
.alert h2 { margin: 0 0 4px; font-size: 16px; color: var(--bad); }
.alert ul { margin: 6px 0 0; padding-left: 20px; }
.alert p { margin: 4px 0; }
.alert pre { border: 0; background: none; padding: 0; margin: 6px 0 0; white-space: pre-wrap; }
.tiles {
  display: grid; gap: 12px; margin: 18px 0;
  grid-template-columns: repeat(auto-fill, minmax(165px, 1fr));
}
.tiles > div, figure.chart, .card, .panel {
  background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: 12px 14px;
  min-width: 0;
}
dt { color: var(--ink-soft); font-size: 13px; }
dd { margin: 0; font-size: 23px; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; }
dd small { display: block; line-height: 1.35; }
.curves {
  display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr));
}
figure { margin: 0; }
figure.chart { position: relative; display: flex; flex-direction: column; padding: 10px 12px 6px; }
figure.chart svg { margin-top: auto; }
figcaption { font-weight: 600; font-size: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 12px; margin: 2px 0 4px; font-size: 12.5px; }
.key { color: var(--ink-soft); white-space: nowrap; max-width: 100%; overflow: hidden; }
.key { text-overflow: ellipsis; }
.key i, .readout i {
  display: inline-block; width: 14px; height: 0; margin-right: 5px; vertical-align: 0.3em;
  border-top: 3px solid var(--colour);
}
.key i.dash-1 { border-top-style: dashed; }
.key i.dash-2 { border-top-style: dotted; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; fill: var(--ink-soft) !important; }
.rule { stroke: var(--ink-soft); stroke-width: 0.8; pointer-events: none; }
.readout {
  position: absolute; top: 34px; right: 12px; max-width: 75%; padding: 5px 9px;
  font-size: 12.5px; line-height: 1.4; pointer-events: none; z-index: 1;
  background: var(--card); border: 1px solid var(--grid); border-radius: 6px;
  box-shadow: 0 2px 10px rgb(0 0 0 / 18%); font-variant-numeric: tabular-nums;
}
.readout.at-left { right: auto; left: 12px; }
.readout .apart { opacity: 0.65; }
.wide { overflow: auto; max-height: 480px; width: fit-content; max-width: 100%; }
.wide { border-bottom: 1px solid var(--grid); }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { text-align: left; vertical-align: top; padding: 5px 28px 5px 0; }
th { color: var(--ink-soft); font-weight: 500; }
thead th { position: sticky; top: 0; background: var(--page); white-space: nowrap; }
tbody tr td { border-top: 1px solid var(--grid); }
td { overflow-wrap: break-word; }
td:last-child { padding-right: 0; }
.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
.numbers td, .numbers th { text-align: right; font-variant-numeric: tabular-nums; }
.numbers td, .numbers th { white-space: nowrap; padding: 5px 0 5px 28px; }
.numbers td:first-child, .numbers th:first-child { text-align: left; padding-left: 0; }
.compared td { min-width: 104px; max-width: 320px; }
.compared td:first-child, .compared th:first-child {
  position: sticky; left: 0; min-width: 0; background: var(--page);
}
.wide:has(.compared) { max-height: 800px; }
.cards {
  display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr));
}
.card { display: flex; flex-direction: column; }
.card p { margin: 2px 0; font-size: 13.5px; }
.card ul { margin: 2px 0 10px; padding-left: 18px; font-size: 13.5px; }
.examples { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px; }
.examples { margin-top: auto; }
.examples img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; }
.examples figcaption {
  font-size: 11.5px; font-weight: 400; line-height: 1.25; color: var(--ink-soft); height: 2.5em;
  margin-top: 3px; overflow: hidden; overflow-wrap: anywhere;
}
img { display: block; max-width: 100%; height: auto; }
.panel { overflow-x: auto; }
pre {
  background: var(--card); border: 1px solid var(--grid); border-radius: 8px; margin: 8px 0;
  padding: 12px 14px; overflow: auto; max-height: 480px; font-size: 12.5px; line-height: 1.45;
}
@media (max-width: 480px) {
  main { padding: 16px 12px 48px; }
  h1 { font-size: 22px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .tiles > div { padding: 10px 12px; }
  dd { font-size: 20px; }
  th, td { padding-right: 16px; }
  .numbers td, .numbers th { padding-left: 16px; }
  .numbers td:first-child { white-space: normal; }
  td.time ~ td:last-child { min-width: 230px; }
  .compared td:first-child { max-width: 120px; }
  .panel img { max-width: none; width: 720px; }
}
@media print {
  .wide, pre { max-height: none; overflow: visible; }
  nav { display: none; }
}
"""
