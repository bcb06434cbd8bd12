#!/usr/bin/env python3
"""Distils the maps of a predictor further in PyTorch, and writes a predictor that ttft takes.

    ttft fit --base BASE --shared-layers 17 --input hidden --text my-text.txt --tokens 100000 --out ridge
    python3 docs/examples/train_maps.py --base BASE --predictor ridge --text my-text.txt --minutes 20 --out trained
    ttft generate --base BASE --predictor trained --sink-tokens 1 "Once upon a time"

BASE is a folder of the Hub (Llama, Qwen2 or Qwen3) with its tokenizer.json; the predictor is one for shared layers. The loss is
the KL divergence from full prefill to KV prediction, over the tokens after the prompt. Half of the samples are text, a quarter is
text that is copied, and a quarter are look-ups among generated names; without the last two nothing teaches the maps to find things.

With --compare TOKENS.json LOGITS.safetensors nothing is trained: logits of the same prompts are compared with those that
`ttft logits --base BASE --predictor ridge --base-tokens M --sink-tokens S --tokens TOKENS.json --out LOGITS.safetensors` wrote.

It needs torch, transformers, tokenizers and safetensors.
"""
import argparse, json, math, pathlib, random, shutil, time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


class Prediction(torch.nn.Module):
    """The base with predicted keys and values: its layers below k read all tokens; above, it runs the first s and the last m of the
    prompt and all later tokens, and the maps give the keys and values of the rest."""

    def __init__(self, base, folder, m, s):
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        if config.get("source") != "shared_layers":
            raise SystemExit(f"{folder}/config.json: only predictors of shared layers are trained here")
        self.base, self.m, self.s = base.requires_grad_(False), m, s
        self.k, self.input = config["shared_layers"], config.get("input", "kv")
        self.source = config["source_layer_for_base_layer"]
        tensors = load_file(folder / "predictor.safetensors")
        # Without a map, a layer projects the source's hidden state itself.
        self.maps = torch.nn.ParameterDict({n.replace(".", "-"): t.float() for n, t in tensors.items()})

    def tensors(self):
        return {n.replace("-", "."): p.detach().contiguous() for n, p in self.maps.items()}

    def heads(self, layer, h, parts):
        """Queries, keys and values of normalised rows, before any norm of heads and RoPE, [batch, heads, rows, d]."""
        a = layer.self_attn
        return [getattr(a, f"{p}_proj")(h).unflatten(-1, (-1, a.head_dim)).transpose(1, 2) for p in parts]

    def turn(self, layer, name, x, at):
        """The norm of heads, if there is one, and RoPE at positions `at`."""
        norm = getattr(layer.self_attn, name, None)
        x = norm(x) if norm is not None else x
        cos, sin = self.base.model.rotary_emb(x, at[None])
        half = x.shape[-1] // 2
        return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]

    def layer(self, layer, x, at, keys, values, seen):
        """A layer on rows `x` at positions `at`, after their queries have seen keys and values at positions `seen`."""
        q = self.turn(layer, "q_norm", self.heads(layer, layer.input_layernorm(x), "q")[0], at)
        groups = q.shape[1] // keys.shape[1]
        keys, values = (t.repeat_interleave(groups, 1) for t in (keys, values))
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[None, :] <= at[:, None])
        x = x + layer.self_attn.o_proj(o.transpose(1, 2).flatten(2))
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def forward(self, ids, prompt):
        """Logits of the last prompt token and all later ones but the last, [batch, len - prompt, vocab]."""
        net, n = self.base.model, prompt - self.m
        every = torch.arange(ids.shape[1], device=ids.device)
        own = torch.cat((every[: min(self.s, n)], every[n:]))
        guessed = every[len(own) - (len(every) - n) : n]
        x, left = net.embed_tokens(ids), []
        with torch.no_grad():
            for layer in net.layers[: self.k]:
                k, v = self.heads(layer, layer.input_layernorm(x), "kv")
                raw = [t.transpose(1, 2).flatten(2) for t in (k, v)]
                x = self.layer(layer, x, every, self.turn(layer, "k_norm", k, every), v, every)
                unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.base.config.rms_norm_eps)
                left.append((raw, unit, x))
        x = x[:, own]
        order = torch.cat((own, guessed))
        for i, layer in enumerate(net.layers[self.k :], self.k):
            raw, unit, hidden = left[self.source[i]]
            own_k, own_v = self.heads(layer, layer.input_layernorm(x), "kv")
            if f"key_transforms-{i}-weight" in self.maps:
                read = raw if self.input == "kv" else (unit, unit)
                names = [f"{kind}_transforms-{i}" for kind in ("key", "value")]
                k, v = (
                    F.linear(r[:, guessed], self.maps[f"{n}-weight"], self.maps[f"{n}-bias"])
                    .unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
                    for r, n in zip(read, names)
                )  # fmt: skip
            else:
                k, v = self.heads(layer, layer.input_layernorm(hidden[:, guessed]), "kv")
            k, v = torch.cat((own_k, k), 2), torch.cat((own_v, v), 2)
            x = self.layer(layer, x, own, self.turn(layer, "k_norm", k, order), v, order)
        x = net.norm(x[:, len(own) - (ids.shape[1] - prompt + 1) :])
        return self.base.lm_head(x if ids.shape[1] == prompt else x[:, :-1])


