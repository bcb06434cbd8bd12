"""OpenELM and KV prediction in PyTorch, eager, on the folders that `ttft synth` writes.

Computes what `ttft` computes for the first token, and no more: the last layer beyond its keys and values, and the output
head, for the last position alone; nothing of the auxiliary after its last keys and values. Fused where PyTorch has a fused
operator: rms_norm, scaled dot-product attention, the product with its bias.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

EPS = 1e-6


def linear(weight, bias=None, prepack=0):
    """x -> x W^T + b. With `prepack`, oneDNN reorders W once, for that many rows of x."""
    if not prepack:
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, prepack)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, EPS)


def rope(x, start, theta):
    """Rotates x [B, heads, n, d], half-split, at positions start.. ; in f32, as the reference."""
    n, d = x.shape[-2:]
    inverse = theta ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
    angles = torch.arange(start, start + n, dtype=torch.float32)[:, None] * inverse
    cos, sin = angles.cos(), angles.sin()
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Layer:
    def __init__(self, t, i, c, rows, last):
        w = lambda name: t[f"transformer.layers.{i}.{name}.weight"]
        self.heads, self.kv_heads = c["num_query_heads"][i], c["num_kv_heads"][i]
        self.attn_norm, self.ffn_norm = w("attn_norm"), w("ffn_norm")
        self.q_norm, self.k_norm = w("attn.q_norm"), w("attn.k_norm")
        q_dim = self.heads * c["head_dim"]
        qkv = w("attn.qkv_proj")
        # The last layer projects queries of other rows than keys and values.
        self.q = linear(qkv[:q_dim].contiguous(), None, rows) if last else None
        self.kv = linear(qkv[q_dim:].contiguous(), None, rows) if last else None
        self.qkv = None if last else linear(qkv, None, rows)
        self.out = linear(w("attn.out_proj"), None, rows)
        self.proj_1, self.proj_2 = linear(w("ffn.proj_1"), None, rows), linear(w("ffn.proj_2"), None, rows)


class Network:
    """One network. `prepack`: rows of x that oneDNN packs the weights for, or 0."""

    def __init__(self, folder, dtype, prepack=0):
        self.c = json.loads((Path(folder) / "config.json").read_text())
        t = {k: v.to(dtype) for k, v in load_file(Path(folder) / "model.safetensors").items()}
        n = self.c["num_transformer_layers"]
        self.embedding = t["transformer.token_embeddings.weight"]
        self.layers = [Layer(t, i, self.c, prepack, i == n - 1) for i in range(n)]
        self.norm = t["transformer.norm.weight"]
        self.head = linear(self.embedding, None, prepack)
        self.theta = self.c.get("rope_freq_constant", 10000)

    def split(self, x, heads):
        """[B, n, heads d] -> [B, heads, n, d]."""
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def kv(self, layer, kv):
        """Raw keys and values, [B, heads, n, d]."""
        k, v = kv.chunk(2, -1)
        return self.split(k, layer.kv_heads), self.split(v, layer.kv_heads)

    def layer(self, layer, x, past=None, only_last=False, only_kv=False, raw=None):
        """One layer over x [B, n, D] behind the `past` (keys normed and rotated, values). `raw` receives its keys and values
        before norm and rotation."""
        h, d = norm(x, layer.attn_norm), self.c["head_dim"]
        start = past[0].shape[2] if past else 0
        if layer.qkv:
            q, kv = layer.qkv(h).split([layer.heads * d, 2 * layer.kv_heads * d], -1)
        else:
            kv = layer.kv(h)
        k, v = self.kv(layer, kv)
        if raw is not None:
            raw.append((k, v))
        if only_kv:
            return None
        k = rope(norm(k, layer.k_norm), start, self.theta)
        if past:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        if only_last:
            x, h = x[:, -1:], h[:, -1:]
        if not layer.qkv:
            q = layer.q(h)
        elif only_last:
            q = q[:, -1:]
        at = k.shape[2] - x.shape[1]
        q = rope(norm(self.split(q, layer.heads), layer.q_norm), at, self.theta)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)
        x = x + layer.out(o.transpose(1, 2).flatten(-2))
        a, b = layer.proj_1(norm(x, layer.ffn_norm)).chunk(2, -1)
        return x + layer.proj_2(F.silu(a) * b)

    def first_logits(self, ids, past=None):
        """Logits [B, V] of the position after `ids` [B, n]."""
        x = F.embedding(ids, self.embedding)
        for i, layer in enumerate(self.layers):
            x = self.layer(layer, x, past[i] if past else None, only_last=i == len(self.layers) - 1)
        return self.head(norm(x[:, -1], self.norm))


class KvPrediction:
    """The networks and the predictor of three folders."""

    def __init__(self, base, aux, predictor, dtype, prepack=0):
        self.base, self.aux = Network(base, dtype, prepack), Network(aux, dtype, prepack)
        c = json.loads((Path(predictor) / "config.json").read_text())
        self.map = c["aux_layer_for_base_layer"]
        t = {k: v.to(dtype) for k, v in load_file(Path(predictor) / "predictor.safetensors").items()}
        lin = lambda kind, i: linear(
            t[f"{kind}_transforms.{i}.weight"], t[f"{kind}_transforms.{i}.bias"], prepack)
        self.maps = [(lin("key", i), lin("value", i)) for i in range(len(self.map))]

    def auxiliary(self, ids):
        raw, last = [], max(self.map)
        x = F.embedding(ids, self.aux.embedding)
        for j, layer in enumerate(self.aux.layers[: last + 1]):
            x = self.aux.layer(layer, x, only_kv=j == last, raw=raw)
        return raw

    def predict(self, raw):
        past = []
        for layer, j, (key, value) in zip(self.base.layers, self.map, self.maps):
            k, v = (f(x.transpose(1, 2).flatten(-2)) for f, x in zip((key, value), raw[j]))
            k, v = self.base.split(k, layer.kv_heads), self.base.split(v, layer.kv_heads)
            past.append((rope(norm(k, layer.k_norm), 0, self.base.theta), v))
        return past

    def first_logits(self, ids):
        raw = self.auxiliary(ids[:, :-1])
        return self.base.first_logits(ids[:, -1:], self.predict(raw))
