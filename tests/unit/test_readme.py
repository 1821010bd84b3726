"""The README's recipe table is what the configs' headers say."""

from pathlib import Path

from pretrain.config.load import config_names

ROOT = Path(__file__).parents[2]


def header(name: str) -> dict[str, str]:
    fields = {}
    for line in (ROOT / "configs" / f"{name}.yaml").read_text().splitlines():
        if line.startswith("# ") and ":" in line:
            key, _, value = line[2:].partition(":")
            fields[key.strip()] = value.strip()
    return fields


def row(name: str) -> str:
    fields = header(name)
    return f"| `{name}` | {fields['Published']} | {fields['Status']} |"


def test_every_recipe_stands_in_the_table_as_its_header_says():
    readme = (ROOT / "README.md").read_text()
    for name in config_names():
        if name.startswith("swin_"):
            assert row(name) in readme, f"README.md lacks this row: {row(name)}"
