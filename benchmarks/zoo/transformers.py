"""Small configurations of the transformers library's best-known architectures, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo import operators
from benchmarks.zoo.entry import Entry, Inputs

VOCABULARY = 128
TOKENS = 12
SIDE = 32


def entries() -> Iterator[Entry]:
    """One entry per configuration."""
    operators.provide()
    for name, (kind, head, config, inputs) in ZOO.items():
        note = "use_cache=False" if config.get("use_cache") is False else ""
        yield Entry("transformers", kind, name, _make(head, config), inputs, note)


def _make(head: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        model_class = getattr(transformers, head)
        return model_class(model_class.config_class(**_nested(options)))

    return make


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    """The options with `{"config": "ResNetConfig", ...}` turned into that configuration."""
    import transformers

    result: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict) and "config" in value:
            rest = {key: item for key, item in value.items() if key != "config"}
            result[name] = getattr(transformers, value["config"])(**rest)
        else:
            result[name] = value
    return result


def _ids(count: int = TOKENS) -> Tensor:
    return torch.randint(5, VOCABULARY, (2, count))


def _text() -> Inputs:
    return Inputs((), {"input_ids": _ids(), "attention_mask": torch.ones(2, TOKENS, dtype=torch.long)})


def _causal() -> Inputs:
    return Inputs((), {"input_ids": _ids()})


def _pair() -> Inputs:
    return Inputs((), {"input_ids": _ids(), "decoder_input_ids": _ids(7)})


def _image(side: int = SIDE) -> Callable[[], Inputs]:
    return lambda: Inputs((), {"pixel_values": torch.randn(2, 3, side, side)})


def _image_and_text() -> Inputs:
    return Inputs((), {"input_ids": _ids(), "pixel_values": torch.randn(2, 3, SIDE, SIDE)})


def _spectrogram() -> Inputs:
    return Inputs((), {"input_features": torch.randn(2, 16, 48), "decoder_input_ids": _ids(7)})


def _waveform() -> Inputs:
    return Inputs((), {"input_values": torch.randn(2, 2000)})


TEXT = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT_WIDE = {**TEXT, "intermediate_size": 96, "max_position_embeddings": 64}
DECODER = {**TEXT_WIDE, "use_cache": False}
GROUPED = {**DECODER, "num_key_value_heads": 2, "pad_token_id": 0}
VISION = {
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
WINDOWS = {
    "image_size": SIDE,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 2, 1]}
TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP_TOWERS = {
    "text_config": {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "eos_token_id": 2},
    "vision_config": {**TOWER, "image_size": SIDE, "patch_size": 8},
    "projection_dim": 40,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "use_cache": False,
}
WHISPER = {
    **{key: value for key, value in BART.items() if key != "max_position_embeddings"},
    "num_mel_bins": 16,
    "max_source_positions": 24,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "use_cache": False,
}
WAV2VEC2 = {
    **TOWER,
    "vocab_size": 32,
    "conv_dim": (24, 24, 24),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
DETR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {
        "config": "ResNetConfig",
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 48],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage4"],
    },
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "num_queries": 10,
}
MOBILEBERT = {**TEXT, "intermediate_size": 96, "embedding_size": 32, "intra_bottleneck_size": 32}
DEBERTA = {
    **TEXT_WIDE,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
OPT = {**DECODER, "ffn_dim": 96, "word_embed_proj_dim": 48}
DISTIL = {
    "vocab_size": VOCABULARY,
    "dim": 48,
    "hidden_dim": 96,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
XLNET = {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 96, "use_mems_eval": False}
MOBILEVIT = {
    "image_size": 64,
    "hidden_sizes": [24, 32, 40],
    "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 64],
    "num_attention_heads": 4,
}
SEGFORMER = {
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 4, 4],
    "decoder_hidden_size": 32,
}

Row = tuple[str, str, dict[str, Any], Callable[[], Inputs]]
ZOO: dict[str, Row] = {
    "vit": ("vision", "ViTForImageClassification", VISION, _image()),
    "deit": ("vision", "DeiTForImageClassificationWithTeacher", VISION, _image()),
    "swin": ("vision", "SwinForImageClassification", WINDOWS, _image()),
    "swinv2": ("vision", "Swinv2ForImageClassification", WINDOWS, _image()),
    "beit": ("vision", "BeitForImageClassification", {**VISION, "use_relative_position_bias": True}, _image()),
    "dinov2": ("vision", "Dinov2ForImageClassification", VISION, _image()),
    "convnext": ("vision", "ConvNextForImageClassification", STAGES, _image(64)),
    "convnextv2": ("vision", "ConvNextV2ForImageClassification", STAGES, _image(64)),
    "resnet": ("vision", "ResNetForImageClassification", {**STAGES, "embedding_size": 16}, _image(64)),
    "segformer": ("vision", "SegformerForSemanticSegmentation", SEGFORMER, _image(64)),
    "detr": ("vision", "DetrForObjectDetection", DETR, _image(64)),
    "mobilevit": ("vision", "MobileViTForImageClassification", MOBILEVIT, _image(64)),
    "clip": ("multimodal", "CLIPModel", CLIP_TOWERS, _image_and_text),
    "siglip": ("multimodal", "SiglipModel", {key: CLIP_TOWERS[key] for key in list(CLIP_TOWERS)[:2]}, _image_and_text),
    "bert": ("encoder", "BertForSequenceClassification", TEXT_WIDE, _text),
    "roberta": ("encoder", "RobertaForMaskedLM", TEXT_WIDE, _text),
    "albert": ("encoder", "AlbertForMaskedLM", {**TEXT_WIDE, "embedding_size": 24}, _text),
    "distilbert": ("encoder", "DistilBertForSequenceClassification", DISTIL, _text),
    "electra": ("encoder", "ElectraForPreTraining", {**TEXT_WIDE, "embedding_size": 24}, _text),
    "mobilebert": ("encoder", "MobileBertForSequenceClassification", MOBILEBERT, _text),
    "deberta_v2": ("encoder", "DebertaV2ForSequenceClassification", DEBERTA, _text),
    "xlnet": ("encoder", "XLNetForSequenceClassification", XLNET, _text),
    "gpt2": ("decoder", "GPT2LMHeadModel", GPT2, _causal),
    "gpt_neox": ("decoder", "GPTNeoXForCausalLM", DECODER, _causal),
    "opt": ("decoder", "OPTForCausalLM", OPT, _causal),
    "bloom": ("decoder", "BloomForCausalLM", BLOOM, _causal),
    "falcon": ("decoder", "FalconForCausalLM", {**DECODER, "ffn_hidden_size": 96}, _causal),
    "llama_gqa": ("decoder", "LlamaForCausalLM", GROUPED, _causal),
    "mistral": ("decoder", "MistralForCausalLM", GROUPED, _causal),
    "mixtral": ("decoder", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}, _causal),
    "qwen2": ("decoder", "Qwen2ForCausalLM", GROUPED, _causal),
    "phi3": ("decoder", "Phi3ForCausalLM", GROUPED, _causal),
    "gemma": ("decoder", "GemmaForCausalLM", {**GROUPED, "head_dim": 12}, _causal),
    "t5": ("encoder-decoder", "T5ForConditionalGeneration", T5, _pair),
    "bart": ("encoder-decoder", "BartForConditionalGeneration", BART, _pair),
    "whisper": ("audio", "WhisperForConditionalGeneration", WHISPER, _spectrogram),
    "wav2vec2": ("audio", "Wav2Vec2ForCTC", WAV2VEC2, _waveform),
}
