"""Reconciles declared LLM servers with live device memory and serves them behind one OpenAI-compatible endpoint."""

__version__ = "0.1.0"
