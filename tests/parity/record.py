"""Record what the transformers library answers: `python -m tests.parity.record [ROW ...]`.

Writes one small file a row into `tests/parity/recorded/`. Run it with the environment of
`make parity`; commit what it writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import transformers

from tests.parity.oracle import expectation, layout_of
from tests.parity.rows import ROWS

RECORDED = Path(__file__).with_name("recorded")


def main(names: list[str]) -> None:
    RECORDED.mkdir(exist_ok=True)
    for name in names or list(ROWS):
        layout = layout_of(ROWS[name])
        found = expectation(ROWS[name], layout)
        margin = float(found.pop("margin"))
        # float32 sums in another order differ by about 1e-6 of the largest logit.
        if margin < 3e-5:
            raise SystemExit(f"{name}: a greedy choice is a near tie (margin {margin:.1e})")
        variety = float(np.mean([len(set(text)) for text in found["tokens"].tolist()]))
        if variety < 8:
            raise SystemExit(f"{name}: greedy texts have {variety:.1f} different tokens only")
        np.savez_compressed(
            RECORDED / f"{name}.npz",
            layout=np.array(json.dumps(layout)),
            transformers=np.array(transformers.__version__),
            **found,
        )
        print(f"{name}: margin {margin:.1e}, {variety:.0f} different tokens in a text", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
