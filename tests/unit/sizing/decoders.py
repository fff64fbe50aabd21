"""Tensors of text models as their makers publish them, and the ``config.json`` that goes with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Weight(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str = ""
    """Empty: that of the checkpoint."""
    parameters: int | None = None
    """That it stands for, where it is packed or a scale."""


@dataclass(frozen=True)
class Checkpoint:
    config: dict[str, Any]
    weights: tuple[Weight, ...]
    text_prefix: str = "model."

    def parameters(self, prefix: str = "") -> int:
        return sum(
            _product(w.shape) if w.parameters is None else w.parameters
            for w in self.weights
            if w.name.startswith(prefix)
        )


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


# -- decoders -----------------------------------------------------------------------------------------------------


def dense(m: dict[str, Any], model_type: str, *, qk_norm: bool = False, bias: bool = False) -> Checkpoint:
    weights = [*ends(m)]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*attention(m, at, qk_norm=qk_norm, bias=bias), *norms(m, at), *mlp(m, at + "mlp.", ffn(m))]
    return Checkpoint(config_of(m, model_type, intermediate_size=ffn(m)), tuple(weights))


def ends(m: dict[str, Any], prefix: str = "model.", head: str = "lm_head.weight") -> Iterator[Weight]:
    hidden = m["hidden_size"]
    yield Weight(f"{prefix}embed_tokens.weight", (m["vocab_size"], hidden))
    yield Weight(f"{prefix}norm.weight", (hidden,))
    if not m["tie_word_embeddings"]:
        yield Weight(head, (m["vocab_size"], hidden))


def attention(
    m: dict[str, Any], at: str, *, qk_norm: bool, bias: bool = False, gate: bool = False, out_bias: bool = False
) -> Iterator[Weight]:
    hidden, dim = m["hidden_size"], m["head_dim"]
    heads, kv = m["num_attention_heads"] * dim, m["num_kv_heads"] * dim
    rows = {"q": heads * (2 if gate else 1), "k": kv, "v": kv}
    for name, size in rows.items():
        yield Weight(f"{at}self_attn.{name}_proj.weight", (size, hidden))
        if bias:
            yield Weight(f"{at}self_attn.{name}_proj.bias", (size,))
    yield Weight(f"{at}self_attn.o_proj.weight", (hidden, heads))
    if out_bias:
        yield Weight(f"{at}self_attn.o_proj.bias", (hidden,))
    if qk_norm:
        yield Weight(f"{at}self_attn.q_norm.weight", (dim,))
        yield Weight(f"{at}self_attn.k_norm.weight", (dim,))


def norms(m: dict[str, Any], at: str) -> Iterator[Weight]:
    yield Weight(f"{at}input_layernorm.weight", (m["hidden_size"],))
    yield Weight(f"{at}post_attention_layernorm.weight", (m["hidden_size"],))


def mlp(m: dict[str, Any], at: str, width: int) -> Iterator[Weight]:
    hidden = m["hidden_size"]
    yield Weight(f"{at}gate_proj.weight", (width, hidden))
    yield Weight(f"{at}up_proj.weight", (width, hidden))
    yield Weight(f"{at}down_proj.weight", (hidden, width))


def ffn(m: dict[str, Any]) -> int:
    return m["ffn_intermediate_size"] or m["moe"]["moe_intermediate_size"]


def config_of(m: dict[str, Any], model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [m["architecture"]],
        "model_type": model_type,
        "hidden_size": m["hidden_size"],
        "num_hidden_layers": m["num_layers"],
        "num_attention_heads": m["num_attention_heads"],
        "num_key_value_heads": m["num_kv_heads"],
        "head_dim": m["head_dim"],
        "vocab_size": m["vocab_size"],
        "max_position_embeddings": m["max_position_embeddings"],
        "tie_word_embeddings": m["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
        "sliding_window": None,
        "rope_scaling": None,
        **more,
    }


# -- experts ------------------------------------------------------------------------------------------------------


def _moe(m: dict[str, Any], at: str, *, correction: bool = False, shared: str = "") -> Iterator[Weight]:
    moe, hidden = m["moe"], m["hidden_size"]
    yield Weight(f"{at}gate.weight", (moe["experts"], hidden))
    if correction:
        yield Weight(f"{at}gate.e_score_correction_bias", (moe["experts"],), "F32")
    for expert in range(moe["experts"]):
        yield from mlp(m, f"{at}experts.{expert}.", moe["moe_intermediate_size"])
    if moe["shared_expert_intermediate_size"]:
        yield from mlp(m, f"{at}{shared}.", moe["shared_expert_intermediate_size"])
    if shared == "shared_expert":
        yield Weight(f"{at}shared_expert_gate.weight", (1, hidden))


def qwen3_moe(m: dict[str, Any]) -> Checkpoint:
    weights = [*ends(m)]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*attention(m, at, qk_norm=True), *norms(m, at), *_moe(m, at + "mlp.")]
    moe = m["moe"]
    config = config_of(
        m,
        "qwen3_moe",
        intermediate_size=3 * moe["moe_intermediate_size"],
        num_experts=moe["experts"],
        num_experts_per_tok=moe["experts_per_token"],
        moe_intermediate_size=moe["moe_intermediate_size"],
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    return Checkpoint(config, tuple(weights))


def glm4_moe(m: dict[str, Any]) -> Checkpoint:
    """With its MTP layer, which repeats embedding and head."""
    qk_norm = m["num_layers"] == 92
    weights = [*ends(m)]
    first = m["moe"]["first_dense_layers"]
    for layer in range(m["num_layers"] + 1):
        at = f"model.layers.{layer}."
        weights += [*attention(m, at, qk_norm=qk_norm, bias=True), *norms(m, at)]
        if layer < first:
            weights += mlp(m, at + "mlp.", m["ffn_intermediate_size"])
        else:
            weights += _moe(m, at + "mlp.", correction=True, shared="shared_experts")
    weights += _mtp_ends(m)
    return Checkpoint(config_of(m, "glm4_moe", **_deepseek_keys(m), attention_bias=True), tuple(weights))


def _mtp_ends(m: dict[str, Any]) -> Iterator[Weight]:
    at, hidden, vocab = f"model.layers.{m['num_layers']}.", m["hidden_size"], m["vocab_size"]
    yield Weight(f"{at}eh_proj.weight", (hidden, 2 * hidden))
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        yield Weight(f"{at}{norm}.weight", (hidden,))
    yield Weight(f"{at}embed_tokens.weight", (vocab, hidden))
    yield Weight(f"{at}shared_head.head.weight", (vocab, hidden))


def _deepseek_keys(m: dict[str, Any]) -> dict[str, Any]:
    moe = m["moe"]
    return {
        "intermediate_size": m["ffn_intermediate_size"],
        "n_routed_experts": moe["experts"],
        "n_shared_experts": moe["shared_expert_intermediate_size"] // moe["moe_intermediate_size"],
        "num_experts_per_tok": moe["experts_per_token"],
        "moe_intermediate_size": moe["moe_intermediate_size"],
        "first_k_dense_replace": moe["first_dense_layers"],
        "num_nextn_predict_layers": m.get("mtp_layers", 0),
    }


def deepseek(m: dict[str, Any], model_type: str) -> Checkpoint:
    weights = [*ends(m)]
    mtp = m.get("mtp_layers", 0)
    for layer in range(m["num_layers"] + mtp):
        at = f"model.layers.{layer}."
        weights += [*_mla(m, at), *norms(m, at)]
        if layer < m["moe"]["first_dense_layers"]:
            weights += mlp(m, at + "mlp.", m["ffn_intermediate_size"])
        else:
            weights += _moe(m, at + "mlp.", correction=True, shared="shared_experts")
    weights += _mtp_ends(m) if mtp else []
    index = m.get("sparse_attention_indexer")
    config = config_of(m, model_type, **_deepseek_keys(m), **m["mla"])
    del config["head_dim"]
    if index:
        config |= {"index_n_heads": index["heads"], "index_head_dim": index["head_dim"], "index_topk": index["topk"]}
    if m["dtype"] == "fp8":
        return _in_fp8(config, weights)
    return Checkpoint(config, tuple(weights))


def _mla(m: dict[str, Any], at: str) -> Iterator[Weight]:
    mla, hidden, heads, at = m["mla"], m["hidden_size"], m["num_attention_heads"], at + "self_attn."
    nope, rope, value = mla["qk_nope_head_dim"], mla["qk_rope_head_dim"], mla["v_head_dim"]
    yield Weight(f"{at}q_a_proj.weight", (mla["q_lora_rank"], hidden))
    yield Weight(f"{at}q_a_layernorm.weight", (mla["q_lora_rank"],))
    yield Weight(f"{at}q_b_proj.weight", (heads * (nope + rope), mla["q_lora_rank"]))
    yield Weight(f"{at}kv_a_proj_with_mqa.weight", (mla["kv_lora_rank"] + rope, hidden))
    yield Weight(f"{at}kv_a_layernorm.weight", (mla["kv_lora_rank"],))
    yield Weight(f"{at}kv_b_proj.weight", (heads * (nope + value), mla["kv_lora_rank"]))
    yield Weight(f"{at}o_proj.weight", (hidden, heads * value))
    if index := m.get("sparse_attention_indexer"):
        yield Weight(f"{at}indexer.wq_b.weight", (index["heads"] * index["head_dim"], mla["q_lora_rank"]))
        yield Weight(f"{at}indexer.wk.weight", (index["head_dim"], hidden))
        yield Weight(f"{at}indexer.k_norm.weight", (index["head_dim"],))
        yield Weight(f"{at}indexer.k_norm.bias", (index["head_dim"],))
        yield Weight(f"{at}indexer.weights_proj.weight", (index["heads"], hidden))


def _in_fp8(config: dict[str, Any], weights: list[Weight]) -> Checkpoint:
    """Linear layers in FP8 with a scale for each block of 128 x 128; the rest as it was."""
    found: list[Weight] = []
    for weight in weights:
        linear = len(weight.shape) == 2 and "_proj" in weight.name and "eh_proj" not in weight.name
        found.append(weight._replace(dtype="F8_E4M3") if linear else weight)
        if linear:
            blocks = tuple(-(-size // 128) for size in weight.shape)
            found.append(Weight(f"{weight.name}_scale_inv", blocks, "F32", 0))
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    return Checkpoint({**config, "quantization_config": quantization}, tuple(found))


def minimax(m: dict[str, Any]) -> Checkpoint:
    """Norms of whole queries and keys, not of heads."""
    weights = [*ends(m)]
    heads, kv = m["num_attention_heads"] * m["head_dim"], m["num_kv_heads"] * m["head_dim"]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*attention(m, at, qk_norm=False), *norms(m, at)]
        weights += [Weight(f"{at}self_attn.q_norm.weight", (heads,)), Weight(f"{at}self_attn.k_norm.weight", (kv,))]
        weights += [Weight(f"{at}block_sparse_moe.e_score_correction_bias", (m["moe"]["experts"],), "F32")]
        weights += _moe(m, f"{at}block_sparse_moe.")
    moe = m["moe"]
    config = config_of(
        m,
        "minimax_m2",
        intermediate_size=moe["moe_intermediate_size"],
        num_local_experts=moe["experts"],
        num_experts_per_tok=moe["experts_per_token"],
    )
    return _in_fp8(config, weights)


def gpt_oss(m: dict[str, Any]) -> Checkpoint:
    """Experts in MXFP4: two values in a byte, a scale for each 32."""
    moe, hidden, weights = m["moe"], m["hidden_size"], [*ends(m)]
    experts, width = moe["experts"], moe["moe_intermediate_size"]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*attention(m, at, qk_norm=False, bias=True, out_bias=True), *norms(m, at)]
        weights += [Weight(f"{at}self_attn.sinks", (m["num_attention_heads"],))]
        weights += [Weight(f"{at}mlp.router.weight", (experts, hidden)), Weight(f"{at}mlp.router.bias", (experts,))]
        for name, rows, columns in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
            start = f"{at}mlp.experts.{name}"
            weights += [
                Weight(f"{start}_blocks", (experts, rows, columns // 32, 16), "U8", experts * rows * columns),
                Weight(f"{start}_scales", (experts, rows, columns // 32), "U8", 0),
                Weight(f"{start}_bias", (experts, rows)),
            ]
    kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(m["num_layers"])]
    config = config_of(
        m,
        "gpt_oss",
        intermediate_size=width,
        num_local_experts=experts,
        num_experts_per_tok=moe["experts_per_token"],
        layer_types=kinds,
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        rope_scaling={"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    )
    config["sliding_window"] = m["sliding_window"]["window"]
    del config["torch_dtype"]
    return Checkpoint(config, tuple(weights))


# -- states -------------------------------------------------------------------------------------------------------


def qwen3_next(m: dict[str, Any], prefix: str = "model.") -> list[Weight]:
    weights = [*ends(m, prefix)]
    for layer in range(m["num_layers"]):
        at = f"{prefix}layers.{layer}."
        full = (layer + 1) % m["full_attention_every"] == 0
        weights += attention(m, at, qk_norm=True, gate=True) if full else _gated_delta(m, at + "linear_attn.")
        weights += [*norms(m, at), *_moe(m, at + "mlp.", shared="shared_expert")]
    weights += [Weight("mtp.fc.weight", (m["hidden_size"], 2 * m["hidden_size"]))]
    weights += attention(m, "mtp.layers.0.", qk_norm=True, gate=True)
    weights += _moe(m, "mtp.layers.0.mlp.", shared="shared_expert")
    return weights


def _gated_delta(m: dict[str, Any], at: str) -> Iterator[Weight]:
    net, hidden = m["gated_delta_net"], m["hidden_size"]
    keys, values = net["k_heads"] * net["k_dim"], net["v_heads"] * net["v_dim"]
    yield Weight(f"{at}in_proj_qkvz.weight", (2 * keys + 2 * values, hidden))
    yield Weight(f"{at}in_proj_ba.weight", (2 * net["v_heads"], hidden))
    yield Weight(f"{at}conv1d.weight", (2 * keys + values, 1, net["conv"]))
    yield Weight(f"{at}A_log", (net["v_heads"],))
    yield Weight(f"{at}dt_bias", (net["v_heads"],))
    yield Weight(f"{at}norm.weight", (net["v_dim"],))
    yield Weight(f"{at}out_proj.weight", (hidden, values))


def qwen3_next_keys(m: dict[str, Any]) -> dict[str, Any]:
    net, moe = m["gated_delta_net"], m["moe"]
    return {
        "num_experts": moe["experts"],
        "num_experts_per_tok": moe["experts_per_token"],
        "moe_intermediate_size": moe["moe_intermediate_size"],
        "shared_expert_intermediate_size": moe["shared_expert_intermediate_size"],
        "full_attention_interval": m["full_attention_every"],
        "linear_num_key_heads": net["k_heads"],
        "linear_num_value_heads": net["v_heads"],
        "linear_key_head_dim": net["k_dim"],
        "linear_value_head_dim": net["v_dim"],
        "linear_conv_kernel_dim": net["conv"],
        "intermediate_size": 5120,
    }


def qwen3_next_text(m: dict[str, Any]) -> Checkpoint:
    return Checkpoint(config_of(m, "qwen3_next", **qwen3_next_keys(m)), tuple(qwen3_next(m)))
