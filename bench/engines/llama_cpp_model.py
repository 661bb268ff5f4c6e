"""llama.cpp on a whole model: tokens a second of a random qwen2 checkpoint, by default of Qwen2-0.5B's shape.

    python llama_cpp_model.py --threads 2 --value-type BF16 --work-dir DIR

Writes the model to DIR as GGUF once (BF16; the others are made of it by llama.cpp's own quantizer, by its own rules),
and prints one line of JSON: the medians over --rounds of a prompt of --prefill tokens, and of --decode tokens, one after
the other and each the likeliest, that follow a prompt of 16. There is no tokenizer: tokens are given by number.
"""

import argparse
import ctypes
import importlib.metadata
import json
import pathlib
import statistics
import sys
import time

import gguf
import llama_cpp as llama
import numpy as np

FTYPES = {"BF16": None, "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0}
QWEN2_05B = dict(hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2, head_dim=64, vocab=151936, tied=True)
DECODE_PROMPT = 16


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--work-dir", type=pathlib.Path, required=True)
    parser.add_argument("--value-type", choices=FTYPES, default="BF16")
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    for name, value in QWEN2_05B.items():
        action = argparse.BooleanOptionalAction if name == "tied" else None
        kind = {} if action else {"type": int}
        parser.add_argument("--" + name.replace("_", "-"), default=value, action=action, **kind)
    return parser.parse_args()


def write_random(path, shape):
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(shape.layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    generator = np.random.default_rng(0)
    bf16 = gguf.GGMLQuantizationType.BF16

    def matrix(name, rows, cols):
        values = generator.standard_normal((rows, cols), dtype=np.float32) / np.float32(cols**0.5)
        writer.add_tensor(name + ".weight", gguf.quants.quantize(values, bf16), raw_dtype=bf16)

    def vector(name, values):
        writer.add_tensor(name, values.astype(np.float32))

    matrix("token_embd", shape.vocab, shape.hidden)
    if not shape.tied:
        matrix("output", shape.vocab, shape.hidden)
    vector("output_norm.weight", np.ones(shape.hidden))
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for name, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            matrix(block + name, rows, shape.hidden)
            vector(block + name + ".bias", 0.1 * generator.standard_normal(rows))
        matrix(block + "attn_output", shape.hidden, queries)
        matrix(block + "ffn_gate", shape.intermediate, shape.hidden)
        matrix(block + "ffn_up", shape.intermediate, shape.hidden)
        matrix(block + "ffn_down", shape.hidden, shape.intermediate)
        vector(block + "attn_norm.weight", np.ones(shape.hidden))
        vector(block + "ffn_norm.weight", np.ones(shape.hidden))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def made(path, make):
    """`path`, made under another name first where it is not there yet."""
    if not path.exists():
        part = path.with_suffix(".part")
        make(part)
        part.rename(path)
    return path


def model_file(shape):
    shape.work_dir.mkdir(parents=True, exist_ok=True)
    name = "qwen2-" + "-".join(str(int(getattr(shape, key))) for key in QWEN2_05B)
    source = made(shape.work_dir / f"{name}-BF16.gguf", lambda path: write_random(path, shape))
    if shape.value_type == "BF16":
        return source

    def quantize(path):
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype, parameters.nthread = FTYPES[shape.value_type], shape.threads
        status = llama.llama_model_quantize(bytes(source), bytes(path), ctypes.byref(parameters))
        assert status == 0, f"llama_model_quantize: {status}"

    return made(shape.work_dir / f"{name}-{shape.value_type}.gguf", quantize)


class Session:
    def __init__(self, path, shape):
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = llama.llama_model_load_from_file(bytes(path), parameters)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = max(shape.prefill, DECODE_PROMPT + shape.decode)
        parameters.n_batch = parameters.n_ubatch = parameters.n_ctx
        parameters.n_threads = parameters.n_threads_batch = shape.threads
        self.context = llama.llama_init_from_model(model, parameters)
        assert self.context, "llama.cpp made no context"
        self.vocab = shape.vocab

    def clear(self):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def likeliest_after(self, tokens):
        numbers = (llama.llama_token * len(tokens))(*tokens)  # the batch only points at them
        status = llama.llama_decode(self.context, llama.llama_batch_get_one(numbers, len(tokens)))
        assert status == 0, f"llama_decode: {status}"
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, -1), (self.vocab,))
        assert np.isfinite(logits).all(), "logits are not finite"
        return int(logits.argmax())


def main():
    shape = arguments()
    # llama.cpp prints on the standard error; its warnings stay, its progress goes.
    silent = llama.llama_log_callback(
        lambda level, text, _: level in (3, 4) and sys.stderr.write(text.decode()) and None
    )
    llama.llama_log_set(silent, None)
    path = model_file(shape)
    session = Session(path, shape)
    tokens = np.random.default_rng(1).integers(shape.vocab, size=shape.prefill).tolist()
    prefill, decode = [], []
    for _ in range(shape.rounds + 1):
        session.clear()
        start = time.perf_counter()
        session.likeliest_after(tokens)
        prefill.append(shape.prefill / (time.perf_counter() - start))
        session.clear()
        token = session.likeliest_after(tokens[:DECODE_PROMPT])
        start = time.perf_counter()
        for _ in range(shape.decode):
            token = session.likeliest_after([token])
        decode.append(shape.decode / (time.perf_counter() - start))
    # The first round warms up.
    result = {
        "engine": "llama.cpp",
        "version": "llama-cpp-python " + importlib.metadata.version("llama-cpp-python"),
        "value_type": shape.value_type,
        "threads": shape.threads,
        "bytes": path.stat().st_size,
        "prefill_tokens_per_second": statistics.median(prefill[1:]),
        "decode_tokens_per_second": statistics.median(decode[1:]),
        "rounds": shape.rounds,
    }
    print(json.dumps(result))


main()
