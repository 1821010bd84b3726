"""How the report looks: light and dark, wide and narrow."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1b1b19; --ink-soft: #5d5c57; --grid: #e4e3de;
  --mark: #9a9992; --series-1: #2a6fc9; --series-2: #d2691e; --good: #1d7a3a; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #161615; --card: #1f1f1d; --ink: #efeee9; --ink-soft: #b3b2aa; --grid: #3a3935;
    --mark: #7c7b74; --series-1: #6ba6f0; --series-2: #f0985a; --good: #6fcf8a; --bad: #f28b82;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 64px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2, summary { font-size: 17px; font-weight: 600; margin: 32px 0 8px; }
summary { cursor: pointer; margin: 16px 0 8px; }
small { color: var(--ink-soft); }
.state { font-weight: 600; }
.state.done { color: var(--good); }
.state.stopped { color: var(--bad); }
.tiles {
  display: grid; gap: 12px; margin: 20px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 145px), 1fr));
}
.tiles > div, figure {
  background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: 12px 14px;
}
dt { color: var(--ink-soft); font-size: 13px; }
dd { margin: 0; font-size: 24px; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; }
dd small { font-size: 13px; font-weight: 400; }
.curves {
  display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
}
figure { margin: 0; }
figcaption { font-weight: 600; font-size: 14px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; fill: var(--ink-soft) !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; min-width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; }
th { color: var(--ink-soft); font-weight: 500; }
tr + tr td, tbody tr td { border-top: 1px solid var(--grid); }
td { overflow-wrap: break-word; }
.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
.numbers td, .numbers th { text-align: right; font-variant-numeric: tabular-nums; }
pre {
  background: var(--card); border: 1px solid var(--grid); border-radius: 8px;
  padding: 12px 14px; overflow-x: auto; font-size: 12.5px; line-height: 1.45;
}
"""
