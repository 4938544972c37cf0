"""Classes of transformers for texts that are tried. Torch-free."""

from __future__ import annotations

from prunecli.studies.collections.transformers_class import (
    EXPERTS,
    GROUPED,
    SEQ2SEQ,
    T5,
    TEXT,
    TRANSLATED,
    VOCABULARY,
    TransformersClass,
)

TEXTS: dict[str, TransformersClass] = {
    # Encoders of texts
    "albert": TransformersClass("AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}),
    "bert": TransformersClass("BertForSequenceClassification", TEXT),
    "bert-tokens": TransformersClass("BertForTokenClassification", TEXT),
    "bert-masked": TransformersClass("BertForMaskedLM", TEXT),
    "convbert": TransformersClass("ConvBertModel", {**TEXT, "embedding_size": 48}),
    "deberta": TransformersClass(
        "DebertaModel",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    ),
    "deberta-v2": TransformersClass(
        "DebertaV2Model",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    ),
    "distilbert": TransformersClass(
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80},
    ),
    "electra": TransformersClass("ElectraForPreTraining", {**TEXT, "embedding_size": 16}),
    "esm": TransformersClass("EsmForTokenClassification", {**TEXT, "position_embedding_type": "rotary"}),
    "fnet": TransformersClass("FNetModel", TEXT, extra={"attention_mask": None}),
    "funnel": TransformersClass(
        "FunnelModel",
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "n_head": 4,
            "d_head": 12,
            "d_inner": 80,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
        },
        length=12,
    ),
    "modernbert": TransformersClass(
        "ModernBertModel", {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    ),
    "mpnet": TransformersClass("MPNetForSequenceClassification", TEXT),
    "roberta": TransformersClass("RobertaForSequenceClassification", TEXT),
    "roformer": TransformersClass("RoFormerModel", {**TEXT, "embedding_size": 48}),
    "squeezebert": TransformersClass("SqueezeBertModel", {**TEXT, "embedding_size": 48}),
    "xlnet": TransformersClass(
        "XLNetModel", {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 80}
    ),
    # Decoders of texts
    "bloom": TransformersClass(
        "BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
    ),
    "falcon": TransformersClass("FalconForCausalLM", {**TEXT, "use_cache": False, "new_decoder_architecture": True}),
    "deepseek-v3": TransformersClass(
        "DeepseekV3ForCausalLM",
        {
            **{key: value for key, value in GROUPED.items() if key not in ("num_key_value_heads", "head_dim")},
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
        },
    ),
    "gemma": TransformersClass("GemmaForCausalLM", GROUPED),
    "gemma2": TransformersClass("Gemma2ForCausalLM", GROUPED),
    "gemma3": TransformersClass(
        "Gemma3ForCausalLM", {**GROUPED, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "gpt2": TransformersClass(
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False},
    ),
    "gpt-neo": TransformersClass(
        "GPTNeoForCausalLM",
        {**TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "use_cache": False},
    ),
    "gpt-neox": TransformersClass("GPTNeoXForCausalLM", {**TEXT, "use_cache": False}),
    "llama": TransformersClass("LlamaForCausalLM", GROUPED),
    "mamba": TransformersClass(
        "MambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8, "use_cache": False},
    ),
    "mistral": TransformersClass("MistralForCausalLM", GROUPED),
    "mixtral": TransformersClass("MixtralForCausalLM", {**GROUPED, **EXPERTS}),
    "olmoe": TransformersClass("OlmoeForCausalLM", {**GROUPED, **EXPERTS}),
    "opt": TransformersClass("OPTForCausalLM", {**TEXT, "ffn_dim": 80, "word_embed_proj_dim": 48, "use_cache": False}),
    "phi": TransformersClass("PhiForCausalLM", {**TEXT, "use_cache": False}),
    "phi3": TransformersClass("Phi3ForCausalLM", {key: value for key, value in GROUPED.items() if key != "head_dim"}),
    "qwen2": TransformersClass("Qwen2ForCausalLM", GROUPED),
    "qwen3": TransformersClass("Qwen3ForCausalLM", GROUPED),
    "qwen3-moe": TransformersClass("Qwen3MoeForCausalLM", {**GROUPED, **EXPERTS}),
    # Encoders with decoders
    "bart": TransformersClass("BartForConditionalGeneration", TRANSLATED, SEQ2SEQ),
    "m2m100": TransformersClass("M2M100ForConditionalGeneration", TRANSLATED, SEQ2SEQ),
    "marian": TransformersClass("MarianMTModel", TRANSLATED, SEQ2SEQ),
    "pegasus": TransformersClass("PegasusForConditionalGeneration", TRANSLATED, SEQ2SEQ),
    "t5": TransformersClass("T5ForConditionalGeneration", T5, SEQ2SEQ),
    "t5-encoder": TransformersClass("T5EncoderModel", T5),
}
