"""Networks of a folder (OpenELM, Llama, Qwen2, Qwen3) as GGUF, and their first token by llama.cpp."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open

# Names in a checkpoint and in GGUF.
OPENELM = {
    "transformer.token_embeddings": "token_embd", "transformer.norm": "output_norm", "attn_norm": "attn_norm",
    "attn.qkv_proj": "attn_qkv", "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm",
    "attn.out_proj": "attn_output", "ffn_norm": "ffn_norm", "ffn.proj_2": "ffn_down",
}
HUB = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def files(folder):
    """The files of a folder that hold its weights."""
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ["model.safetensors"]
    return [folder / name for name in sorted(names)]


def tensors(folder):
    """Name and values of every tensor, one after the other."""
    for path in files(folder):
        with safe_open(path, framework="pt") as f:
            for name in f.keys():
                yield name, f.get_tensor(name)


def renamed(name, names):
    """A checkpoint's name in GGUF; None for what nobody reads. llama.cpp itself refuses a file that lacks something."""
    parts = re.fullmatch(r"(?:(?:model|transformer)\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if not parts or parts[2] not in names:
        return None
    layer, stem, kind = parts.groups()
    return f"blk.{layer}.{names[stem]}.{kind}" if layer else f"{names[stem]}.{kind}"


def openelm(folder, out):
    """Writes the configuration; yields the tensors."""
    c = json.loads((folder / "config.json").read_text())
    n = c["num_transformer_layers"]
    out.add_block_count(n)
    out.add_context_length(c["max_context_length"])
    out.add_embedding_length(c["model_dim"])
    out.add_head_count(c["num_query_heads"])
    out.add_head_count_kv(c["num_kv_heads"])
    out.add_rope_freq_base(c["rope_freq_constant"])
    out.add_rope_dimension_count(c["head_dim"])
    out.add_key_length(c["head_dim"])
    out.add_value_length(c["head_dim"])
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(c["vocab_size"])
    widths = [0] * n
    for name, tensor in tensors(folder):
        if proj_1 := re.search(r"layers\.(\d+)\.ffn\.proj_1", name):
            gate, up = tensor.chunk(2)
            widths[int(proj_1[1])] = gate.shape[0]
            yield f"blk.{proj_1[1]}.ffn_gate.weight", gate.contiguous()
            yield f"blk.{proj_1[1]}.ffn_up.weight", up.contiguous()
        else:
            yield renamed(name, OPENELM), tensor
    out.add_feed_forward_length(widths)


def hub(folder, out):
    """Writes the configuration; yields the tensors."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    c = AutoConfig.from_pretrained(folder, local_files_only=True)
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    d = getattr(c, "head_dim", None) or c.hidden_size // heads
    theta, rope = c.rope_parameters["rope_theta"], c.rope_parameters["rope_type"]
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_rope_freq_base(theta)
    out.add_rope_dimension_count(d)
    out.add_key_length(d)
    out.add_value_length(d)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_vocab_size(c.vocab_size)
    if rope == "llama3":
        plain = theta ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
        yield "rope_freqs.weight", plain / ROPE_INIT_FUNCTIONS[rope](c, "cpu")[0]
    elif rope != "default":
        raise SystemExit(f"{folder}: RoPE {rope} is not converted")
    for name, tensor in tensors(folder):
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        if c.model_type == "llama" and (of := re.search(r"self_attn\.([qk])_proj", name)):
            # llama.cpp rotates neighbours in its llama files, halves elsewhere.
            pairs = tensor.unflatten(0, (heads if of[1] == "q" else kv_heads, 2, d // 2))
            tensor = pairs.transpose(1, 2).flatten(0, 2).contiguous()
        yield renamed(name, HUB), tensor


def bits(tensor):
    """A torch tensor as numpy; BF16, which numpy lacks, as its bytes."""
    return tensor.view(torch.uint8).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def write(folder, path):
    """The network in `folder` as a GGUF file, weights in the type they have, vectors in F32 as llama.cpp wants them."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    out = gguf.GGUFWriter(path, family)
    out.add_tokenizer_model("no_vocab")
    for name, tensor in {"openelm": openelm}.get(family, hub)(folder, out):
        if name is None:
            continue
        tensor = tensor.float() if tensor.dim() == 1 else tensor
        kind = gguf.GGMLQuantizationType.BF16 if tensor.dtype == torch.bfloat16 else None
        out.add_tensor(name, bits(tensor), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def network(folder, kept, threads, exact=False):
    """A function of ids [1, prompt] that computes the logits [1, V] of the first token from an empty cache. The GGUF file is
    kept in the folder `kept`."""
    from llama_cpp import Llama, llama_get_logits_ith

    folder = Path(folder).resolve()
    path = kept / ("-".join(folder.parts[1:]) + ".gguf")
    if not path.exists() or path.stat().st_mtime < max(f.stat().st_mtime for f in folder.iterdir()):
        kept.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write(folder, partial)
        partial.rename(path)
    # The fast way holds keys and values in F16, even where its cache is F32.
    how = {"type_k": 0, "type_v": 0, "flash_attn": False} if exact else {"flash_attn": True}
    llama = Llama(str(path), n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
                  verbose=False, **how)

    def first_logits(ids):
        # From position 0 on, which drops the cache of the call before; logits of the last token alone.
        llama.reset()
        llama.eval(ids[0].tolist())
        logits = llama_get_logits_ith(llama.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(1, llama.n_vocab())).copy()

    return first_logits
