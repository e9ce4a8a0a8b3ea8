"""What a server does under ten times the load that it can carry.

    python benchmarks/overload.py --save

A server process with a random model, one client process with Poisson arrivals that no answer slows
down, both on the same cores. Capacity is the most output tokens a second of whole answers (goodput)
over rates of arrival and a closed loop; then 80 % of that, ten times that, and at once half of
that. Some of the refused clients come back when their Retry-After says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.record import save
from benchmarks.server import family, free_port, start
from benchmarks.sides.load import Client, Outcome, Part, Patience
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[1]
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
}
"""of a random llama: 38 million parameters, one token a byte"""
RATES = (0.8, 1.0, 1.2, 1.5, 2.0)
"""of arrivals while the peak is sought, in shares of what a closed loop brings"""
RAMP_SECONDS = 2.0
"""from the begin of a phase, when the first answers have not ended yet: not in its goodput"""
SPACE = "\u0120"
"""as a byte-level tokenizer spells it"""
COMEBACKS = 0.05
"""of refused clients"""
GOODPUT, SLOWER, REFUSED_SECONDS, KEPT, RECOVERY_SECONDS = 0.9, 2.0, 0.05, 0.99, 2.0


@dataclass(frozen=True)
class Row:
    """What one part of a load brought."""

    figures: dict[str, Any]
    outcomes: list[Outcome]
    begin: float


@dataclass(frozen=True)
class Load:
    """Drives one server and keeps what its phases brought."""

    port: int
    pid: int
    prompt: int
    tokens: int

    def closed(self, clients: int, seconds: float) -> Row:
        """Figures of so many clients that each wait for their answer."""
        return self._drive([Part(0.0, seconds)], lambda client: client.closed(clients, seconds))[0]

    def poisson(self, *parts: Part, share: float = 0.0) -> list[Row]:
        """Figures of each part; `share` of those refused in the first come back while it lasts."""
        patience = Patience(share, time.monotonic() + parts[0].seconds)
        return self._drive(parts, lambda client: client.poisson(parts, patience))

    def _drive(
        self, parts: Sequence[Part], load: Callable[[Client], Coroutine[Any, Any, None]]
    ) -> list[Row]:
        client = Client(self.port, "tiny", self.prompt, self.tokens, seed=time.monotonic_ns() >> 9)

        async def main() -> None:
            await load(client)
            client.close()

        before, begin = self.cpu(), time.monotonic()
        asyncio.run(main())
        wall = time.monotonic() - begin
        cpu = {k: round((v - before[k]) / wall, 3) for k, v in self.cpu().items()}
        rows = []
        for part in parts:
            end = begin + part.seconds if part is not parts[-1] else inf
            sent = [o for o in client.outcomes if begin <= o.sent < end]
            figures = summary(sent, begin, part.seconds, self.tokens)
            asked = {"rate": round(part.rate, 2), "seconds": part.seconds}
            rows.append(Row(asked | figures | {"cpu": cpu}, sent, begin))
            begin = end
        return rows

    def cpu(self) -> dict[str, float]:
        """CPU seconds of the client, the server and the rest of its family."""
        ticks = os.sysconf("SC_CLK_TCK")
        used = {"client": time.process_time(), "server": 0.0, "workers": 0.0}
        for pid in family(self.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used["server" if pid == self.pid else "workers"] += sum(map(int, fields[11:13])) / ticks
        return used


def summary(outcomes: list[Outcome], begin: float, seconds: float, tokens: int) -> dict[str, Any]:
    """Of the requests of one phase; goodput counts answers that end while load is offered."""
    whole = [o for o in outcomes if o.whole]
    ramp = min(RAMP_SECONDS, seconds / 2)
    in_time = [o for o in whole if begin + ramp <= o.end < begin + seconds]
    refused = [o for o in outcomes if o.status == 429]
    firsts = [o.first - o.sent for o in whole]
    back = [o for o in outcomes if o.comeback]
    return {
        "requests": len(outcomes),
        "whole": len(whole),
        "refused": len(refused),
        "other": len(outcomes) - len(whole) - len(refused),
        "goodput": round(len(in_time) * tokens / (seconds - ramp), 1),
        "first_token_p50": quantile(firsts, 0.5),
        "first_token_p99": quantile(firsts, 0.99),
        "first_token_p99_comebacks": quantile([o.first - o.sent for o in back if o.whole], 0.99),
        "refusal_p50": quantile([o.first - o.sent for o in refused], 0.5),
        "refusal_p99": quantile([o.first - o.sent for o in refused], 0.99),
        "retry_after_p50": quantile([o.retry_after for o in refused], 0.5),
        "retry_after_max": quantile([o.retry_after for o in refused], 1.0),
        "comebacks": len(back),
        "let_in": sum(o.status == 200 for o in back),
    }


def quantile(values: list[float], share: float) -> float:
    """Seconds; 0 of nothing."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4) if ordered else 0.0


