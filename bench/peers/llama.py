"""OpenELM in llama.cpp: a folder of `ttft synth` as GGUF, and its time to first token."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

# Names in a checkpoint and in GGUF.
LAYER = {
    "attn_norm": "attn_norm", "attn.qkv_proj": "attn_qkv", "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm",
    "attn.out_proj": "attn_output", "ffn_norm": "ffn_norm", "ffn.proj_2": "ffn_down",
}


def bits(tensor):
    """A torch tensor as numpy; BF16, which numpy lacks, as its bytes."""
    import torch

    return tensor.view(torch.uint8).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def write(folder, path):
    """The network in `folder` as a GGUF file, weights in the type they have, norms in F32 as llama.cpp wants them."""
    c = json.loads((Path(folder) / "config.json").read_text())
    n = c["num_transformer_layers"]
    out = gguf.GGUFWriter(path, "openelm")
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
    out.add_tokenizer_model("no_vocab")
    out.add_vocab_size(c["vocab_size"])
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as f:
        get = lambda name: f.get_tensor(f"transformer.{name}.weight")
        tensors = [("token_embd", get("token_embeddings")), ("output_norm", get("norm"))]
        widths = []
        for i in range(n):
            tensors += [(f"blk.{i}.{to}", get(f"layers.{i}.{name}")) for name, to in LAYER.items()]
            gate, up = get(f"layers.{i}.ffn.proj_1").chunk(2)
            tensors += [(f"blk.{i}.ffn_gate", gate.contiguous()), (f"blk.{i}.ffn_up", up.contiguous())]
            widths.append(gate.shape[0])
        out.add_feed_forward_length(widths)
        for name, tensor in tensors:
            tensor = tensor.float() if tensor.dim() == 1 else tensor
            kind = gguf.GGMLQuantizationType.BF16 if tensor.element_size() == 2 else None
            out.add_tensor(f"{name}.weight", bits(tensor), raw_dtype=kind)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
    out.close()


def network(folder, path, dtype, threads):
    """A function of ids [1, prompt] that computes the first token from an empty cache; None for other batches."""
    from llama_cpp import Llama, llama_get_logits_ith

    if not path.exists():
        write(folder, path)
    llama = Llama(str(path), n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
                  flash_attn=True, verbose=False)

    def first_token(ids):
        if len(ids) != 1:
            return None
        # From position 0 on, which drops the cache of the call before; logits of the last token alone.
        llama.reset()
        llama.eval(ids[0].tolist())
        logits = llama_get_logits_ith(llama.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(llama.n_vocab(),))))

    return first_token
