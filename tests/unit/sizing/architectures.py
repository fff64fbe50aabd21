"""Tensors of checkpoints as their makers publish them, and the ``config.json`` that goes with them."""

from collections.abc import Callable, Iterator
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


def build(model: dict[str, Any]) -> Checkpoint:
    """``model``: an entry of ``tests/data/model_configs.json``."""
    return _BUILDERS[model["architecture"]](model)


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


# -- decoders -----------------------------------------------------------------------------------------------------


def _dense(m: dict[str, Any], model_type: str, *, qk_norm: bool = False, bias: bool = False) -> Checkpoint:
    weights = [*_ends(m)]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*_attention(m, at, qk_norm=qk_norm, bias=bias), *_norms(m, at), *_mlp(m, at + "mlp.", _ffn(m))]
    return Checkpoint(_config(m, model_type, intermediate_size=_ffn(m)), tuple(weights))


def _ends(m: dict[str, Any], prefix: str = "model.", head: str = "lm_head.weight") -> Iterator[Weight]:
    hidden = m["hidden_size"]
    yield Weight(f"{prefix}embed_tokens.weight", (m["vocab_size"], hidden))
    yield Weight(f"{prefix}norm.weight", (hidden,))
    if not m["tie_word_embeddings"]:
        yield Weight(head, (m["vocab_size"], hidden))


def _attention(
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


def _norms(m: dict[str, Any], at: str) -> Iterator[Weight]:
    yield Weight(f"{at}input_layernorm.weight", (m["hidden_size"],))
    yield Weight(f"{at}post_attention_layernorm.weight", (m["hidden_size"],))


def _mlp(m: dict[str, Any], at: str, width: int) -> Iterator[Weight]:
    hidden = m["hidden_size"]
    yield Weight(f"{at}gate_proj.weight", (width, hidden))
    yield Weight(f"{at}up_proj.weight", (width, hidden))
    yield Weight(f"{at}down_proj.weight", (hidden, width))


def _ffn(m: dict[str, Any]) -> int:
    return m["ffn_intermediate_size"] or m["moe"]["moe_intermediate_size"]


def _config(m: dict[str, Any], model_type: str, **more: Any) -> dict[str, Any]:
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
        yield from _mlp(m, f"{at}experts.{expert}.", moe["moe_intermediate_size"])
    if moe["shared_expert_intermediate_size"]:
        yield from _mlp(m, f"{at}{shared}.", moe["shared_expert_intermediate_size"])
    if shared == "shared_expert":
        yield Weight(f"{at}shared_expert_gate.weight", (1, hidden))


def _qwen3_moe(m: dict[str, Any]) -> Checkpoint:
    weights = [*_ends(m)]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*_attention(m, at, qk_norm=True), *_norms(m, at), *_moe(m, at + "mlp.")]
    moe = m["moe"]
    config = _config(
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


def _glm4_moe(m: dict[str, Any]) -> Checkpoint:
    """With its MTP layer, which repeats embedding and head."""
    qk_norm = m["num_layers"] == 92
    weights = [*_ends(m)]
    first = m["moe"]["first_dense_layers"]
    for layer in range(m["num_layers"] + 1):
        at = f"model.layers.{layer}."
        weights += [*_attention(m, at, qk_norm=qk_norm, bias=True), *_norms(m, at)]
        if layer < first:
            weights += _mlp(m, at + "mlp.", m["ffn_intermediate_size"])
        else:
            weights += _moe(m, at + "mlp.", correction=True, shared="shared_experts")
    weights += _mtp_ends(m)
    return Checkpoint(_config(m, "glm4_moe", **_deepseek_keys(m), attention_bias=True), tuple(weights))


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


def _deepseek(m: dict[str, Any], model_type: str) -> Checkpoint:
    weights = [*_ends(m)]
    mtp = m.get("mtp_layers", 0)
    for layer in range(m["num_layers"] + mtp):
        at = f"model.layers.{layer}."
        weights += [*_mla(m, at), *_norms(m, at)]
        if layer < m["moe"]["first_dense_layers"]:
            weights += _mlp(m, at + "mlp.", m["ffn_intermediate_size"])
        else:
            weights += _moe(m, at + "mlp.", correction=True, shared="shared_experts")
    weights += _mtp_ends(m) if mtp else []
    index = m.get("sparse_attention_indexer")
    config = _config(m, model_type, **_deepseek_keys(m), **m["mla"])
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


def _minimax(m: dict[str, Any]) -> Checkpoint:
    """Norms of whole queries and keys, not of heads."""
    weights = [*_ends(m)]
    heads, kv = m["num_attention_heads"] * m["head_dim"], m["num_kv_heads"] * m["head_dim"]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*_attention(m, at, qk_norm=False), *_norms(m, at)]
        weights += [Weight(f"{at}self_attn.q_norm.weight", (heads,)), Weight(f"{at}self_attn.k_norm.weight", (kv,))]
        weights += [Weight(f"{at}block_sparse_moe.e_score_correction_bias", (m["moe"]["experts"],), "F32")]
        weights += _moe(m, f"{at}block_sparse_moe.")
    moe = m["moe"]
    config = _config(
        m,
        "minimax_m2",
        intermediate_size=moe["moe_intermediate_size"],
        num_local_experts=moe["experts"],
        num_experts_per_tok=moe["experts_per_token"],
    )
    return _in_fp8(config, weights)


