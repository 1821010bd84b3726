"""The page: complete, adding up, and no more than a page."""

import json
import re

from fabricated_trace import Trace, on_cuda

from pretrain.profile.__main__ import main
from pretrain.profile.page import render
from pretrain.profile.trace import take_apart


def table(page: str, title: str) -> dict[str, list[float]]:
    """The numbers of each row of the table under a title, by the row's name."""
    block = next(part for part in page.split("\n\n") if part.startswith(title))
    rows = {}
    for line in block.splitlines()[1:]:
        match = re.fullmatch(r"\s+(.*?)\s{2,}((?:-?[\d,.]+%?\s*)+)", line)
        if match:
            numbers = match[2].replace("%", "").replace(",", "").split()
            rows[match[1]] = [float(number) for number in numbers]
    return rows


def test_parts_and_kinds_add_up_to_the_step():
    page = render(take_apart(on_cuda().json()))
    parts = table(page, "Parts of the step")
    whole = parts.pop("all")
    assert whole == [1.0, 100.0]
    for column in (0, 1):
        shown = [row[column] for name, row in parts.items() if len(row) == 2]
        assert abs(sum(shown) - whole[column]) < 0.1
    assert parts["device idle"] == [0.61, 61.0]
    assert parts["while the host was at: optimizer, ZeRO"] == [0.2]
    of_kinds = [row[-1] for row in table(page, "Kinds of operation").values()]
    assert abs(sum(of_kinds) - 100) < 0.5


def test_the_network_is_told_by_stage_with_its_rates():
    row = table(render(take_apart(on_cuda().json())), "Network")["stage 1"]
    forward, again, backward, total, share = row[:5]
    assert (forward, again, backward, total, share) == (0.13, 0.0, 0.1, 0.23, 23.0)


def test_the_longest_kernels_are_named():
    page = render(take_apart(on_cuda().json()))
    assert re.search(r"ampere_sgemm_64x64_tn +matrix products +0.10 +10.0%", page)
    assert "device idle" not in page.partition("Longest kernels")[2]


def test_a_saved_trace_makes_the_page_again(tmp_path, capsys):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(on_cuda().json()))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == render(take_apart(on_cuda().json()))


def test_a_trace_of_nothing_is_still_a_page():
    trace = Trace()
    trace.range("ProfilerStep#1", 0, 10)
    assert "records, votes, rest of the loop" in render(take_apart(trace.json()))
