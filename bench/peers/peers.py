"""Times other inference software on this project's matrix products and networks, in turn with `ttft`, and prints ratios.

    python3 -m venv VENV && VENV/bin/pip install -r bench/peers/requirements.txt
    VENV/bin/python bench/peers/peers.py check              the peers' networks compute what the fixtures say
    VENV/bin/python bench/peers/peers.py gemm               PyTorch (oneDNN): plain, and weights prepacked
    VENV/bin/python bench/peers/peers.py model              PyTorch: base, auxiliary and KV prediction of OpenELM
    VENV/bin/python bench/peers/peers.py model --base DIR --aux DIR [--predictor DIR]
                                                            transformers' own Llama, Qwen2 or Qwen3 of two Hub folders
    VENV/bin/pip install llama-cpp-python==0.3.36           (builds llama.cpp: a C++ compiler, minutes to half an hour)
    VENV/bin/python bench/peers/peers.py model --llama      llama.cpp beside it: base and auxiliary, batch 1

Run it from anywhere in the repository; it builds `ttft` by cargo, or takes --ttft. Rounds alternate between `ttft` and its
peers, so that drift of the machine meets all alike; each has its warm-up in every round; a figure is the median over all
samples, a ratio the median over rounds of the peer's time over `ttft`'s. Weights are cold in `gemm` (a ring larger than the
last cache), as they are in a forward pass. In `model` all load the same files: those of --base and --aux, or what `ttft
synth` makes for --pair. Each is a process of its own in every round, so that memory holds the networks of one. llama.cpp
reads a GGUF file of the same values, which is written to --weights. Rows of a batch of prompts are one pass. Every sample
and all versions go to --out.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

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
    """Calls all, `rounds` times, in the other order every time; their results by round."""
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

KINDS = {"base": "base", "aux": "auxiliary", "kvp": "KV prediction"}


class Pair(NamedTuple):
    """The folders of what is timed, and the type of their weights."""

    base: Path
    aux: Path
    predictor: Path | None
    dtype: str


def family(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


def stored(folder):
    """The type of a network's weights."""
    from safetensors import safe_open

    from llama import files

    with safe_open(files(folder)[0], framework="pt") as f:
        kind = f.get_slice(next(iter(f.keys()))).get_dtype()
    if kind not in ("BF16", "F32"):
        raise SystemExit(f"{folder}: weights are {kind}; BF16 or F32 is compared here")
    return kind.lower()


def apart(f, *args):
    """f(*args) in a process of its own, whose memory goes with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(f, *args).result()


def model_cell(dtype, what, batch, prompt):
    return f"{dtype} {what} {batch}x{prompt}"


def model_ttft(ttft, args, pair, batch, prompt, flops):
    """Samples of `ttft bench` by network; their FLOPs go to `flops`."""
    folders = {"base": pair.base, "aux": pair.aux, "predictor": pair.predictor}
    folders = "".join(f"{key} = {json.dumps(str(folder))}\n" for key, folder in folders.items() if folder)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        scenario, record = Path(folder) / "peers.toml", Path(folder) / "peers.jsonl"
        scenario.write_text(
            f'name = "peers"\ndescription = "one cell"\ndtype = "{pair.dtype}"\n'
            f"lengths = [{prompt}]\nbatches = [{batch}]\nrounds = {args.samples}\nbudget_s = 3600\n"
            f"[[pair]]\n{folders}")
        subprocess.run([ttft, "bench", "--scenario", scenario, "--out", record, "--processes", "1", "--threads",
                        str(args.threads)], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        for line in record.read_text().splitlines():
            if cell := json.loads(line).get("cell"):
                name = model_cell(pair.dtype, KINDS[cell["kind"]], batch, prompt)
                out[name] = [ns / 1e9 for ns in cell["samples_ns"]]
                flops[name] = sum(sum(p["cost"]["flops"].values()) for p in cell["phases"])
    return out


def model_peer(who, args, pair, batch, prompt):
    """Samples of a peer's networks."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vocabulary = json.loads((pair.base / "config.json").read_text())["vocab_size"]
    ids = torch.randint(0, vocabulary, (batch, prompt))
    out = {}
    with torch.inference_mode():
        for kind, first_logits in PEERS[who](args, pair).items():
            run = lambda: first_logits(ids).argmax(-1)
            run()
            out[model_cell(pair.dtype, KINDS[kind], batch, prompt)] = [timed(run) for _ in range(args.samples)]
    return out


def torch_networks(pair, prepack=0):
    if family(pair.base) == "openelm":
        from openelm import KvPrediction

        both = KvPrediction(pair.base, pair.aux, pair.predictor, torch_type(pair.dtype), prepack)
    else:
        from hub import KvPrediction

        both = KvPrediction(pair.base, pair.aux, pair.predictor, torch_type(pair.dtype))
    return {"base": both.base.first_logits, "aux": both.aux.first_logits, "kvp": both.first_logits}


def llama_networks(args, pair):
    from llama import network

    return {kind: network(folder, args.weights, args.threads) for kind, folder in [("base", pair.base), ("aux", pair.aux)]}