def _gpt_oss(m: dict[str, Any]) -> Checkpoint:
    """Experts in MXFP4: two values in a byte, a scale for each 32."""
    moe, hidden, weights = m["moe"], m["hidden_size"], [*_ends(m)]
    experts, width = moe["experts"], moe["moe_intermediate_size"]
    for layer in range(m["num_layers"]):
        at = f"model.layers.{layer}."
        weights += [*_attention(m, at, qk_norm=False, bias=True, out_bias=True), *_norms(m, at)]
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
    config = _config(
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


def _qwen3_next(m: dict[str, Any], prefix: str = "model.") -> list[Weight]:
    weights = [*_ends(m, prefix)]
    for layer in range(m["num_layers"]):
        at = f"{prefix}layers.{layer}."
        full = (layer + 1) % m["full_attention_every"] == 0
        weights += _attention(m, at, qk_norm=True, gate=True) if full else _gated_delta(m, at + "linear_attn.")
        weights += [*_norms(m, at), *_moe(m, at + "mlp.", shared="shared_expert")]
    weights += [Weight("mtp.fc.weight", (m["hidden_size"], 2 * m["hidden_size"]))]
    weights += _attention(m, "mtp.layers.0.", qk_norm=True, gate=True)
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


def _qwen3_next_keys(m: dict[str, Any]) -> dict[str, Any]:
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


def _qwen3_next_text(m: dict[str, Any]) -> Checkpoint:
    return Checkpoint(_config(m, "qwen3_next", **_qwen3_next_keys(m)), tuple(_qwen3_next(m)))


def _qwen3_5(m: dict[str, Any]) -> Checkpoint:
    """Nested, as all that can see; this tower is that of Qwen3-VL."""
    vision = {"hidden": 1152, "layers": 27, "ffn": 4304, "patch": 16, "spatial_merge": 2}
    prefix = "model.language_model."
    config = _nested(m, "qwen3_5_moe", {**_qwen3_next_keys(m)}, _qwen3_vision_config(vision, m))
    return Checkpoint(config, (*_qwen3_next(m, prefix), *_qwen3_vision(vision, m["hidden_size"])), prefix)


# -- those that can see -------------------------------------------------------------------------------------------


def _nested(m: dict[str, Any], model_type: str, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    inner = _config(m, f"{model_type}_text", **text)
    return {
        "architectures": inner.pop("architectures"),
        "model_type": model_type,
        "tie_word_embeddings": m["tie_word_embeddings"],
        "text_config": inner,
        "vision_config": vision,
    }


def _qwen2_5_vl(m: dict[str, Any]) -> Checkpoint:
    """Not nested: older than that."""
    text = _dense(m, "qwen2_5_vl", bias=True)
    vision, hidden = m["vision_encoder"], m["hidden_size"]
    wide, ffn = vision["hidden"], vision["ffn"]
    weights = [Weight("visual.patch_embed.proj.weight", (wide, 3, 2, vision["patch"], vision["patch"]))]
    for layer in range(vision["layers"]):
        at = f"visual.blocks.{layer}."
        weights += [Weight(f"{at}norm1.weight", (wide,)), Weight(f"{at}norm2.weight", (wide,))]
        weights += [*_linear(f"{at}attn.qkv", 3 * wide, wide), *_linear(f"{at}attn.proj", wide, wide)]
        weights += [*_linear(f"{at}mlp.gate_proj", ffn, wide), *_linear(f"{at}mlp.up_proj", ffn, wide)]
        weights += _linear(f"{at}mlp.down_proj", wide, ffn)
    merged = wide * vision["spatial_merge"] ** 2
    weights += [Weight("visual.merger.ln_q.weight", (wide,))]
    weights += [*_linear("visual.merger.mlp.0", merged, merged), *_linear("visual.merger.mlp.2", hidden, merged)]
    config = text.config | {
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_size": wide,
            "depth": vision["layers"],
            "patch_size": vision["patch"],
            "spatial_merge_size": vision["spatial_merge"],
        },
        "use_sliding_window": False,
        "sliding_window": 32768,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    return Checkpoint(config, (*text.weights, *weights))


def _qwen3_vl(m: dict[str, Any]) -> Checkpoint:
    text = _dense(m, "qwen3_vl_text", qk_norm=True)
    prefix = "model.language_model."
    inside = [w._replace(name=w.name.replace("model.", prefix, 1)) for w in text.weights]
    config = _nested(m, "qwen3_vl", {"intermediate_size": _ffn(m)}, _qwen3_vision_config(m["vision_encoder"], m))
    return Checkpoint(config, (*inside, *_qwen3_vision(m["vision_encoder"], m["hidden_size"])), prefix)


def _qwen3_vision_config(vision: dict[str, Any], m: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": vision["hidden"],
        "depth": vision["layers"],
        "intermediate_size": vision["ffn"],
        "patch_size": vision["patch"],
        "spatial_merge_size": vision["spatial_merge"],
        "out_hidden_size": m["hidden_size"],
    }


def _qwen3_vision(vision: dict[str, Any], hidden: int) -> Iterator[Weight]:
    wide, ffn, at = vision["hidden"], vision["ffn"], "model.visual."
    merged = wide * vision["spatial_merge"] ** 2
    yield Weight(f"{at}patch_embed.proj.weight", (wide, 3, 2, vision["patch"], vision["patch"]))
    yield Weight(f"{at}pos_embed.weight", (2304, wide))
    for layer in range(vision["layers"]):
        block = f"{at}blocks.{layer}."
        yield from (*_norm(f"{block}norm1", wide), *_norm(f"{block}norm2", wide))
        yield from (*_linear(f"{block}attn.qkv", 3 * wide, wide), *_linear(f"{block}attn.proj", wide, wide))
        yield from (*_linear(f"{block}mlp.linear_fc1", ffn, wide), *_linear(f"{block}mlp.linear_fc2", wide, ffn))
    yield from _linear(f"{at}merger.linear_fc1", merged, merged)
    yield from _linear(f"{at}merger.linear_fc2", hidden, merged)


def _gemma3(m: dict[str, Any]) -> Checkpoint:
    prefix, hidden, weights = "language_model.model.", m["hidden_size"], []
    weights += _ends(m, prefix)
    for layer in range(m["num_layers"]):
        at = f"{prefix}layers.{layer}."
        weights += [*_attention(m, at, qk_norm=True), *_norms(m, at), *_mlp(m, at + "mlp.", _ffn(m))]
        weights += [Weight(f"{at}{n}_feedforward_layernorm.weight", (hidden,)) for n in ("pre", "post")]
    vision = m["vision_encoder"]
    weights += _siglip(vision)
    weights += [
        Weight("multi_modal_projector.mm_input_projection_weight", (vision["hidden"], hidden)),
        Weight("multi_modal_projector.mm_soft_emb_norm.weight", (vision["hidden"],)),
    ]
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": vision["hidden"],
        "num_hidden_layers": vision["layers"],
        "patch_size": vision["patch"],
        "image_size": vision["image"],
    }
    config = _nested(m, "gemma3", {"intermediate_size": _ffn(m)}, tower)
    config["text_config"] |= {
        "sliding_window": m["sliding_window"]["window"],
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    for left_out in ("vocab_size", "max_position_embeddings", "tie_word_embeddings"):
        del config["text_config"][left_out]  # as published: the defaults of their class
    del config["tie_word_embeddings"]
    return Checkpoint(config, tuple(weights), prefix)


def _siglip(vision: dict[str, Any]) -> Iterator[Weight]:
    wide, ffn, at = vision["hidden"], vision["ffn"], "vision_tower.vision_model."
    positions = (vision["image"] // vision["patch"]) ** 2
    yield Weight(f"{at}embeddings.patch_embedding.weight", (wide, 3, vision["patch"], vision["patch"]))
    yield Weight(f"{at}embeddings.patch_embedding.bias", (wide,))
    yield Weight(f"{at}embeddings.position_embedding.weight", (positions, wide))
    for layer in range(vision["layers"]):
        block = f"{at}encoder.layers.{layer}."
        yield from (*_norm(f"{block}layer_norm1", wide), *_norm(f"{block}layer_norm2", wide))
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{block}self_attn.{name}", wide, wide)
        yield from (*_linear(f"{block}mlp.fc1", ffn, wide), *_linear(f"{block}mlp.fc2", wide, ffn))
    yield from _norm(f"{at}post_layernorm", wide)


def _linear(name: str, rows: int, columns: int, *, bias: bool = True) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (rows, columns))
    if bias:
        yield Weight(f"{name}.bias", (rows,))


def _norm(name: str, size: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (size,))
    yield Weight(f"{name}.bias", (size,))


# -- encoders -----------------------------------------------------------------------------------------------------


def _xlm_roberta(m: dict[str, Any]) -> Checkpoint:
    hidden, ffn, ranks = m["hidden_size"], m["ffn_intermediate_size"], "Sequence" in m["architecture"]
    start = "roberta." if ranks else ""
    weights = [
        Weight(f"{start}embeddings.word_embeddings.weight", (m["vocab_size"], hidden)),
        Weight(f"{start}embeddings.position_embeddings.weight", (m["max_position_embeddings"], hidden)),
        Weight(f"{start}embeddings.token_type_embeddings.weight", (1, hidden)),
        *_norm(f"{start}embeddings.LayerNorm", hidden),
    ]
    for layer in range(m["num_layers"]):
        at = f"{start}encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            weights += _linear(f"{at}attention.self.{name}", hidden, hidden)
        weights += [
            *_linear(f"{at}attention.output.dense", hidden, hidden),
            *_norm(f"{at}attention.output.LayerNorm", hidden),
        ]
        weights += [*_linear(f"{at}intermediate.dense", ffn, hidden), *_linear(f"{at}output.dense", hidden, ffn)]
        weights += _norm(f"{at}output.LayerNorm", hidden)
    weights += _linear("classifier.dense" if ranks else "pooler.dense", hidden, hidden)
    if ranks:
        weights += _linear("classifier.out_proj", 1, hidden)
    config = {
        "architectures": [m["architecture"]],
        "model_type": "xlm-roberta",
        "hidden_size": hidden,
        "num_hidden_layers": m["num_layers"],
        "num_attention_heads": m["num_attention_heads"],
        "intermediate_size": ffn,
        "vocab_size": m["vocab_size"],
        "max_position_embeddings": m["max_position_embeddings"],
        "pad_token_id": 1,
        "torch_dtype": "float32",
    }
    return Checkpoint(config, tuple(weights))


def _whisper(m: dict[str, Any]) -> Checkpoint:
    wide, ffn = m["d_model"], m["ffn"]
    weights = [
        Weight("model.encoder.conv1.weight", (wide, m["mel_bins"], 3)),
        Weight("model.encoder.conv1.bias", (wide,)),
        Weight("model.encoder.conv2.weight", (wide, wide, 3)),
        Weight("model.encoder.conv2.bias", (wide,)),
        Weight("model.encoder.embed_positions.weight", (m["max_source_positions"], wide)),
        Weight("model.decoder.embed_tokens.weight", (m["vocab_size"], wide)),
        Weight("model.decoder.embed_positions.weight", (m["max_target_positions"], wide)),
    ]
    for side, layers in (("encoder", m["encoder_layers"]), ("decoder", m["decoder_layers"])):
        weights += _norm(f"model.{side}.layer_norm", wide)
        attentions = ("self_attn",) if side == "encoder" else ("self_attn", "encoder_attn")
        for layer in range(layers):
            at = f"model.{side}.layers.{layer}."
            for attention in attentions:
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    weights += _linear(f"{at}{attention}.{name}", wide, wide, bias=name != "k_proj")
                weights += _norm(f"{at}{attention}_layer_norm", wide)
            weights += [*_linear(f"{at}fc1", ffn, wide), *_linear(f"{at}fc2", wide, ffn)]
            weights += _norm(f"{at}final_layer_norm", wide)
    config = {
        "architectures": [m["architecture"]],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "d_model": wide,
        "num_hidden_layers": m["encoder_layers"],
        "encoder_layers": m["encoder_layers"],
        "decoder_layers": m["decoder_layers"],
        "encoder_attention_heads": m["attention_heads"],
        "decoder_attention_heads": m["attention_heads"],
        "encoder_ffn_dim": ffn,
        "decoder_ffn_dim": ffn,
        "vocab_size": m["vocab_size"],
        "num_mel_bins": m["mel_bins"],
        "max_source_positions": m["max_source_positions"],
        "max_target_positions": m["max_target_positions"],
        "torch_dtype": "float16",
    }
    return Checkpoint(config, tuple(weights))


_BUILDERS: dict[str, Callable[[dict[str, Any]], Checkpoint]] = {
    "Qwen3ForCausalLM": lambda m: _dense(m, "qwen3", qk_norm=True),
    "LlamaForCausalLM": lambda m: _dense(m, "llama"),
    "MistralForCausalLM": lambda m: _dense(m, "mistral"),
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "Glm4MoeForCausalLM": _glm4_moe,
    "DeepseekV3ForCausalLM": lambda m: _deepseek(m, "deepseek_v3"),
    "DeepseekV32ForCausalLM": lambda m: _deepseek(m, "deepseek_v32"),
    "GlmMoeDsaForCausalLM": lambda m: _deepseek(m, "glm_moe_dsa"),
    "MiniMaxM2ForCausalLM": _minimax,
    "GptOssForCausalLM": _gpt_oss,
    "Qwen3NextForCausalLM": _qwen3_next_text,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_5,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Gemma3ForConditionalGeneration": _gemma3,
    "XLMRobertaModel": _xlm_roberta,
    "XLMRobertaForSequenceClassification": _xlm_roberta,
    "WhisperForConditionalGeneration": _whisper,
}
