"""For the tests of plugins: a chain that runs without a server, and the checks that every plugin should pass.

    test_door = contract(Door, config={"word": "open-sesame"}, token="open-sesame")

    async def test_friends_are_let_in() -> None:
        async with Harness(Door(Settings(word="open-sesame"))) as harness:
            answer = await harness.request(headers={"authorization": "Bearer open-sesame"})
        assert answer.status == 200 and answer.outcome.principal == "friend"

Depends on msgspec and the standard library alone; pytest is imported when `contract` is called.
"""

from plugin_sdk.testing.contract import contract, faults
from plugin_sdk.testing.harness import Answer, Harness
from plugin_sdk.testing.host import Host, Numbers

__all__ = ["Answer", "Harness", "Host", "Numbers", "contract", "faults"]
