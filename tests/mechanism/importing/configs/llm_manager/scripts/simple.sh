#!/bin/bash
# Written for these tests.
set -e
export LD_LIBRARY_PATH=/opt/llama/lib
cd /opt/llama
exec ./llama-server \
    -m /models/next-80b-Q4_K_M.gguf \
    --host 127.0.0.1 --port 10004 -c 65536 --temp 0.7
