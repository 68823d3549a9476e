#!/bin/bash
# Written for these tests: it does more than run a command.
if [ -e /opt/new ]; then exec /opt/new/llama-server --port 10011 --reranking; fi
exec /opt/old/llama-server --port 10011 --reranking
