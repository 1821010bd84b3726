"""What a server does wrong is told from what it refuses."""

import pytest
from wandb_servers import faulty

from pretrain.metrics.mirror import probe
from pretrain.metrics.mirror.probe import what_is_wrong

FOUND = {
    "refused": "[Errno 111] Connection refused",
    "hangs": "no answer within 1 s",
    "500": "answers 500 No",
    "401": None,
    "bytewise": "no answer within 1 s",
    "dies": None,
}


@pytest.mark.parametrize("fault", FOUND)
def test_what_a_server_does_wrong_is_found_in_bounded_time(fault, monkeypatch):
    monkeypatch.setattr(probe, "PROBE_SECONDS", 1.0)
    with faulty(fault) as server:
        assert what_is_wrong(f"http://127.0.0.1:{server.port}") == FOUND[fault]


def test_what_is_no_address_is_said():
    assert "unknown url type" in str(what_is_wrong("wandb"))