PEERS = {
    "PyTorch": lambda args, pair: torch_networks(pair),
    "PyTorch, prepacked": lambda args, pair: torch_networks(pair, 256),
    "llama.cpp": llama_networks,
}


def pairs(ttft, args):
    if args.base:
        base, aux, predictor = (folder and folder.resolve() for folder in (args.base, args.aux, args.predictor))
        if family(base) == "openelm" and not predictor:
            raise SystemExit(f"{base}: OpenELM is timed with a predictor's folder: add --predictor")
        yield Pair(base, aux, predictor, stored(base))
        return
    for dtype in args.dtype:
        folder = args.weights.resolve() / f"{args.pair}-{dtype}"
        subprocess.run([ttft, "synth", args.pair, "--dtype", dtype, "--out", folder], check=True, stdout=subprocess.DEVNULL)
        yield Pair(folder / "base", folder / "aux", folder / "predictor", dtype)


def model(args):
    results = Results(f"time to first token, {args.samples} samples a round, {args.threads} threads")
    ttft = args.ttft or executable("ttft", "build", "--release", "--bin", "ttft")
    for pair in pairs(ttft, args):
        # transformers' networks are timed as they are.
        peers = [who for who in PEERS if (who != "llama.cpp" or args.llama)
                 and (who != "PyTorch, prepacked" or family(pair.base) == "openelm")]
        for batch, prompt in (map(int, c.split("x")) for c in args.cells):
            print(f"{pair.dtype} {batch}x{prompt}", file=sys.stderr)
            taking = [who for who in peers if batch == 1 or who != "llama.cpp"]
            turns = [partial(model_ttft, ttft, args, pair, batch, prompt, results.flops)]
            turns += [partial(apart, model_peer, who, args, pair, batch, prompt) for who in taking]
            for ours, *theirs in in_turn(args.rounds, *turns):
                for who, samples in zip(taking, theirs):
                    for cell in samples:
                        if cell in ours:
                            results.turn(cell, who, ours[cell], samples[cell])
                        else:
                            print(f"{cell}: ttft did not measure it, so {who} is left out", file=sys.stderr)
    return results


def check(args):
    """The peers' networks against the fixtures of the tests."""
    import torch
    from safetensors.torch import load_file

    torch.set_grad_enabled(False)

    def close(folder, name, logits, expected):
        error = (logits - expected).abs().max().item()
        print(f"{folder.name} {name}: at most {error:.1e} away")
        assert error < 1e-4

    for folder in sorted(args.fixtures.iterdir()):
        base, aux, predictor = (folder / part for part in ("base", "aux", "predictor"))
        if not base.exists():
            continue
        expected = load_file(folder / "expected.safetensors")
        ids, base_logits = expected["input_ids"], expected["base_logits_last"]
        kvp_logits = expected.get("kvp_logits_last", expected.get("kvp_m1_s0_logits_last"))
        if family(base) == "openelm":
            from openelm import KvPrediction

            for how, prepack in [("plain", 0), ("prepacked", 16)]:
                pair = KvPrediction(base, aux, predictor, torch.float32, prepack)
                close(folder, f"base, {how}", pair.base.first_logits(ids), base_logits)
                close(folder, f"KV prediction, {how}", pair.first_logits(ids), kvp_logits)
        else:
            from hub import KvPrediction

            # The base as its own auxiliary, with maps that change nothing.
            same = KvPrediction(base, base, None, torch.float32)
            for maps in same.maps:
                for weight, _ in maps:
                    weight.copy_(torch.eye(len(weight)))
            close(folder, "base", same.base.first_logits(ids), base_logits)
            close(folder, "KV prediction by identity", same.first_logits(ids), base_logits)
            pair = same
            if aux.exists():
                pair = KvPrediction(base, aux, predictor, torch.float32)
                close(folder, "KV prediction", pair.first_logits(ids), kvp_logits)
        if args.llama:
            from llama import network

            for part, of in [(base, pair.base), (aux, pair.aux)]:
                if part.exists():
                    first_logits = network(part, args.weights, args.threads, exact=True)
                    logits = torch.cat([torch.from_numpy(first_logits(row[None])) for row in ids])
                    close(folder, f"{part.name}, llama.cpp", logits, of.first_logits(ids))


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
    parser.add_argument("--pair", default=PAIR, help="of `ttft zoo`, with synthetic weights")
    for part in ("base", "aux", "predictor"):
        parser.add_argument(f"--{part}", type=Path, help="folder, in place of --pair; its weights are taken as they are")
    parser.add_argument("--weights", type=Path, default=REPOSITORY / "target" / "peers", help="where weights are kept")
    parser.add_argument("--fixtures", type=Path, default=REPOSITORY / "tests" / "fixtures", help="for check")
    parser.add_argument("--ttft", type=lambda s: Path(s).resolve(), help="the program, if not what cargo builds")
    parser.add_argument("--llama", action="store_true", help="llama.cpp too")
    parser.add_argument("--out", type=Path, help="JSON with every sample")
    args = parser.parse_args()
    if (args.base is None) != (args.aux is None) or (args.predictor and not args.base):
        parser.error("--base and --aux are given together, and --predictor with them")

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
