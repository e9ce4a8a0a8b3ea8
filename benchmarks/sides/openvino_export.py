"""Write CHECKPOINT as OpenVINO's files with quantized weights to FOLDER-int8 or FOLDER-int4."""

from __future__ import annotations

import sys
from pathlib import Path

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer

WEIGHTS = {
    "int8": OVWeightQuantizationConfig(bits=8, sym=True),
    "int4": OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0),
}


def main() -> None:
    checkpoint, folder = map(Path, sys.argv[1:])
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    model = OVModelForCausalLM.from_pretrained(
        checkpoint,
        export=True,
        compile=False,
        quantization_config=WEIGHTS[folder.name.rpartition("-")[2]],
    )
    model.save_pretrained(unfinished)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    parts = convert_tokenizer(tokenizer, with_detokenizer=True)
    for part, name in zip(parts, ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(part, unfinished / f"openvino_{name}.xml")
    unfinished.rename(folder)


main()
