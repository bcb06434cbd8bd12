"""Networks of the Hub (Llama, Qwen2, Qwen3) as transformers computes them, and KV prediction around them.

The networks are transformers' own, with scaled dot-product attention; the output head sees the last position alone. For KV
prediction the auxiliary stops at the last keys and values that the predictor reads.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import rotate_half
from transformers.utils import logging

logging.disable_progress_bar()


class Enough(Exception):
    """Ends a forward pass whose rest nobody reads."""


class Network:
    def __init__(self, folder, dtype):
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=dtype, local_files_only=True)
        self.attention = [layer.self_attn for layer in self.model.model.layers]

    def first_logits(self, ids, cache=None):
        """Logits [B, V] of the position after `ids` [B, n], behind the `cache`."""
        return self.model(ids, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def raw(self, ids, layers):
        """Keys before norm and rotation, and values, [B, n, heads d], of the first `layers` layers."""
        raw = []

        def keep(_module, _input, output):
            raw.append(output)
            if len(raw) == 2 * layers:
                raise Enough

        hooks = [p.register_forward_hook(keep) for a in self.attention[:layers] for p in (a.k_proj, a.v_proj)]
        try:
            self.model.model(ids, use_cache=False)
        except Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return list(zip(raw[::2], raw[1::2]))


class KvPrediction:
    """A base and an auxiliary with the predictor of a folder, or with one that predicts nothing."""

    def __init__(self, base, aux, predictor, dtype):
        self.base, self.aux = Network(base, dtype), Network(aux, dtype)
        if predictor:
            self.read(Path(predictor), dtype)
        else:
            self.make(dtype)

    def read(self, folder, dtype):
        c = json.loads((folder / "config.json").read_text())
        if c.get("source", "auxiliary") != "auxiliary" or c.get("input", "kv") != "kv":
            raise SystemExit(f"{folder}: only a predictor from an auxiliary's keys and values is timed here")
        t = {k: v.to(dtype) for k, v in load_file(folder / "predictor.safetensors").items()}
        self.map = c.get("source_layer_for_base_layer") or c["aux_layer_for_base_layer"]
        kind = lambda kind, i: (t[f"{kind}_transforms.{i}.weight"], t[f"{kind}_transforms.{i}.bias"])
        self.maps = [(kind("key", i), kind("value", i)) for i in range(len(self.map))]

    def make(self, dtype):
        """Random maps of the right shape, layers by the paper's rule."""
        to, of = len(self.base.attention), len(self.aux.attention)
        if to >= of:
            self.map = [j for j in range(of) for _ in range(to // of + (j < to % of))]
        else:
            self.map = [-(-(i + 1) * of // to) - 1 for i in range(to)]
        self.maps = []
        for layer, j in zip(self.base.attention, self.map):
            shapes = [(getattr(layer, p).out_features, getattr(self.aux.attention[j], p).out_features)
                      for p in ("k_proj", "v_proj")]
            self.maps.append([(torch.randn(s, dtype=dtype) / 32, torch.zeros(s[0], dtype=dtype)) for s in shapes])

    def predict(self, raw):
        """The base's cache from the auxiliary's raw keys and values."""
        cache = DynamicCache(config=self.base.model.config)
        x = raw[0][0]
        cos, sin = self.base.model.model.rotary_emb(x, position_ids=torch.arange(x.shape[1])[None])
        for i, (layer, j, maps) in enumerate(zip(self.base.attention, self.map, self.maps)):
            k, v = (F.linear(x, *map).unflatten(-1, (-1, layer.head_dim)) for x, map in zip(raw[j], maps))
            if hasattr(layer, "k_norm"):
                k = layer.k_norm(k)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            cache.update(k * cos[:, None] + rotate_half(k) * sin[:, None], v, i)
        return cache

    def first_logits(self, ids):
        raw = self.aux.raw(ids[:, :-1], max(self.map) + 1)
        return self.base.first_logits(ids[:, -1:], self.predict(raw))
