"""Real llama.cpp servers in one process: one that chats and calls a tool, one for vectors, and a reranker.

Prints their addresses as a JSON object, and serves until it is killed. The weights are the sample's
(`examples/llama/tiny_gguf.py`); what the sample lacks are a template that knows tools, and a mode for rankings.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import xllamacpp

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "llama"
CONTEXT = 2048
SLOTS = 4

CALL = '{"name": "weather", "arguments": {"city": "Oslo", "metric": true}}'
SENTENCE = f"I shall look it up. <tool_call>\n{CALL}\n</tool_call>"

# By these marks llama.cpp recognizes that the model calls tools, and how.
TEMPLATE = (
    "{% if tools %}<|turn|>tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    'Call one as <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>.{% endif %}'
    "{% for message in messages %}<|turn|>{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)


def settings(model: Path, name: str) -> Any:
    """As the sample's server sets them: nothing is remembered, so answers do not depend on those before."""
    found = xllamacpp.CommonParams()
    found.model.path = str(model)
    found.model_alias = {name}
    found.hostnames = ["127.0.0.1"]
    found.port = 0
    found.n_parallel = 1
    found.n_ctx = found.n_batch = found.n_ubatch = CONTEXT
    found.cpuparams.n_threads = found.cpuparams_batch.n_threads = 1
    found.n_threads_http = 16
    found.cache_prompt = False
    found.cache_ram_mib = 0
    found.ui = False
    return found


def main() -> None:
    """Serve the three, with files in the folder that is the argument."""
    sys.path.insert(0, str(SAMPLE))
    tiny_gguf = importlib.import_module("tiny_gguf")
    folder = Path(sys.argv[1])
    chat_file, vector_file = folder / "chat.gguf", folder / "embedding.gguf"
    tiny_gguf.write_chat(chat_file, SENTENCE)
    tiny_gguf.write_embedding(vector_file)

    parrot = settings(chat_file, "parrot")
    parrot.n_parallel, parrot.n_ctx = SLOTS, SLOTS * CONTEXT
    parrot.chat_template = TEMPLATE
    compass = settings(vector_file, "compass")
    ranker = settings(vector_file, "ranker")
    compass.embedding = ranker.embedding = True
    ranker.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    servers = {"parrot": parrot, "compass": compass, "ranker": ranker}
    running = {name: xllamacpp.Server(found) for name, found in servers.items()}
    print(json.dumps({name: server.listening_address for name, server in running.items()}), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
