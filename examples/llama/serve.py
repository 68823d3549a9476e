"""Serve the sample's chat or embedding model with llama.cpp's own HTTP server, until told to stop.

This is the inference server that the sample's manifests start. It is a plain llama.cpp server on a real GGUF file; the
file is tiny and written on the spot, so the sample needs neither a GPU nor a download.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import socket
import sys
from pathlib import Path

import xllamacpp

WRITER = Path(__file__).with_name("tiny_gguf.py")
HTTP_THREADS = 64
STOP = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    options = parse_options()
    # Blocked before llama.cpp starts its threads, which inherit it: only sigwait below gets to see the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        model = ensure_model(options)
    except (OSError, ValueError) as error:
        return fail(f"cannot write the model: {error}")
    try:
        server = xllamacpp.Server(server_settings(options, model))
    except RuntimeError:
        return fail(why_not_started(options.host, options.port))
    print(f"serve.py: {model.name} on {server.listening_address}", file=sys.stderr, flush=True)
    signal.sigwait(STOP)
    # llama.cpp's own closing (when `server` goes) waits for ever if requests are queued, and would cut streams as well.
    os._exit(0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a tiny hand-written model with llama.cpp.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--dir", type=Path, required=True, help="folder for the model file, made if missing")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--say", metavar="SENTENCE", help="serve a chat model that answers with this sentence")
    kind.add_argument("--embedding", action="store_true", help="serve an embedding model")
    parser.add_argument("--name", help="model name to report (default: the file's name)")
    parser.add_argument("--slots", type=int, default=4, help="chat requests worked on at once; more wait (default: 4)")
    parser.add_argument("--context", type=int, default=8192, help="tokens per slot (default: 8192)")
    parser.add_argument("--layers", type=int, default=1, help="depth of the chat model, to make it slower (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    return parser.parse_args()


def ensure_model(options: argparse.Namespace) -> Path:
    """Write the model unless the folder has it: its name stands for all that decides what is in it."""
    options.dir.mkdir(parents=True, exist_ok=True)
    content = repr((options.say, options.layers)).encode() + WRITER.read_bytes()
    kind = "embedding" if options.embedding else "chat"
    path: Path = options.dir / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}.gguf"
    if path.exists():
        return path
    import tiny_gguf  # only now, as gguf and numpy would cost every later start 0.1 s and 20 MB

    if options.embedding:
        tiny_gguf.write_embedding(path)
    else:
        tiny_gguf.write_chat(path, options.say, options.layers)
    return path


def server_settings(options: argparse.Namespace, model: Path) -> xllamacpp.CommonParams:
    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.hostnames = [options.host]
    settings.port = options.port
    if options.name:
        settings.model_alias = {options.name}
    # llama.cpp mixes up pooled texts of unequal length that share a batch, so these go one by one.
    settings.n_parallel = 1 if options.embedding else options.slots
    settings.n_ctx = settings.n_parallel * options.context
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options.threads
    # Each connection holds a thread for as long as it lives. llama.cpp starts with few and is late to add more in a
    # rush, which would leave /health without one.
    settings.n_threads_http = HTTP_THREADS
    settings.endpoint_metrics = True
    settings.ui = False
    # A prompt costs nothing here, and without a cache a request's token counts do not depend on those before it.
    settings.cache_prompt = False
    settings.cache_ram_mib = 0
    if options.embedding:
        settings.embedding = True
        # A pooled text has to fit into one batch.
        settings.n_batch = settings.n_ubatch = options.context
        # llama.cpp lets an embedding model chat as well, and this one knows no end.
        settings.n_predict = 1
    else:
        # Lets an answer run on past the context when a request forbids its end (ignore_eos).
        settings.ctx_shift = True
    return settings


def why_not_started(host: str, port: int) -> str:
    """llama.cpp only says that it did not start; nearly always the address is the reason, so try that."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return f"cannot listen on {host}:{port}: {error.strerror}"
    return "llama.cpp did not start, see its log above"


def fail(message: str) -> int:
    print(f"serve.py: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
