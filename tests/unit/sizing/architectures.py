"""Checkpoints as their makers publish them: those that see, encoders, and all by their names."""

from collections.abc import Callable, Iterator
from typing import Any

from tests.unit.sizing import decoders
from tests.unit.sizing.decoders import Checkpoint, Weight


def build(model: dict[str, Any]) -> Checkpoint:
    """``model``: an entry of ``tests/data/model_configs.json``."""
    return _BUILDERS[model["architecture"]](model)


# -- those that can see -------------------------------------------------------------------------------------------


def _nested(m: dict[str, Any], model_type: str, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    inner = decoders.config_of(m, f"{model_type}_text", **text)
    return {
        "architectures": inner.pop("architectures"),
        "model_type": model_type,
        "tie_word_embeddings": m["tie_word_embeddings"],
        "text_config": inner,
        "vision_config": vision,
    }


def _qwen2_5_vl(m: dict[str, Any]) -> Checkpoint:
    """Not nested: older than that."""
    text = decoders.dense(m, "qwen2_5_vl", bias=True)
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
    text = decoders.dense(m, "qwen3_vl_text", qk_norm=True)
    prefix = "model.language_model."
    inside = [w._replace(name=w.name.replace("model.", prefix, 1)) for w in text.weights]
    config = _nested(
        m, "qwen3_vl", {"intermediate_size": decoders.ffn(m)}, _qwen3_vision_config(m["vision_encoder"], m)
    )
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
    weights += decoders.ends(m, prefix)
    for layer in range(m["num_layers"]):
        at = f"{prefix}layers.{layer}."
        weights += [
            *decoders.attention(m, at, qk_norm=True),
            *decoders.norms(m, at),
            *decoders.mlp(m, at + "mlp.", decoders.ffn(m)),
        ]
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
    config = _nested(m, "gemma3", {"intermediate_size": decoders.ffn(m)}, tower)
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


def _qwen3_5(m: dict[str, Any]) -> Checkpoint:
    """Nested, as all that can see; this tower is that of Qwen3-VL."""
    vision = {"hidden": 1152, "layers": 27, "ffn": 4304, "patch": 16, "spatial_merge": 2}
    prefix = "model.language_model."
    config = _nested(m, "qwen3_5_moe", {**decoders.qwen3_next_keys(m)}, _qwen3_vision_config(vision, m))
    return Checkpoint(config, (*decoders.qwen3_next(m, prefix), *_qwen3_vision(vision, m["hidden_size"])), prefix)


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
    "Qwen3ForCausalLM": lambda m: decoders.dense(m, "qwen3", qk_norm=True),
    "LlamaForCausalLM": lambda m: decoders.dense(m, "llama"),
    "MistralForCausalLM": lambda m: decoders.dense(m, "mistral"),
    "Qwen3MoeForCausalLM": decoders.qwen3_moe,
    "Glm4MoeForCausalLM": decoders.glm4_moe,
    "DeepseekV3ForCausalLM": lambda m: decoders.deepseek(m, "deepseek_v3"),
    "DeepseekV32ForCausalLM": lambda m: decoders.deepseek(m, "deepseek_v32"),
    "GlmMoeDsaForCausalLM": lambda m: decoders.deepseek(m, "glm_moe_dsa"),
    "MiniMaxM2ForCausalLM": decoders.minimax,
    "GptOssForCausalLM": decoders.gpt_oss,
    "Qwen3NextForCausalLM": decoders.qwen3_next_text,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_5,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Gemma3ForConditionalGeneration": _gemma3,
    "XLMRobertaModel": _xlm_roberta,
    "XLMRobertaForSequenceClassification": _xlm_roberta,
    "WhisperForConditionalGeneration": _whisper,
}