class Samples:
    """Sequences of one length: a prompt, and what follows it."""

    NAMES = "Ada Bao Cleo Dina Edo Finn Gus Hana Ivo Jun Kira Lars Mia Noor Otto Pia Quin Rosa Sven Tara Uma Vito Wim Yara".split()
    WORDS = "amber basket copper dolphin ember falcon garnet harbor island jacket kettle lantern marble nectar orchid pepper".split()
    FORMS = [("{n} has the word {w}.", "Which word has {n}? {n} has the word"), ("{n}: {w}", "Now look it up. {n}:"),
             ("The box of {n} holds a {w}.", "And so the box of {n} holds a")]  # fmt: skip

    def __init__(self, tokenizer, files, follow, seed):
        self.ids, self.follow, self.random = [], follow, random.Random(seed)
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.start = tokenizer.encode("").ids
        for file in files:
            text = pathlib.Path(file).read_text(encoding="utf-8-sig")
            for at in range(0, len(text), 1 << 16):
                self.ids += self.encode(text[at : at + (1 << 16)])
        # The last part is for judging.
        self.border = len(self.ids) * 19 // 20
        if self.border < 2000:
            raise SystemExit(f"{len(self.ids)} tokens of text are too few: give more")

    def text(self, n, held_out=False):
        low, high = (self.border, len(self.ids)) if held_out else (0, self.border)
        at = self.random.randrange(low, max(low + 1, high - n))
        return self.ids[at : at + n]

    def copy(self, room):
        """Text, and its beginning again; the rest of it."""
        part = self.text(self.random.randrange(self.follow, max(self.follow + 1, room // 2 - 8)))
        cut = self.random.randrange(4, 16)
        return part + self.encode("\n\n") + part[:cut], part[cut:]

    def look_up(self, room):
        """Words of some names, text, and a question; one of the words."""
        form, question = self.random.choice(self.FORMS)
        count = self.random.randrange(2, 7)
        pairs = list(zip(self.random.sample(self.NAMES, count), self.random.sample(self.WORDS, count)))
        name, word = self.random.choice(pairs)
        lines = "\n".join(form.format(n=n, w=w) for n, w in pairs)
        between = self.text(self.random.randrange(0, max(1, room // 2)))
        asks = self.encode(f"\n{lines}\n") + between + self.encode("\n" + question.format(n=name))
        return asks, self.encode(f" {word}.\n")

    def one(self, prompt, kind):
        room = prompt - len(self.start)
        if kind in ("text", "held-out"):
            return self.start + self.text(room + self.follow, kind == "held-out")
        asks, answer = self.copy(room) if kind == "copy" else self.look_up(room)
        asks = asks[-room:]
        whole = self.start + self.text(room - len(asks)) + asks + answer + self.text(self.follow)
        return whole[: prompt + self.follow]

    def batch(self, n, prompt, kinds):
        return torch.tensor([self.one(prompt, self.random.choice(kinds)) for _ in range(n)])


def divergence(prediction, ids, prompt):
    """The mean KL divergence from full prefill over the tokens after the prompt."""
    with torch.no_grad():
        full = prediction.base.model(ids[:, :-1]).last_hidden_state[:, prompt - 1 :]
        full = prediction.base.lm_head(full).log_softmax(-1)
    return F.kl_div(prediction(ids, prompt).log_softmax(-1), full, log_target=True, reduction="none").sum(-1).mean()


def judge(prediction, samples, device, prompt):
    samples.random.seed(1)
    with torch.no_grad():
        kl = {
            kind: sum(divergence(prediction, samples.batch(4, prompt, [kind]).to(device), prompt).item() for _ in range(4)) / 4
            for kind in ("held-out", "copy", "look-up")
        }
    return ", ".join(f"{kind} {value:.3f}" for kind, value in kl.items())


def compare(prediction, tokens, logits):
    ids = torch.tensor(json.loads(pathlib.Path(tokens).read_text()))
    theirs = load_file(logits)["logits_last"]
    with torch.no_grad():
        ours = prediction(ids, ids.shape[1])[:, -1]
    apart, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    print(f"largest difference {apart:.2e}, of logits up to {size:.1f}; "
          f"best tokens {'equal' if torch.equal(ours.argmax(-1), theirs.argmax(-1)) else 'differ'}")  # fmt: skip
    raise SystemExit(0 if apart <= 1e-4 * max(1.0, size) else 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", type=pathlib.Path, required=True, help="folder of the base network")
    p.add_argument("--predictor", type=pathlib.Path, required=True, help="the predictor to begin with")
    p.add_argument("--text", nargs="+", help="UTF-8 files")
    p.add_argument("--out", type=pathlib.Path, help="folder to make")
    p.add_argument("--minutes", type=float, default=20, help="time to train (default 20)")
    p.add_argument("--steps", type=int, help="train for so many steps instead")
    p.add_argument("--prompt", type=int, nargs=2, default=[64, 256], metavar=("LOW", "HIGH"), help="lengths of prompts")
    p.add_argument("--follow", type=int, default=32, help="tokens after the prompt that count (default 32)")
    p.add_argument("--batch", type=int, default=8, help="sequences of a step (default 8)")
    p.add_argument("--rate", type=float, nargs=2, default=[1e-3, 2e-5], metavar=("FROM", "TO"), help="learning rates")
    p.add_argument("--base-tokens", type=int, default=1, metavar="M")
    p.add_argument("--sink-tokens", type=int, default=1, metavar="S")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--compare", nargs=2, metavar=("TOKENS", "LOGITS"), help="compare with logits of ttft, and stop")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    base = AutoModelForCausalLM.from_pretrained(a.base, dtype=torch.float32, attn_implementation="sdpa").to(a.device).eval()
    prediction = Prediction(base, a.predictor, a.base_tokens, a.sink_tokens).to(a.device)
    if a.compare:
        compare(prediction, *a.compare)
    if not a.text or not a.out or a.out.exists():
        raise SystemExit("give --text, and with --out a folder that is not there yet")
    if not len(prediction.maps):
        raise SystemExit(f"{a.predictor}: it has no maps to train")
    samples = Samples(Tokenizer.from_file(str(a.base / "tokenizer.json")), a.text, a.follow, a.seed)
    low, high = a.prompt
    before = judge(prediction, samples, a.device, high)
    print(f"KL to full prefill before: {before}", flush=True)
    samples.random.seed(a.seed + 2)
    optimizer = torch.optim.AdamW(prediction.maps.parameters(), lr=a.rate[0], weight_decay=0.0)
    began, step, tokens, mean = time.time(), 0, 0, None
    while True:
        done = step / a.steps if a.steps is not None else (time.time() - began) / (60 * a.minutes)
        if done >= 1 or a.steps == 0:
            break
        for group in optimizer.param_groups:
            group["lr"] = a.rate[1] + (a.rate[0] - a.rate[1]) * 0.5 * (1 + math.cos(math.pi * done))
        prompt = samples.random.randrange(low, high + 1)
        ids = samples.batch(a.batch, prompt, ["text", "text", "copy", "look-up"]).to(a.device)
        loss = divergence(prediction, ids, prompt)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prediction.maps.parameters(), 1.0)
        optimizer.step()
        step, tokens = step + 1, tokens + ids.numel()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0:
            print(f"step {step}, {tokens} tokens, {time.time() - began:.0f} s: KL {mean:.3f}", flush=True)
    after = judge(prediction, samples, a.device, high)
    print(f"KL to full prefill after: {after}")
    config = json.loads((a.predictor / "config.json").read_text())
    config["training"] = {
        "script": "train_maps.py", "steps": step, "tokens": tokens, "seconds": round(time.time() - began), "seed": a.seed,
        "base_tokens": a.base_tokens, "sink_tokens": a.sink_tokens, "prompt": a.prompt, "follow": a.follow, "batch": a.batch,
        "rate": a.rate, "kl_before": before, "kl_after": after,
    }  # fmt: skip
    # It appears under its name when it is complete.
    temp = a.out.with_name(f".{a.out.name}.part")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    save_file({n: t.cpu() for n, t in prediction.tensors().items()}, temp / "predictor.safetensors")
    (temp / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    temp.rename(a.out)
    print(f"wrote {a.out}")


if __name__ == "__main__":
    main()
