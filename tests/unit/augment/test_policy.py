"""Reading timm's RandAugment notation."""

import pytest

from pretrain.augment.policy import RandAugmentPolicy, parse_policy
from pretrain.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand-m9-mstd0.5-inc1", RandAugmentPolicy(9, 0.5, 2, 0.5)),
        ("rand-inc1", RandAugmentPolicy(10, 0.0, 2, 0.5)),
        ("rand-inc1-n3-p0.8-m7", RandAugmentPolicy(7, 0.0, 3, 0.8)),
        ("rand-m0-mstd100-inc1-p1", RandAugmentPolicy(0, 100.0, 2, 1.0)),
    ],
)
def test_parse(text, expected):
    assert parse_policy(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must begin with 'rand'"),
        ("augmix-m3-inc1", "must begin with 'rand'"),
        ("rand-m9-mstd0.5", "'inc1' is needed"),
        ("rand-m9-inc0", "'inc1' is needed"),
        ("rand-m9-w0-inc1", "unknown part 'w0'"),
        ("rand-m9-mmax20-inc1", "unknown part 'mmax20'"),
        ("rand-m9-tweights-inc1", "unknown part 'tweights'"),
        ("rand-m9--inc1", "unknown part ''"),
        ("rand-m9-inc1 ", "unknown part 'inc1 '"),
        ("rand-m-9-inc1", "unknown part 'm'"),
        ("rand-m9-m8-inc1", "'m' is given twice"),
        ("rand-m11-inc1", "'m' must be a whole number from 0 to 10"),
        ("rand-m9.5-inc1", "'m' must be a whole number from 0 to 10"),
        ("rand-n0-inc1", "'n' must be a whole number from 1 to 15"),
        ("rand-p1.5-inc1", "'p' must be at most 1"),
        ("rand-mstd101-inc1", "'mstd' must be at most 100"),
    ],
)
def test_refusals_are_one_clear_line(text, problem):
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    message = str(caught.value)
    assert problem in message
    assert message.startswith("augment.randaugment: ")
    assert "\n" not in message
