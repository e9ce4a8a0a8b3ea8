"""What a server does under ten times the load that it can carry.

    python benchmarks/overload.py --save

A server process with a random model, one client process with Poisson arrivals that no answer slows
down, both on the same cores. Capacity is the most output tokens a second of whole answers (goodput)
over rates of arrival; then 80 % of that, ten times that, and half of that. Some of the refused
clients come back when their Retry-After says.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.record import save
from benchmarks.server import family, free_port, start
from benchmarks.sides.load import Client, Outcome, Patience
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
COMEBACKS = 0.05
"""of refused clients"""
GOODPUT, SLOWER, REFUSED_SECONDS, KEPT, RECOVERY_SECONDS = 0.9, 2.0, 0.05, 0.99, 2.0


@dataclass(frozen=True)
class Load:
    """Drives one server and keeps what its phases brought."""

    port: int
    pid: int
    prompt: int
    tokens: int

    def phase(
        self, rate: float, seconds: float, *, share: float = 0.0, closed: int = 0
    ) -> tuple[dict[str, Any], list[Outcome]]:
        """Figures of `seconds` of load, and all its outcomes."""
        client = Client(self.port, "tiny", self.prompt, self.tokens, seed=time.monotonic_ns() >> 9)

        async def main() -> None:
            if closed:
                await client.closed(closed, seconds)
            else:
                patience = Patience(share, time.monotonic() + seconds)
                await client.poisson(rate, seconds, patience)
            client.close()

        before, begin = self.cpu(), time.monotonic()
        asyncio.run(main())
        wall = time.monotonic() - begin
        cpu = {k: round((v - before[k]) / wall, 3) for k, v in self.cpu().items()}
        return figures(client.outcomes, begin, seconds, self.tokens) | {"cpu": cpu}, client.outcomes

    def cpu(self) -> dict[str, float]:
        """CPU seconds of the client, the server and the rest of its family."""
        ticks = os.sysconf("SC_CLK_TCK")
        used = {"client": time.process_time(), "server": 0.0, "workers": 0.0}
        for pid in family(self.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used["server" if pid == self.pid else "workers"] += sum(map(int, fields[11:13])) / ticks
        return used


def figures(outcomes: list[Outcome], begin: float, seconds: float, tokens: int) -> dict[str, Any]:
    """Of the requests of one phase; goodput counts answers that end while load is offered."""
    assert seconds > RAMP_SECONDS, f"a phase of {seconds} s is all ramp"
    whole = [o for o in outcomes if o.whole]
    in_time = [o for o in whole if begin + RAMP_SECONDS <= o.end < begin + seconds]
    refused = [o for o in outcomes if o.status == 429]
    firsts = [o.first - o.sent for o in whole]
    back = [o for o in outcomes if o.comeback]
    return {
        "requests": len(outcomes),
        "whole": len(whole),
        "refused": len(refused),
        "other": len(outcomes) - len(whole) - len(refused),
        "goodput": round(len(in_time) * tokens / (seconds - RAMP_SECONDS), 1),
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


def recovery(outcomes: list[Outcome], begin: float, slow: float) -> float:
    """Seconds from `begin` until requests are taken and answered as fast as before."""
    bad = [o.sent for o in outcomes if o.status == 429 or o.first - o.sent > slow]
    return round(max(bad, default=begin) - begin, 3)


def measure(load: Load, seconds: float, probe: float) -> dict[str, Any]:
    """All phases; `seconds` of overload, `probe` of each of the others."""
    result: dict[str, Any] = {"phases": {}}

    def phase(name: str, rate: float, length: float, **more: Any) -> tuple[Any, list[Outcome]]:
        row, outcomes = load.phase(rate, length, **more)
        result["phases"][name] = {"rate": round(rate, 2), "seconds": length} | row
        print(name, json.dumps(result["phases"][name]), flush=True)
        return row, outcomes

    phase("warm", 0, probe / 2, closed=64)
    closed, _ = phase("closed", 0, probe, closed=64)
    rates = [share * closed["goodput"] / load.tokens for share in RATES]
    peak = max(phase(f"rate {rate:.1f}", rate, probe)[0]["goodput"] for rate in rates)
    capacity = peak / load.tokens
    normal, _ = phase("80 %", 0.8 * capacity, 2 * probe)
    over, _ = phase("10 times", 10 * capacity, seconds, share=COMEBACKS)
    begin = time.monotonic()
    _, after = phase("50 %", 0.5 * capacity, probe)
    slow = SLOWER * normal["first_token_p99"]
    rows = {
        "capacity_requests_per_second": round(capacity, 2),
        "goodput": (over["goodput"] / peak, ">=", GOODPUT),
        "first_token_p99": (over["first_token_p99"] / normal["first_token_p99"], "<=", SLOWER),
        "refusal_p99_seconds": (over["refusal_p99"], "<=", REFUSED_SECONDS),
        "comebacks_let_in": (over["let_in"] / max(1, over["comebacks"]), ">=", KEPT),
        "recovery_seconds": (recovery(after, begin, slow), "<=", RECOVERY_SECONDS),
    }
    result["rows"] = {k: judged(v) if isinstance(v, tuple) else v for k, v in rows.items()}
    return result


def judged(row: tuple[float, str, float]) -> dict[str, Any]:
    value, sign, limit = row
    passed = value >= limit if sign == ">=" else value <= limit
    return {"value": round(value, 4), "limit": f"{sign} {limit}", "pass": passed}


def run(flags: list[str], seconds: float, probe: float, prompt: int, tokens: int) -> dict[str, Any]:
    """Start a server with `flags`, measure it, end it."""
    with tempfile.TemporaryDirectory() as directory:
        model = tiny_checkpoint(Path(directory), **SHAPE)
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
        save("overload", options=vars(options), **result)


if __name__ == "__main__":
    main()
