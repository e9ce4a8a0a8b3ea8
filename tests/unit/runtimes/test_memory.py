"""How much memory there is, and the advice for a model that needs more."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from mainspring.config import ModelConfig
from mainspring.errors import InsufficientMemory
from mainspring.kernels import BLOCK
from mainspring.runtimes.memory import GIB, free_memory, plan_memory
from tests.tiny import tiny_checkpoint


@dataclass
class Info:
    """The numbers of a 2-billion-parameter model."""

    context: int = 8192
    weight_bytes: dict = field(
        default_factory=lambda: {
            "float32": 8 * GIB,
            "bf16": 4 * GIB,
            "int8": 2 * GIB + GIB // 16,
            "int4": GIB + GIB // 8,
        }
    )
    kv_bytes: dict = field(default_factory=lambda: {"float32": 65536, "bf16": 32768, "int8": 17408})


def test_the_pool_holds_every_sequence_when_there_is_room() -> None:
    plan = plan_memory(Info(), ModelConfig(max_running=4), "bf16", 64 * GIB)
    assert plan.blocks * BLOCK == 4 * 8192
    assert plan.kv_bytes == 4 * 8192 * 32768


def test_int8_keys_and_values_make_room_for_more() -> None:
    config = ModelConfig(kv_memory=GIB)
    few = plan_memory(Info(), config, "bf16", 8 * GIB)
    many = plan_memory(
        Info(), msgspec.structs.replace(config, kv_format="int8"), "float32", 16 * GIB
    )
    assert many.blocks == GIB // (BLOCK * 17408) > 1.8 * few.blocks


def test_else_a_share_of_what_the_weights_leave() -> None:
    plan = plan_memory(Info(), ModelConfig(), "bf16", 8 * GIB)
    assert 1.9 * GIB < plan.kv_bytes <= 2 * GIB


def test_what_the_settings_say_comes_first() -> None:
    plan = plan_memory(Info(), ModelConfig(kv_memory=GIB), "bf16", 8 * GIB)
    assert plan.kv_bytes == GIB


def test_the_tiers_count() -> None:
    plain = plan_memory(Info(), ModelConfig(), "bf16", 8 * GIB)
    tiered = plan_memory(Info(), ModelConfig(prefix_memory=GIB, prefix_disk=GIB), "bf16", 8 * GIB)
    assert plain.kv_bytes - tiered.kv_bytes > GIB // 2
    with pytest.raises(InsufficientMemory):
        plan_memory(Info(), ModelConfig(prefix_memory=5 * GIB), "bf16", 8 * GIB)


def test_it_says_what_is_needed_what_is_free_and_what_to_try() -> None:
    with pytest.raises(InsufficientMemory) as raised:
        plan_memory(Info(), ModelConfig(), "bf16", 2 * GIB)
    assert raised.value.message == "needs 4.3 GiB, 2.0 GiB free: try --quantize int4"


@pytest.mark.parametrize("format", ["float32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("free", [int(GIB * x) for x in (0.5, 1.25, 1.4, 2, 2.5, 3, 4.2, 6, 9)])
@pytest.mark.parametrize("context", [1024, 8192, 131072])
@pytest.mark.parametrize("kv_memory", [0, 3 * GIB])
def test_the_advice_would_fit(format: str, free: int, context: int, kv_memory: int) -> None:
    info, config = Info(context), ModelConfig(kv_memory=kv_memory)
    try:
        plan = plan_memory(info, config, format, free)
        assert plan.kv_bytes + info.weight_bytes[format] < free
        return
    except InsufficientMemory as error:
        advice = error.message.partition(": ")[2]
    if advice.startswith("no setting"):
        assert free < 1.5 * GIB
        return
    words = shlex.split(advice.removeprefix("try "))
    flags = {name[2:].replace("-", "_"): v for name, v in zip(words[::2], words[1::2], strict=True)}
    better = msgspec.convert({**msgspec.to_builtins(config), **flags}, ModelConfig, strict=False)
    plan_memory(info, better, flags.get("quantize", format), free)


def test_a_pool_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(InsufficientMemory, match="one block"):
        plan_memory(Info(), ModelConfig(kv_memory=1000), "bf16", 64 * GIB)


# Free memory --------------------------------------------------------------------------------------


def machine(root: Path, cgroup: str, files: dict[str, str], available: int = 8 * GIB) -> Path:
    files = {
        "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:  {available // 1024} kB\n",
        "proc/self/cgroup": cgroup,
        **files,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_control_group(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, "", {})) == 8 * GIB
    assert free_memory(tmp_path / "nothing") > 1 << 50


def group(at: str, limit: int | str, used: int, *, v2: bool, inactive: int = 0) -> dict[str, str]:
    names = (
        ("memory.max", "memory.current")
        if v2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    return {
        f"{at}/{names[0]}": f"{limit}\n",
        f"{at}/{names[1]}": f"{used}\n",
        f"{at}/memory.stat": f"anon 5\ninactive_file {inactive}\n",
    }


def test_version_2_counts_every_level(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    root = machine(
        tmp_path,
        "0::/a/b\n",
        {
            f"{top}/cgroup.controllers": "memory",
            **group(f"{top}/a/b", "max", GIB, v2=True),
            **group(f"{top}/a", 3 * GIB, 2 * GIB, v2=True, inactive=GIB // 2),
        },
    )
    assert free_memory(root) == GIB + GIB // 2


def test_version_1(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory/box"
    root = machine(tmp_path, "5:cpu:/x\n4:memory:/box\n0::/\n", group(at, 2 * GIB, GIB, v2=False))
    assert free_memory(root) == GIB


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory"
    assert free_memory(machine(tmp_path, "4:memory:/\n", group(at, 5, GIB, v2=False))) == 0


def test_this_machine_has_some() -> None:
    assert free_memory() > 1 << 20


def test_the_message_holds_no_path() -> None:
    with pytest.raises(InsufficientMemory) as raised:
        plan_memory(Info(), ModelConfig(), "bf16", GIB // 2)
    assert not re.search(r"/\w", raised.value.message.replace("kv/", ""))


def test_memory_that_the_system_refuses_is_asked_for_in_words(tmp_path: Path) -> None:
    """A limit that nothing announces: what seemed free is not given."""
    path = tiny_checkpoint(tmp_path)
    program = f"""
        import resource
        from pathlib import Path
        from mainspring.config import ModelConfig
        from mainspring.errors import InsufficientMemory
        from mainspring.runtimes.loading import load

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
        config = ModelConfig(isa="reference", quantize="int4", kv_memory=512 << 20)
        try:
            load(Path({str(path)!r}), config)
        except InsufficientMemory as error:
            print(error.message)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "did not give" in done.stdout and "--kv-memory" in done.stdout, done
    (advised,) = re.findall(r"--kv-memory (\d+)", done.stdout)
    assert 0 < int(advised) < 512 << 20
