"""What servers print is shown without the keys of their environment."""

from __future__ import annotations

import json

import pytest

from sidecar.mechanism.redaction import Redactor, is_secret


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MYSQL_PWD", "GITHUB_PAT", "admin"]
)
def test_these_names_are_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["PATH", "TOKENIZERS_PARALLELISM", "AWS_ACCESS_KEY_ID", "SSL_KEY_FILE", "MONKEY", "HOME", "PWD", "MAX_TOKENS"],
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


def test_the_password_of_an_address_is_replaced_whatever_the_variable_is_called() -> None:
    hide = Redactor({"DATABASE_URL": "postgres://bob:hunter2%40home@db/x?y=1", "PROXY": "http://bob@proxy:3128/"})
    assert hide("bob hunter2%40home, hunter2@home, db, http://bob@proxy:3128/") == (
        "bob [redacted], [redacted], db, http://bob@proxy:3128/"
    )


def test_a_key_is_found_in_each_form_in_which_it_may_be_printed() -> None:
    hide = Redactor({"A_KEY": 'quote"back\\slash/ü', "PEM_KEY": "-----BEGIN KEY-----\nMIIEvQIBADAN\nab\n"})
    assert hide(json.dumps('quote"back\\slash/ü')) == '"[redacted]"'
    assert hide("quote%22back%5Cslash%2F%C3%BC") == "[redacted]"
    assert hide("MIIEvQIBADAN") == "[redacted]"
    assert hide(repr("-----BEGIN KEY-----\nMIIEvQIBADAN\n")) == "'[redacted]\\n[redacted]\\n'"


def test_one_that_knows_more_knows_what_it_knew() -> None:
    hide = Redactor({"A_KEY": "first-secret"}).also({"B_KEY": "second-secret"}, others=["third-secret"])
    assert hide("first-secret second-secret third-secret") == " ".join(["[redacted]"] * 3)
