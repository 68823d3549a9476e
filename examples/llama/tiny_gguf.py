"""Write the sample's two models as GGUF files, weight by weight, so that nothing has to be trained or downloaded.

Both are real Llama models that llama.cpp loads and runs like any other. What makes them tiny is that their weights are
chosen by hand: the chat model knows one sentence and nothing else, the embedding model averages the bytes it reads.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}: {{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)

# llama.cpp writes a space as this sign in vocabularies of this kind.
SPACE = "\u2581"

SPECIAL = ("<unk>", "<s>", "</s>", "<|turn|>", "<|answer|>")
UNKNOWN, BEGIN, END = 0, 1, 2
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
NEWLINE = len(SPECIAL) + 0x0A
FIRST_WORD = len(SPECIAL) + len(BYTES) + 1

TRAINED_CONTEXT = 131072
FEED_FORWARD = 1
CHAT_HEAD = 2
EMBEDDING_SIZE = 64
MOST_LAYERS = 512  # llama.cpp aborts the process beyond that


def write_chat(path: Path, sentence: str, layers: int = 1) -> None:
    """Write a model that answers anything with `sentence`.

    The model is a chain of words. Its hidden vector has one place per word, and place 0 for "no word yet". A word's
    embedding is 1 at its own place and 0 elsewhere (one-hot); every other token (a byte of the prompt, a turn marker)
    is 1 at place 0. Attention and feed-forward are all zero, so a block adds nothing and the vector reaches the output
    matrix as it was: it tells which token came last, and no more. The output matrix names the token that follows.
    A prompt therefore starts the sentence whatever it says, for it ends in a token that is no word.

    `layers` makes the model deeper and so truly slower, without changing what it says: llama.cpp computes every zero.
    """
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"a model has 1 to {MOST_LAYERS} layers")
    words = split_words(sentence)
    width = _round_up(len(words) + 1, 32)
    writer = _describe("sidecar sample chat", width, CHAT_HEAD, layers)
    _add_vocabulary(writer, words)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_tensor("token_embd.weight", _word_places(len(words), width))
    writer.add_tensor("output.weight", _followers(len(words), width))
    _add_blocks(writer, layers, value=_zeros(CHAT_HEAD, width), output=_zeros(width, CHAT_HEAD))
    _write(writer, path)


def write_embedding(path: Path) -> None:
    """Write a model whose pooled output is a vector for a text.

    Every byte has a fixed vector that looks random. Queries and keys are zero, so attention weighs all bytes so far
    alike; value and output are the identity, so that each position gets the plain average of the text up to there.
    This is what tells "ab" from "ba", which a mere sum of byte vectors would not. llama.cpp then takes the mean over
    the positions. Texts that share letters come out near to each other, and there is no more meaning to it than that.
    """
    width = EMBEDDING_SIZE
    writer = _describe("sidecar sample embedding", width, width, layers=1)
    _add_vocabulary(writer, [])
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tensor("token_embd.weight", _scattered(FIRST_WORD, width))
    _add_blocks(writer, 1, value=_identity(width), output=_identity(width))
    _write(writer, path)


def split_words(sentence: str) -> list[str]:
    """Split into words that keep the space before them, no two alike.

    The last token is all the model remembers, so a word that came twice would have two followers. From its second time
    on it is joined to the word after it (the last one to the word before) until the piece is new.
    """
    pieces: list[str] = []
    piece = ""
    for word in re.findall(r"\s*\S+", sentence.strip()):
        piece += word
        if piece not in pieces:
            pieces.append(piece)
            piece = ""
    while piece:
        piece = pieces.pop() + piece
        if piece not in pieces:
            pieces.append(piece)
            piece = ""
    if not pieces:
        raise ValueError("the sentence has no words")
    return pieces


def _describe(name: str, width: int, head: int, layers: int) -> gguf.GGUFWriter:
    """Start a model of the given shape; its file is named only when it is written."""
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_name(name)
    writer.add_context_length(TRAINED_CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def _add_vocabulary(writer: gguf.GGUFWriter, words: list[str]) -> None:
    """Give every byte a token, so that any text can be read, and every word of the sentence one of its own.

    In a prompt those words are still read byte by byte (but for words of one letter), because llama.cpp only finds a
    long token by way of shorter ones. The space has a token, or it would take three bytes.
    """
    tokens = [*SPECIAL, *BYTES, SPACE, *(word.replace(" ", SPACE) for word in words)]
    if len(set(tokens)) < len(tokens):
        raise ValueError("a word of the sentence is written like a token the model has already")
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * (len(SPECIAL) - 1)
    types += [gguf.TokenType.BYTE] * len(BYTES) + [gguf.TokenType.NORMAL] * (1 + len(words))
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _word_places(words: int, width: int) -> Weights:
    """Embed each word at its own place and all other tokens at place 0."""
    table = _zeros(FIRST_WORD + words, width)
    table[:FIRST_WORD, 0] = 1
    for word in range(words):
        table[FIRST_WORD + word, 1 + word] = 1
    return table


def _followers(words: int, width: int) -> Weights:
    """Score each token's follower so high that no sampling setting picks another.

    Place 0 leads to the first word and each word to the next. The last leads to the end token, and half as strongly to
    a line break: that is no word, so a request that forbids the end (`ignore_eos`) gets the sentence over and over.
    """
    table = _zeros(FIRST_WORD + words, width)
    for word in range(words):
        table[FIRST_WORD + word, word] = 20
    table[END, words] = 20
    table[NEWLINE, words] = 10
    return table


def _scattered(rows: int, width: int) -> Weights:
    """Numbers in -1..1 that look random and are the same everywhere, which no library's generator promises."""
    digest = hashlib.shake_256(b"sidecar sample embedding").digest(rows * width)
    numbers = np.frombuffer(digest, dtype=np.uint8).astype(np.float32)
    return (numbers / np.float32(127.5) - np.float32(1)).reshape(rows, width)


def _add_blocks(writer: gguf.GGUFWriter, layers: int, value: Weights, output: Weights) -> None:
    """Add blocks that attend evenly to all that came before (zero query and key) and have no feed-forward."""
    head, width = value.shape
    for layer in range(layers):
        block = {
            "attn_norm": _ones(width),
            "attn_q": _zeros(head, width),
            "attn_k": _zeros(head, width),
            "attn_v": value,
            "attn_output": output,
            "ffn_norm": _ones(width),
            "ffn_gate": _zeros(FEED_FORWARD, width),
            "ffn_up": _zeros(FEED_FORWARD, width),
            "ffn_down": _zeros(width, FEED_FORWARD),
        }
        for name, weights in block.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights)
    writer.add_tensor("output_norm.weight", _ones(width))


def _write(writer: gguf.GGUFWriter, path: Path) -> None:
    """Write a temporary file beside `path` and rename it into place.

    Two engines may start on one folder at once. A rename is atomic, so each sees no file or a whole one; both write the
    same bytes, so it does not matter whose stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _zeros(*shape: int) -> Weights:
    return np.zeros(shape, dtype=np.float32)


def _ones(*shape: int) -> Weights:
    return np.ones(shape, dtype=np.float32)


def _identity(size: int) -> Weights:
    return np.eye(size, dtype=np.float32)
