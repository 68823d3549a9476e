"""The contract of plugins, held by all that come with the sidecar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugin_sdk.testing import contract, samples
from sidecar.builtin import amd, balance, cpu, interfaces, jwt, keys, limits, log, nvidia, params, usage
from tests.builtin.test_amd import Machine
from tests.builtin.test_keys import hashed


def jwks(root: Path) -> dict[str, Any]:
    """A file of keys that has signed nothing."""
    file = root / "keys.json"
    key = {"kty": "RSA", "kid": "1", "alg": "RS256", "n": MODULUS, "e": "AQAB"}
    file.write_text(json.dumps({"keys": [key]}))
    return {"issuer": "https://id.example", "audience": "sidecar", "jwks_file": str(file)}


def keys_file(root: Path) -> dict[str, Any]:
    """A file with one key."""
    file = root / "keys"
    file.write_text(f"{hashed(samples.TOKEN)} ada\n")
    return {"file": str(file)}


def two_cards(root: Path) -> dict[str, Any]:
    """A sysfs with two cards of AMD's."""
    machine = Machine(root)
    machine.card(0)
    machine.card(1)
    return {"sys": str(root)}


MODULUS = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs"
    "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5h"
    "ajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
)  # RFC 7517, appendix A.1

test_cpu = contract(cpu.Cpu)
test_nvidia = contract(nvidia.Nvidia)
test_amd = contract(amd.Amd)
test_amd_with_cards = contract(amd.Amd, config=two_cards)

test_chat = contract(interfaces.Chat)
test_base = contract(interfaces.Base)
test_embedding = contract(interfaces.Embedding)
test_reranker = contract(interfaces.Reranker)
test_messages = contract(interfaces.Messages)
test_responses = contract(interfaces.Responses)
test_transcription = contract(interfaces.Transcription)
test_speech = contract(interfaces.Speech)
test_image = contract(interfaces.Image)

test_keys = contract(keys.StaticKeys, config={"keys": {hashed(samples.TOKEN): "ada"}}, token=samples.TOKEN)
test_keys_in_a_file = contract(keys.StaticKeys, config=keys_file, token=samples.TOKEN)
test_jwt = contract(jwt.Jwt, config=jwks)
test_jwt_of_an_address_that_does_not_answer = contract(
    jwt.Jwt, config={"issuer": "https://id.example", "audience": "sidecar", "jwks_url": "https://id.example/keys"}
)

test_balance = contract(balance.Balance)

test_limits = contract(limits.Limits)
test_params = contract(params.Params, config={"set": {"temperature": 0}, "strip": ["logit_bias"]})

test_log = contract(log.Log)
test_usage = contract(usage.Usage)
test_usage_in_a_place_of_its_own = contract(usage.Usage, config=lambda root: {"path": str(root / "usage.db")})
