"""Which classes of transformers are tried, in which small size: a table. Torch-free."""

from __future__ import annotations

from prunecli.studies.collections.transformers_class import (
    BOTH,
    FRAMES,
    MELS,
    PAIR,
    SOUND,
    TEXT,
    TRANSLATED,
    VISION,
    VOCABULARY,
    TransformersClass,
)
from prunecli.studies.collections.transformers_pictures import PICTURES
from prunecli.studies.collections.transformers_texts import TEXTS

_OTHERS: dict[str, TransformersClass] = {
    # Sound
    "ast": TransformersClass(
        "ASTForAudioClassification",
        {**VISION, "max_length": FRAMES, "num_mel_bins": MELS, "frequency_stride": 8, "time_stride": 8},
        ("spectrogram",),
    ),
    "encodec": TransformersClass(
        "EncodecModel",
        {
            "num_filters": 8,
            "hidden_size": 16,
            "upsampling_ratios": [4, 2],
            "codebook_size": 32,
            "codebook_dim": 16,
            "num_lstm_layers": 1,
        },
        ("waves",),
    ),
    "hubert": TransformersClass("HubertForSequenceClassification", SOUND, ("sound",)),
    "sew": TransformersClass("SEWForCTC", {**SOUND, "squeeze_factor": 2}, ("sound",)),
    "wav2vec2": TransformersClass("Wav2Vec2ForCTC", SOUND, ("sound",)),
    "wavlm": TransformersClass("WavLMForCTC", {**SOUND, "num_buckets": 16, "max_bucket_distance": 20}, ("sound",)),
    "whisper": TransformersClass(
        "WhisperForConditionalGeneration",
        {**TRANSLATED, "num_mel_bins": MELS, "max_source_positions": FRAMES // 2, "max_target_positions": FRAMES // 2},
        ("spectrum", "decoded"),
    ),
    "speech2text": TransformersClass(
        "Speech2TextForConditionalGeneration",
        {
            **TRANSLATED,
            "input_feat_per_channel": MELS,
            "conv_channels": 24,
            "max_source_positions": 100,
            "max_target_positions": 64,
        },
        ("frames", "decoded"),
    ),
    # Several at once
    "blip": TransformersClass("BlipModel", BOTH, PAIR),
    "clip": TransformersClass("CLIPModel", BOTH, PAIR),
    "clip-text": TransformersClass("CLIPTextModel", {**TEXT, "eos_token_id": VOCABULARY - 1}),
    "layoutlm": TransformersClass("LayoutLMForTokenClassification", TEXT, ("text", "boxes")),
    "siglip": TransformersClass("SiglipModel", BOTH, PAIR),
    "vilt": TransformersClass("ViltModel", {**TEXT, "image_size": 32, "patch_size": 8, "max_image_length": -1}, PAIR),
}

CLASSES = {**TEXTS, **PICTURES, **_OTHERS}
