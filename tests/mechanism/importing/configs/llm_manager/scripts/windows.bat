@echo off
rem Written for these tests.
set CUDA_VISIBLE_DEVICES=-1
C:\llama\llama-server.exe -m C:\models\next-80b-Q4_K_M.gguf ^
  --host 127.0.0.1 --port 10004 -c 8192
