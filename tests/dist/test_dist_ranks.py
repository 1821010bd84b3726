"""The process groups' small functions on two real ranks, and the launcher of these tests."""

import pytest
from ranks import RanksFailed, run_ranks


def test_values_travel():
    zero, one = run_ranks("cases_dist:talk", 2)
    for rank in (zero, one):
        assert rank["sum"] == [3.0, 2.0**53 + 2.0]
        assert rank["max"] == 7
        assert rank["text"] == "from rank zero: é✓"
        assert rank["empty"] == ""
        assert rank["gathered"] == [{"rank": 0, "pad": ""}, {"rank": 1, "pad": "x" * 5000}]
    assert (zero["order"], one["order"]) == (["before", "after"], ["before", "after"])


def test_a_stop_is_agreed_on_one_boundary_later_without_waiting_there(tmp_path):
    votes = run_ranks("cases_dist:stop_votes", 2, str(tmp_path), timeout_seconds=30)
    assert votes == [[None, None, None, "SIGUSR2", "SIGUSR2"]] * 2


@pytest.mark.slow
def test_launcher_shows_a_traceback_and_stops_the_others():
    with pytest.raises(RanksFailed, match="rank 1 gives up") as failure:
        run_ranks("cases_dist:one_raises", 2, timeout_seconds=60)
    assert failure.value.return_codes[1] == 1


@pytest.mark.slow
def test_launcher_kills_what_hangs():
    with pytest.raises(RanksFailed, match="hung") as failure:
        run_ranks("cases_dist:sleep_forever", 1, timeout_seconds=6)
    assert failure.value.return_codes == [None]
