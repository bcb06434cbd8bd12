"""Times other inference software on this project's matrix products and networks, in turn with `ttft`, and prints ratios.

    python3 -m venv VENV && VENV/bin/pip install -r bench/peers/requirements.txt
    VENV/bin/python bench/peers/peers.py check              the peer's networks compute what the fixtures say
    VENV/bin/python bench/peers/peers.py gemm               PyTorch (oneDNN): plain, and weights prepacked
    VENV/bin/python bench/peers/peers.py model              PyTorch: base, auxiliary and KV prediction
    VENV/bin/pip install llama-cpp-python==0.3.36           (builds llama.cpp: a C++ compiler, minutes)
    VENV/bin/python bench/peers/peers.py model --llama      llama.cpp beside it: base and auxiliary, batch 1

Run it from anywhere in the repository; it builds `ttft` by cargo. Rounds alternate between `ttft` and its peers, so that
drift of the machine meets all alike; each has its warm-up in every round; a figure is the median over all samples, a ratio
the median over rounds of the peer's time over `ttft`'s. Weights are cold in `gemm` (a ring larger than the last cache), as
they are in a forward pass; in `model` all load the same files, which `ttft synth` makes. Rows of a batch of prompts are
one pass. Every sample and all versions go to --out.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[2]
PAIR = "OE1.1B-KVP-C-450M"
SHAPES = [(16384, 2048), (2048, 8192), (3072, 2048), (2048, 2048)]
ROWS = [1, 16, 64, 128, 512, 1024]
CELLS = ["1x64", "1x256", "1x1024", "4x256", "8x128"]
COLD_BYTES = 256 << 20


def cargo(*args):
    return subprocess.run(["cargo", *args], cwd=REPOSITORY, check=True, text=True, stdout=subprocess.PIPE).stdout


def executable(name, *args):
    """Builds a target; the path of what cargo built."""
    messages = map(json.loads, cargo(*args, "--message-format=json").splitlines())
    return [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == name][-1]


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


class Results:
    """Samples in seconds by cell and software; ratios by pairs that took turns."""

    def __init__(self, title):
        self.title, self.samples, self.ratios, self.flops = title, {}, {}, {}

    def turn(self, cell, who, ttft, samples):
        """One round of a peer beside `ttft` at one cell."""
        by = self.samples.setdefault(cell, {"ttft": []})
        if ttft not in by["ttft"]:
            by["ttft"].append(ttft)
        by.setdefault(who, []).append(samples)
        self.ratios.setdefault((cell, who), []).append(median(samples) / median(ttft))

    def print(self):
        print(f"\n{self.title}\n")
        print("| cell | software | ms | GFLOP/s | time / ttft, median of rounds (least to most) |\n|---|---|---|---|---|")
        for cell, by in self.samples.items():
            for who, rounds in by.items():
                middle = median(s for samples in rounds for s in samples)
                ratio = self.ratios.get((cell, who))
                text = f"{median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})" if ratio else ""
                print(f"| {cell} | {who} | {middle * 1e3:.2f} | {self.flops[cell] / middle / 1e9:.0f} | {text} |")

    def json(self):
        ratios = [{"cell": c, "software": w, "rounds": r} for (c, w), r in self.ratios.items()]
        return {"title": self.title, "flops": self.flops, "seconds": self.samples, "ratios": ratios}


def in_turn(rounds, *turns):
    """Calls both, `rounds` times, in the other order every time; their results by round."""
    for r in range(rounds):
        results = {i: turns[i]() for i in (range(len(turns)) if r % 2 == 0 else reversed(range(len(turns))))}
        print(f"round {r + 1} of {rounds}", file=sys.stderr)
        yield [results[i] for i in range(len(turns))]


# Matrix products


def gemm_cell(dtype, m, n, k):
    return f"{dtype} {m} x {n} x {k}"


def gemm_ttft(bench, args):
    """Seconds of the `gemm` benchmark's table by cell: the median of its samples."""
    names = "|".join(f"n{n}k{k}" for n, k in SHAPES)
    select = f"^gemm/({'|'.join(args.dtype)})/m({'|'.join(map(str, args.rows))})/({names})$"
    env = {**os.environ, "TTFT_SHAPES": "full", "TTFT_THREADS": str(args.threads)}
    out = subprocess.run([bench, "--bench", "--noplot", select], check=True, text=True, env=env, cwd=REPOSITORY,
                         stdout=subprocess.PIPE).stdout
    row = re.compile(r"^\| (\w+) +\| (\d+) +\| (\d+) x (\d+) +\| ([\d.]+)", re.M)
    return {gemm_cell(d, int(m), int(n), int(k)): [float(ms) / 1e3] for d, m, n, k, ms in row.findall(out)}


