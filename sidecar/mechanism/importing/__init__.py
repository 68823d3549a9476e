"""From what other gateways are configured with to manifests. Nothing is started, and no setting is lost in silence.

Each source has a module: `llama_swap`, `litellm`, `llm_manager`, `llm_one_api` and `ollama`. It walks the settings
(`account.At`), says of each what became of it (`account.Account`), and puts what is carried into a `draft.Draft`, which
turns into files. What it says nothing about is listed as unknown. Keys and passwords of the input never stand in what
is written, nor in the report: clients' keys become hashes, and servers' keys become variables that have to be set.
"""
