"""Peak memory per rank of a teacher: whole in each process, or sharded by ZeRO-3 over CPU ranks.

    python benchmarks/teacher_memory.py
    python benchmarks/teacher_memory.py layers=32 ranks=1,2 out=docs/results/teachers.json

One JSON line an arm, and all of them as a table in `out`; every rank of every arm is a fresh
process. A random Llama is saved once (in bfloat16) and loaded in float32, so that no arm merely
maps the file. `peak_mb` is the largest rank's anonymous and shared memory above what it held before
the teacher was loaded: loading, `calls` forward passes and the gathered head together. `share` is
peak over the bytes of the parameters, `ratio` peak over the arm `local`'s. ZeRO-3 fetches nothing
ahead here (least memory).
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

DEFAULTS = {
    "layers": "32", "hidden": "512", "vocab": "2048", "ranks": "1,2", "calls": "3", "out": "",
}  # fmt: skip
COLUMNS = ("name", "peak_mb", "parameters_mb", "share", "ratio", "peak_mb_per_rank")
MEGABYTE = 1e6


def main(arguments: list[str]) -> None:
    """Measure every arm, or be one rank of one (`arm=` and `path=`)."""
    settings = {**DEFAULTS, **dict(argument.split("=", 1) for argument in arguments)}
    unknown = settings.keys() - DEFAULTS.keys() - {"arm", "path"}
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; use {', '.join(DEFAULTS)}")
    if "arm" in settings:
        measure(settings["arm"], settings["path"], calls=int(settings["calls"]))
        return
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_model(folder, settings)
        lines: list[dict[str, Any]] = []
        arms = [("local", 1), *(("zero3", int(n)) for n in settings["ranks"].split(","))]
        for arm, ranks in arms:
            peaks = in_fresh_processes(arm, ranks, folder, settings["calls"])
            lines.append(as_line(arm, ranks, peaks, parameters, whole=lines))
            print(json.dumps(lines[-1]), flush=True)
    if settings["out"]:
        write_table(Path(settings["out"]), lines, arguments)


def as_line(
    arm: str, ranks: int, peaks: list[float], parameters: int, *, whole: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is said of one arm; the first line of `whole` is what it is compared with."""
    peak, held = max(peaks), parameters * 4 / MEGABYTE
    return {
        "name": arm if arm == "local" else f"{arm}_{ranks}_rank{'s' * (ranks > 1)}",
        "ratio": round(peak / whole[0]["peak_mb"], 3) if whole else 1.0,
        "peak_mb": round(peak, 1),
        "peak_mb_per_rank": [round(p, 1) for p in peaks],
        "parameters_mb": round(held, 1),
        "share": round(peak / held, 3),
        "machine": f"{processor()}, {os.cpu_count()} cores",
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_table(path: Path, lines: list[dict[str, Any]], arguments: list[str]) -> None:
    """The arms as one table of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    by_name = {line["name"]: line for line in lines}
    notes = [
        f"{name}: peak {line['peak_mb']} MB a rank, {line['share']} times the parameters' "
        f"{line['parameters_mb']} MB in float32"
        for name, line in by_name.items()
    ]
    table = {
        "title": "Memory of a teacher per rank",
        "question": "Does a ZeRO-3 teacher ever lie whole in a rank's memory?",
        "command": shlex.join(["python", "benchmarks/teacher_memory.py", *arguments]),
        "machine": lines[0]["machine"],
        "date": date.today().isoformat(),
        "columns": list(COLUMNS),
        "rows": [[line[column] for column in COLUMNS] for line in lines],
        "notes": notes,
    }
    path.write_text(json.dumps(table, indent=1) + "\n")


def save_model(folder: str, settings: dict[str, str]) -> int:
    """A random Llama in bfloat16 on disk; answers its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = int(settings["hidden"])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=int(settings["vocab"]), hidden_size=hidden,
            intermediate_size=hidden * 11 // 4, num_hidden_layers=int(settings["layers"]),
            num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def in_fresh_processes(arm: str, ranks: int, path: str, calls: str) -> list[float]:
    """The peak of each rank."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={ranks}", __file__, f"arm={arm}", f"path={path}", f"calls={calls}",
    ]  # fmt: skip
    root = Path(__file__).resolve().parent.parent
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **os.environ}
    environment["DS_ACCELERATOR"] = "cpu"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("peak ")]
    if done.returncode or len(lines) != ranks:
        raise SystemExit(f"arm {arm} on {ranks} ranks failed:\n{done.stderr[-3000:]}")
    return [float(line.split()[2]) for line in sorted(lines)]


def measure(arm: str, path: str, *, calls: int) -> None:
    """Load one teacher in this rank, ask it `calls` times, print the peak."""
    import torch
    import torch.distributed as dist
    import transformers

    from compress.contract import Want
    from compress.teachers.deepspeed import DeepSpeedTeacher
    from compress.teachers.deepspeed_build import start_process_group, warm_extension
    from compress.teachers.local import LocalTeacher, load_hf_teacher

    dist.init_process_group("gloo")
    assert transformers.LlamaForCausalLM  # import before the baseline
    if arm == "zero3":
        teacher: Any = DeepSpeedTeacher(
            path, dtype="float32", prefetch_elements=0, live_elements=0, persist_elements=0
        )
        warm_extension()
        start_process_group(teacher.deepspeed)
    generator = torch.Generator().manual_seed(dist.get_rank())
    batch = {"input_ids": torch.randint(0, 1000, (2, 64), generator=generator)}
    with Peak() as peak:
        if arm == "local":
            teacher = LocalTeacher(load_hf_teacher(path, dtype="float32"))
        for _ in range(calls):
            signal = teacher.signal(batch, Want(logits=True))
            signal.head(signal.hidden_SLH[0, :8])
            del signal
    # one write, so that two ranks' lines never mix
    os.write(1, f"peak {dist.get_rank()} {peak.megabytes}\n".encode())
    dist.destroy_process_group()


class Peak:
    """The high-water mark of this process's own memory, watched every 2 ms."""

    def __enter__(self) -> "Peak":
        """Take what is held now as zero."""
        self._base = self._highest = own_memory()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._run, daemon=True)
        self._watch.start()
        return self

    def _run(self) -> None:
        while not self._over.is_set():
            self._highest = max(self._highest, own_memory())
            time.sleep(0.002)

    def __exit__(self, *exception: object) -> None:
        """Stop watching."""
        self._over.set()
        self._watch.join()

    @property
    def megabytes(self) -> float:
        """The peak above the start."""
        return (self._highest - self._base) / MEGABYTE


def own_memory() -> int:
    """Bytes of anonymous and shared pages; mapped files are the page cache's."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


if __name__ == "__main__":
    main(sys.argv[1:])
