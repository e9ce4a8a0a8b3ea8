"""Checkpoints that were quantized by AutoAWQ, GPTQ, compressed-tensors or to fp8."""
