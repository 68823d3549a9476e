"""What servers print is shown without the keys of their environment."""

from __future__ import annotations

import pytest

from sidecar.mechanism.redaction import Redactor, is_secret


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD_PASSWORD", "admin"]
)
def test_these_names_are_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["PATH", "TOKENIZERS_PARALLELISM", "AWS_ACCESS_KEY_ID", "SSL_KEY_FILE", "MONKEY", "HOME"]
)
def test_these_are_not(name: str) -> None:
    assert not is_secret(name)


def test_each_value_is_replaced_wherever_it_stands() -> None:
    hide = Redactor({"HF_TOKEN": "hf_abc(def)", "LONG_KEY": "hf_abc(def)ghi", "PATH": "/usr/local/bin"}, ["otherwise"])
    assert hide("a=hf_abc(def)ghi b=hf_abc(def) c=/usr/local/bin otherwise") == (
        "a=[redacted] b=[redacted] c=/usr/local/bin [redacted]"
    )


def test_what_is_short_stays_since_it_may_stand_anywhere() -> None:
    assert Redactor({"A_KEY": "1", "B_KEY": ""})("1 + 1") == "1 + 1"
