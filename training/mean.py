"""The mean of several runs' weights: `python -m training.mean OUTPUT RUN RUN...`.

Runs that went on from the same checkpoint with other seeds lie close enough that their mean is
better than each (Wortsman et al. 2022, "Model soups"). Which runs to take is decided by the
development questions, never by the held-out ones.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from mainspring.engine.checkpoint import SafetensorsCheckpoint
from mainspring.kernels import bf16_bits, bf16_values

WEIGHTS = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="checkpoints of equal shapes, in bf16")
    options = parser.parse_args()
    shutil.copytree(options.runs[0], options.output, dirs_exist_ok=True)
    runs = [SafetensorsCheckpoint(run) for run in options.runs]
    with (options.output / WEIGHTS).open("r+b") as file:
        for name, tensor in runs[0].tensors.items():
            total = np.zeros(tensor.shape, np.float32)
            for run in runs:
                bits = np.empty(tensor.shape, np.uint16)
                run.read(name, bits)
                total += bf16_values(bits)
            file.seek(tensor.start)
            file.write(bf16_bits(total / np.float32(len(runs))).tobytes())


if __name__ == "__main__":
    main()
