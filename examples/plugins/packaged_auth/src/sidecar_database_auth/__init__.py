"""Auth for llm-sidecar by the keys in a SQLite database. See `sidecar_database_auth.database_auth`."""
