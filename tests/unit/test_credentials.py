"""What is taken for a credential, and what is not."""

import pytest

from pretrain.credentials import credential_in, is_credential, redact, without_url_secrets


@pytest.mark.parametrize(
    "name",
    [
        *("WANDB_API_KEY", "HF_TOKEN", "GITHUB_PAT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_SESSION_TOKEN", "db_password", "SLURM_JWT", "SSH_PASSPHRASE", "MY_APIKEY"),
    ],
)
def test_credentials_by_name(name: str) -> None:
    assert is_credential(name)


@pytest.mark.parametrize(
    "name",
    ["PATH", "TOKENIZERS_PARALLELISM", "AWS_DEFAULT_REGION", "KEYBOARD", "num_tokens_seen_x"],
)
def test_other_names(name: str) -> None:
    assert is_credential(name) == (name == "num_tokens_seen_x")  # in doubt, yes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("export WANDB_API_KEY=0123abc", "WANDB_API_KEY"),
        ("ALL,HF_TOKEN=x", "HF_TOKEN"),
        ('export A_SECRET="x y"', "A_SECRET"),
        ("curl s3://me:pw@host/x", "a URL with a password"),
        ("export WANDB_API_KEY=$(cat ~/.wandb_key)", None),
        ('export HF_TOKEN="$OTHER"', None),
        ("export HF_TOKEN=`cat f`", None),
        ("curl https://host/x https://me@host", None),
        ("export OMP_NUM_THREADS=8", None),
    ],
)
def test_what_a_line_gives_away(text: str, expected: str | None) -> None:
    assert credential_in(text) == expected


def test_commands_are_recorded_without_secrets() -> None:
    environment = {"HF_TOKEN": "hf_0123456789", "A_TOKEN": "short", "HOME": "/home/someone"}
    words = [
        "x",
        "a=hf_0123456789",
        "data.path=https://u:p@host/d?sig=z",
        "B_PASSWORD=abc",
        "short",
    ]
    assert redact(words, environment) == [
        *("x", "a=<HF_TOKEN>", "data.path=https://host/d?…", "B_PASSWORD=<B_PASSWORD>", "short")
    ]


def test_urls_in_values_lose_what_authorises() -> None:
    values = {"a": {"b": ["https://h/d?sig=1", 3, None]}, "c": "s3://bucket/x"}
    shown = {"a": {"b": ["https://h/d?…", 3, None]}, "c": "s3://bucket/x"}
    assert without_url_secrets(values) == shown
