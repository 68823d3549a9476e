"""LiteLLM's providers: `provider/model`. Those with OpenAI's API are carried; what would have to be translated is not.

Where each is, and in which variable LiteLLM looks for its key: https://docs.litellm.ai/docs/providers.
"""

from __future__ import annotations

import re

import msgspec


class Provider(msgspec.Struct, frozen=True):
    """Where a provider with OpenAI's API is. url: "" = only where `api_base` says. key: the variable of its key."""

    url: str = ""
    key: str = ""
    modes: tuple[str, ...] = ()


COMPATIBLE: dict[str, Provider] = {
    "openai": Provider("https://api.openai.com", "OPENAI_API_KEY"),
    "text-completion-openai": Provider("https://api.openai.com", "OPENAI_API_KEY", ("base",)),
    "custom_openai": Provider(),
    "openai_like": Provider(),
    "hosted_vllm": Provider("", "HOSTED_VLLM_API_KEY"),
    "vllm": Provider(),
    "llamafile": Provider("http://127.0.0.1:8080"),
    "lm_studio": Provider("", "LM_STUDIO_API_KEY"),
    "litellm_proxy": Provider("", "LITELLM_PROXY_API_KEY"),
    "xinference": Provider(),
    "infinity": Provider(modes=("embedding", "reranker")),
    "docker_model_runner": Provider(),
    "lemonade": Provider(),
    "ollama": Provider("http://localhost:11434"),
    "ollama_chat": Provider("http://localhost:11434"),
    "openrouter": Provider("https://openrouter.ai/api", "OPENROUTER_API_KEY"),
    "groq": Provider("https://api.groq.com/openai", "GROQ_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com", "DEEPSEEK_API_KEY"),
    "mistral": Provider("https://api.mistral.ai", "MISTRAL_API_KEY"),
    "codestral": Provider("https://codestral.mistral.ai", "CODESTRAL_API_KEY"),
    "together_ai": Provider("https://api.together.xyz", "TOGETHERAI_API_KEY"),
    "fireworks_ai": Provider("https://api.fireworks.ai/inference", "FIREWORKS_API_KEY"),
    "xai": Provider("https://api.x.ai", "XAI_API_KEY"),
    "nvidia_nim": Provider("https://integrate.api.nvidia.com", "NVIDIA_NIM_API_KEY"),
    "cerebras": Provider("https://api.cerebras.ai", "CEREBRAS_API_KEY"),
    "moonshot": Provider("https://api.moonshot.ai", "MOONSHOT_API_KEY"),
}
TRANSLATED = frozenset(
    """
    anthropic anthropic_text azure azure_ai azure_text bedrock sagemaker sagemaker_chat vertex_ai
    vertex_ai_beta gemini palm cohere cohere_chat huggingface replicate ai21 nlp_cloud aleph_alpha petals
    watsonx watsonx_text databricks predibase cloudflare triton oobabooga auto_router voyage jina_ai deepgram
    elevenlabs clarifai baseten maritalk friendliai github github_copilot perplexity deepinfra sambanova
    snowflake
    """.split()  # noqa: SIM905 - a list of words is read more easily than a column of quotes
)
_OPENAI = re.compile(
    r"(gpt-|chatgpt-|o\d(-|$)|text-embedding-|text-davinci|davinci|babbage|dall-e-|tts-\d|whisper-\d|omni-moderation|"
    r"text-moderation|ft:gpt|codex|computer-use)"
)


def split(model: str) -> tuple[str, str]:
    """(provider, the model's name there). Without a provider in front, OpenAI's models are known by their names."""
    provider, slash, name = model.partition("/")
    if slash and (provider in COMPATIBLE or provider in TRANSLATED):
        return provider, name
    if _OPENAI.match(model):
        return "openai", model
    return "", model