def recovery(row: Row, slow: float) -> float:
    """Seconds from the row's begin until requests are taken and answered as fast as before."""
    bad = [o.sent for o in row.outcomes if o.status == 429 or o.first - o.sent > slow]
    return round(max(bad, default=row.begin) - row.begin, 3)


def measure(load: Load, seconds: float, probe: float) -> dict[str, Any]:
    """All phases; `seconds` of overload, `probe` of each of the others."""
    result: dict[str, Any] = {"phases": {}}

    def keep(name: str, row: Row) -> dict[str, Any]:
        result["phases"][name] = row.figures
        print(name, json.dumps(row.figures), flush=True)
        return row.figures

    keep("warm", load.closed(64, probe / 2))
    closed = keep("closed", load.closed(64, probe))
    if not closed["goodput"]:
        raise RuntimeError(f"no answer ended within {probe:g} s; the machine is busy, or too slow")
    rates = [share * closed["goodput"] / load.tokens for share in RATES]
    found = [keep(f"rate {rate:.1f}", *load.poisson(Part(rate, probe))) for rate in rates]
    peak = max(row["goodput"] for row in [closed, *found])
    capacity = peak / load.tokens
    normal = keep("80 %", *load.poisson(Part(0.8 * capacity, 2 * probe)))
    parts = Part(10 * capacity, seconds), Part(0.5 * capacity, probe)
    during, after = load.poisson(*parts, share=COMEBACKS)
    over = keep("10 times", during)
    keep("50 %", after)
    slow = SLOWER * normal["first_token_p99"]
    rows = {
        "goodput": (over["goodput"] / peak, ">=", GOODPUT),
        "first_token_p99": (over["first_token_p99"] / normal["first_token_p99"], "<=", SLOWER),
        "refusal_p99_seconds": (over["refusal_p99"], "<=", REFUSED_SECONDS),
        "comebacks_let_in": (over["let_in"] / max(1, over["comebacks"]), ">=", KEPT),
        "recovery_seconds": (recovery(after, slow), "<=", RECOVERY_SECONDS),
    }
    result["capacity_requests_per_second"] = round(capacity, 2)
    result["rows"] = {name: judged(*row) for name, row in rows.items()}
    return result


def judged(value: float, sign: str, limit: float) -> dict[str, Any]:
    passed = value >= limit if sign == ">=" else value <= limit
    return {"value": round(value, 4), "limit": f"{sign} {limit}", "pass": passed}


def spell(directory: Path) -> None:
    """Give every token of a tiny checkpoint a text of its own.

    Random bytes are seldom whole characters, and text that waits for its other bytes would be taken
    for a late first token.
    """
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"].items()
    tokenizer["model"]["vocab"] = {
        text if text.isascii() or text == SPACE else f"x{token:x}": token
        for text, token in vocabulary
    }
    path.write_text(json.dumps(tokenizer))


def run(flags: list[str], seconds: float, probe: float, prompt: int, tokens: int) -> dict[str, Any]:
    """Start a server with `flags`, measure it, end it."""
    with tempfile.TemporaryDirectory() as directory:
        model = tiny_checkpoint(Path(directory), **SHAPE)
        spell(model)
        port = free_port()
        server, _ = start(port, [f"tiny={model}", "--log-level", "warning", *flags])
        try:
            return measure(Load(port, server.pid, prompt, tokens), seconds, probe)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flags", default="", help="further flags of `mainspring serve`")
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--probe", type=float, default=15.0, help="seconds of each other phase")
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens")
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    result = run(
        options.flags.split(), options.seconds, options.probe, options.prompt, options.tokens
    )
    print(json.dumps(result["rows"], indent=1))
    if options.save:
        rows = [{"cell": name, **row} for name, row in result["rows"].items()]
        save("overload", rows, options=vars(options), phases=result["phases"])


if __name__ == "__main__":
    main()
