"""A tokenizer that round-trips every text, and a "model" that is a pure function.

A token is a byte string: one of 256 single bytes, or one of 1,024 invented words with the space
before it (" kamo"). Text becomes words where it can and bytes elsewhere, so decoding is joining.

The next token follows from a rolling hash of all tokens before it. So it depends on the prompt and
the position alone, and a stream that broke can be continued exactly: append what came to the
prompt, as text or as ids, and the rest is what would have come. That holds for text because every
generated word begins with a space, which is always a token boundary.
"""

import re

_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"][:64:2]
_WORDS = [first + second for first in _SYLLABLES for second in _SYLLABLES]
_WORD = re.compile(rb" [a-z]{4}(?![a-z])")

EOS = 256
SYSTEM, USER, ASSISTANT, TOOL, END = range(257, 262)
_SPECIALS = [b"<|eos|>", b"<|system|>", b"<|user|>", b"<|assistant|>", b"<|tool|>", b"<|end|>"]
FIRST_WORD = 256 + len(_SPECIALS)

PIECES = [bytes([value]) for value in range(256)] + _SPECIALS
PIECES += [b" " + word.encode() for word in _WORDS]
TEXTS = [piece.decode("utf-8", "replace") for piece in PIECES]
"""What each token shows as by itself."""
VOCABULARY = len(PIECES)

_IDS = {PIECES[token]: token for token in range(FIRST_WORD, VOCABULARY)}
_MASK = (1 << 64) - 1
_ANSWER_TOKENS = 64
"""One token in so many ends an answer that isn't bounded by its request."""

ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "assistant": ASSISTANT,
    "tool": TOOL,
    "function": TOOL,
}


def encode(text: str) -> list[int]:
    """Turn text into tokens; never a special token, whatever the text says."""
    data = text.encode("utf-8", "replace")
    tokens: list[int] = []
    at = 0
    for match in _WORD.finditer(data):
        token = _IDS.get(match[0])
        if token is not None:
            tokens += data[at : match.start()]
            tokens.append(token)
            at = match.end()
    tokens += data[at:]
    return tokens


def decode(tokens: list[int]) -> str:
    """Turn tokens into text; IndexError for an id outside the vocabulary."""
    return b"".join([PIECES[token] for token in tokens]).decode("utf-8", "replace")


def mix(state: int, token: int) -> int:
    """Take one more token into the rolling hash."""
    state = ((state ^ token) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
    return state ^ (state >> 29)


def state_of(tokens: list[int]) -> int:
    """Hash a whole prompt: the state from which its first generated token follows."""
    state = 0
    for token in tokens:
        state = mix(state, token)
    return state


def next_token(state: int) -> int:
    """Predict the token that follows this state; never a special one."""
    return FIRST_WORD + (state >> 16) % len(_WORDS)


def wants_to_end(state: int) -> bool:
    """Whether the model would rather end its answer here."""
    return (state >> 40) % _ANSWER_TOKENS == 0


def candidates(state: int, count: int) -> list[tuple[int, float]]:
    """List the `count` likeliest tokens and their log-probabilities, the chosen one first."""
    first = next_token(state) - FIRST_WORD
    best = -((state >> 8) % 1000) / 2000.0 - 0.0005
    return [
        (FIRST_WORD + (first + rank) % len(_WORDS), round(best - 0.7 * rank, 4))
        for rank in range(count)
    ]


def render_chat(
    messages: list[tuple[str, str]], *, open_end: bool, generate: bool, today: str = ""
) -> list[int]:
    """Apply the chat template to (role, text) pairs.

    `open_end` leaves the last message unfinished, to be continued; `generate` begins an answer.
    `today`: the date, if the template prints one.
    """
    tokens: list[int] = [SYSTEM, *encode(today), END] if today else []
    for role, text in messages:
        tokens.append(ROLES[role])
        tokens += encode(text)
        tokens.append(END)
    if open_end and tokens:
        tokens.pop()
    elif generate:
        tokens.append(ASSISTANT)
    return tokens