def gemm_torch(args):
    """Samples of every cell, plain and prepacked."""
    import torch

    from openelm import linear

    out = {}
    for dtype in args.dtype:
        t = torch_type(dtype)
        for n, k in SHAPES:
            weights = [torch.rand(n, k).sub_(0.5).to(t) for _ in range(max(2, COLD_BYTES // (n * k * t.itemsize)))]
            for m in args.rows:
                x = torch.rand(m, k).sub_(0.5).to(t)
                for who, rows in [("PyTorch", 0), ("PyTorch, prepacked", m)]:
                    products = [linear(w, None, rows) for w in weights]
                    out[gemm_cell(dtype, m, n, k), who] = ring(products, x)
    return out


def ring(products, x, seconds=0.2):
    """Samples of products on x, one after the other, for about so long; the first quarter of a turn is warm-up."""
    for p in products[: max(2, len(products) // 4)]:
        p(x)
    samples, start = [], time.perf_counter()
    while len(samples) < 5 or time.perf_counter() - start < seconds:
        p = products[len(samples) % len(products)]
        samples.append(timed(lambda: p(x)))
    return samples


def gemm(args):
    results = Results(f"y[M,N] = x[M,K] W[N,K]^T, cells M x N x K, weights cold, {args.threads} threads")
    bench = executable("gemm", "bench", "-p", "ttft-bench", "--bench", "gemm", "--no-run")
    for ttft, peers in in_turn(args.rounds, lambda: gemm_ttft(bench, args), lambda: gemm_torch(args)):
        for (cell, who), samples in peers.items():
            results.turn(cell, who, ttft[cell], samples)
            m, n, k = map(int, re.findall(r"(\d+)(?: x|$)", cell))
            results.flops[cell] = 2 * m * n * k
    return results


# Whole networks


def model_cell(dtype, what, batch, prompt):
    return f"{dtype} {what} {batch}x{prompt}"


def model_ttft(ttft, args, dtype, cells, flops):
    """Samples of `ttft bench` by cell; their FLOPs go to `flops`."""
    kinds = {"base": "base", "aux": "auxiliary", "kvp": "KV prediction"}
    out = {}
    for batch, prompt in cells:
        with tempfile.TemporaryDirectory() as folder:
            scenario, record = Path(folder) / "peers.toml", Path(folder) / "peers.jsonl"
            scenario.write_text(
                f'name = "peers"\ndescription = "one cell"\nsystems = ["{PAIR}"]\ndtype = "{dtype}"\n'
                f"lengths = [{prompt}]\nbatches = [{batch}]\nrounds = {args.samples}\nbudget_s = 3600\n")
            subprocess.run([ttft, "bench", "--scenario", scenario, "--out", record, "--threads", str(args.threads)],
                           check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            for line in record.read_text().splitlines():
                if cell := json.loads(line).get("cell"):
                    name = model_cell(dtype, kinds[cell["kind"]], batch, prompt)
                    out[name] = [ns / 1e9 for ns in cell["samples_ns"]]
                    flops[name] = sum(sum(p["cost"]["flops"].values()) for p in cell["phases"])
    return out


def model_peer(args, dtype, cells, systems):
    """Samples of a peer's systems by cell. A system is a function of ids [batch, prompt]; None: not with this batch."""
    import torch

    out = {}
    for batch, prompt in cells:
        ids = torch.randint(0, 32000, (batch, prompt))
        for what, run in systems.items():
            if run(ids) is not None:
                out[model_cell(dtype, what, batch, prompt)] = [timed(lambda: run(ids)) for _ in range(args.samples)]
    return out


def torch_systems(folder, dtype, prepack):
    import torch

    from openelm import KvPrediction

    pair = KvPrediction(folder, torch_type(dtype), prepack)
    first = lambda system: torch.inference_mode()(lambda ids: system.first_logits(ids).argmax(-1))
    return {"base": first(pair.base), "auxiliary": first(pair.aux), "KV prediction": first(pair)}


def llama_systems(args, folder, dtype):
    from llama import network

    return {what: network(folder / part, args.weights / f"{PAIR}-{dtype}-{part}.gguf", dtype, args.threads)
            for what, part in [("base", "base"), ("auxiliary", "aux")]}


def model(args):
    results = Results(f"time to first token, {args.samples} samples a round, {args.threads} threads")
    ttft = executable("ttft", "build", "--release", "--bin", "ttft")
    cells = [tuple(map(int, c.split("x"))) for c in args.cells]
    for dtype in args.dtype:
        folder = args.weights / f"{PAIR}-{dtype}"
        subprocess.run([ttft, "synth", PAIR, "--dtype", dtype, "--out", folder], check=True, stdout=subprocess.DEVNULL)
        peers = {"PyTorch": lambda: torch_systems(folder, dtype, 0),
                 "PyTorch, prepacked": lambda: torch_systems(folder, dtype, 256)}
        if args.llama:
            peers["llama.cpp"] = lambda: llama_systems(args, folder, dtype)
        # One peer after the other, each with `ttft` in turn: memory need not hold them all.
        for who, make in peers.items():
            systems = make()
            both = (lambda: model_ttft(ttft, args, dtype, cells, results.flops),
                    lambda: model_peer(args, dtype, cells, systems))
            for ours, theirs in in_turn(args.rounds, *both):
                for cell, samples in theirs.items():
                    results.turn(cell, who, ours[cell], samples)
            del systems
    return results


def check(_args):
    """The peer's networks against the fixtures of the tests."""
    import torch
    from safetensors.torch import load_file

    from openelm import KvPrediction

    for folder in sorted((REPOSITORY / "tests" / "fixtures").iterdir()):
        expected = load_file(folder / "expected.safetensors")
        for prepack in (0, 16):
            pair = KvPrediction(folder, torch.float32, prepack)
            for name, system in [("base", pair.base), ("kvp", pair)]:
                with torch.inference_mode():
                    logits = system.first_logits(expected["input_ids"])
                error = (logits - expected[f"{name}_logits_last"]).abs().max().item()
                print(f"{folder.name} {name}, {'prepacked' if prepack else 'plain'}: at most {error:.1e} away")
                assert error < 1e-4


def torch_type(dtype):
    import torch

    return {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]


def versions(args):
    from importlib.metadata import distributions

    import torch

    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv[1:],
        "ttft": subprocess.run(git, text=True, stdout=subprocess.PIPE).stdout.strip() or None,
        "cpu": cpu[1] if cpu else platform.processor(),
        "python": platform.python_version(),
        "packages": {d.name: d.version for d in distributions()},
        "threads": args.threads,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "gemm", "model"])
    parser.add_argument("--dtype", type=lambda s: s.split(","), default=["bf16", "f32"], help="bf16,f32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=4, help="turns of each")
    parser.add_argument("--samples", type=int, default=3, help="of each network in a turn")
    parser.add_argument("--cells", type=lambda s: s.split(","), default=CELLS, help="batch x prompt, as 1x64,4x256")
    parser.add_argument("--rows", type=lambda s: [int(m) for m in s.split(",")], default=ROWS, help="M, as 1,64")
    parser.add_argument("--weights", type=Path, default=REPOSITORY / "target" / "peers", help="where weights are kept")
    parser.add_argument("--llama", action="store_true", help="llama.cpp too")
    parser.add_argument("--out", type=Path, help="JSON with every sample")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.what == "check":
        return check(args)
    about = versions(args)
    results = {"gemm": gemm, "model": model}[args.what](args)
    print(f"{about['date']}, {about['cpu']}, PyTorch {about['packages']['torch']}, ttft {about['ttft']}")
    results.print()
    if args.out:
        args.out.write_text(json.dumps({**about, **results.json()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
