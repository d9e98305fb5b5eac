"""A language model of 1 MB, made on the spot: real to vLLM, and needing no network.

The weights are seeded noise, written straight as safetensors (no torch import, so it takes well
under a second) and scaled like a trained network's, so that the greedy answer depends on the
whole prompt and no two logits are nearly equal. The tokenizer is a byte-level BPE trained on a
few sentences; its chat template knows tools. Equal arguments give equal files, byte for byte, on
every machine.

    python -m tests.vllm.tiny_model DIRECTORY [--moe]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 512, 128, 2, 4, 2, 32
INTERMEDIATE, EXPERTS, EXPERTS_PER_TOKEN, EXPERT_INTERMEDIATE = 256, 8, 2, 64
POSITIONS_MAX = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "A supervisor watches its workers, explains every failure, and starts them again.",
    "What is the weather in Paris? It is sunny in Paris and it rains in Oslo.",
    "You are a helpful assistant. Answer the question of the user in one sentence.",
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}',
    "one two three four five six seven eight nine ten zero 0 1 2 3 4 5 6 7 8 9",
]

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- 'You may call these functions:\\n' }}
{%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
{{- 'Answer a call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def make(directory: Path, *, moe: bool = False, seed: int = 0) -> Path:
    """Write a complete model directory, Qwen3 or Qwen3-MoE; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "config.json", _config(moe=moe))
    _write(
        directory / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0},
    )
    save_file(_weights(moe=moe, seed=seed), directory / "model.safetensors", {"format": "pt"})
    _tokenizer().save(str(directory / "tokenizer.json"))
    _write(directory / "tokenizer_config.json", _tokenizer_config())
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


def whitespace() -> list[int]:
    """Ids of the tokens that are nothing but whitespace.

    A model of noise likes them where a grammar allows any number of them, and then never ends.
    """
    tokenizer = _tokenizer()
    return [each for each in range(VOCABULARY) if tokenizer.decode([each]).isspace()]


def _write(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def _config(*, moe: bool) -> dict:
    config = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"],
        "model_type": "qwen3_moe" if moe else "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "dtype": "float32",
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS_MAX,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }
    if moe:
        config |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": EXPERT_INTERMEDIATE,
            "norm_topk_prob": True,
            "num_experts": EXPERTS,
            "num_experts_per_tok": EXPERTS_PER_TOKEN,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }
    return config


def _weights(*, moe: bool, seed: int) -> dict[str, np.ndarray]:
    random = np.random.Generator(np.random.PCG64(seed))

    def noise(out: int, fan_in: int, scale: float = 1.0) -> np.ndarray:
        wide = random.standard_normal((out, fan_in)) * (scale / fan_in**0.5)
        return wide.astype(np.float32)

    def ones(size: int) -> np.ndarray:
        return np.ones(size, dtype=np.float32)

    def gated(prefix: str, width: int) -> dict[str, np.ndarray]:
        return {
            f"{prefix}.gate_proj.weight": noise(width, HIDDEN),
            f"{prefix}.up_proj.weight": noise(width, HIDDEN),
            f"{prefix}.down_proj.weight": noise(HIDDEN, width),
        }

    tensors = {"model.embed_tokens.weight": noise(VOCABULARY, HIDDEN, HIDDEN**0.5)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": ones(HIDDEN),
            f"{at}.post_attention_layernorm.weight": ones(HIDDEN),
            f"{at}.self_attn.q_proj.weight": noise(HEADS * HEAD_DIM, HIDDEN),
            f"{at}.self_attn.k_proj.weight": noise(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}.self_attn.v_proj.weight": noise(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}.self_attn.o_proj.weight": noise(HIDDEN, HEADS * HEAD_DIM),
            f"{at}.self_attn.q_norm.weight": ones(HEAD_DIM),
            f"{at}.self_attn.k_norm.weight": ones(HEAD_DIM),
        }
        if moe:
            tensors[f"{at}.mlp.gate.weight"] = noise(EXPERTS, HIDDEN)
            for expert in range(EXPERTS):
                tensors |= gated(f"{at}.mlp.experts.{expert}", EXPERT_INTERMEDIATE)
        else:
            tensors |= gated(f"{at}.mlp", INTERMEDIATE)
    tensors["model.norm.weight"] = ones(HIDDEN)
    tensors["lm_head.weight"] = noise(VOCABULARY, HIDDEN, 4.0)
    return tensors


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(PLAIN),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    assert tokenizer.get_vocab_size() <= VOCABULARY, tokenizer.get_vocab_size()
    return tokenizer


def _tokenizer_config() -> dict:
    return {
        "add_bos_token": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": POSITIONS_MAX,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def main() -> None:
    """Make the directory named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--moe", action="store_true")
    options = parser.parse_args()
    make(options.directory, moe=options.moe)


if __name__ == "__main__":
    main()
