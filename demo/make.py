#!/usr/bin/env python3
"""Makes the demo checkpoint: sample -> tokenizer -> train.

sample     draws stories from a larger story model (LLaMA layout) and splits off held-out and calibration text
tokenizer  trains a byte-level BPE of 1024 tokens on the sampled text
train      trains a small LLaMA from scratch on it, saves it as bf16 and checks the saved files
all        the three in turn

Nothing of the story model's weights is used but through the text it writes. Needs torch, transformers,
tokenizers and safetensors; runs on a CPU. Intermediate text goes to --work, the deliverables to --out.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

UNK, BOS, EOS = 0, 1, 2
CONTEXT = 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def log(*parts):
    """Prints at once, so that a log file can be followed."""
    print(*parts, flush=True)


# ---------------------------------------------------------------------------------------------- sample


class Sampler:
    """Batched sampling from a LLaMA checkpoint with a preallocated key/value cache."""

    def __init__(self, path, batch, length):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        c = self.config = model.config
        self.w = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
        self.batch, self.length = batch, length
        self.heads, self.kv = c.num_attention_heads, c.num_key_value_heads
        self.dim = c.hidden_size // self.heads
        theta = json.loads((Path(path) / "config.json").read_text())["rope_theta"]
        freq = theta ** (-torch.arange(0, self.dim, 2).float() / self.dim)
        angle = torch.outer(torch.arange(length).float(), freq).repeat(1, 2)
        self.cos, self.sin = angle.cos(), angle.sin()
        shape = (c.num_hidden_layers, 2, batch * self.kv, length, self.dim)
        self.cache = torch.zeros(shape)

    def norm(self, x, name):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.w[name], self.config.rms_norm_eps)

    def rope(self, x, t):
        a, b = x.chunk(2, -1)
        return x * self.cos[t] + torch.cat((-b, a), -1) * self.sin[t]

    def logits(self, ids, t):
        """Next-token logits for `ids` [n] at position t; rows beyond n in the cache are unused."""
        n, w, linear = len(ids), self.w, torch.nn.functional.linear
        x = w["embed_tokens.weight"][ids]
        for i in range(self.config.num_hidden_layers):
            p = f"layers.{i}."
            h = self.norm(x, p + "input_layernorm.weight")
            q, k, v = (linear(h, w[p + f"self_attn.{c}_proj.weight"]).view(n, -1, self.dim) for c in "qkv")
            keys, values = self.cache[i, 0, : n * self.kv], self.cache[i, 1, : n * self.kv]
            keys[:, t] = self.rope(k, t).view(-1, self.dim)
            values[:, t] = v.reshape(-1, self.dim)
            q = self.rope(q, t).view(n * self.kv, self.heads // self.kv, self.dim)
            s = torch.bmm(q, keys[:, : t + 1].transpose(1, 2)) * self.dim**-0.5
            x = x + linear(torch.bmm(s.softmax(-1), values[:, : t + 1]).view(n, -1), w[p + "self_attn.o_proj.weight"])
            h = self.norm(x, p + "post_attention_layernorm.weight")
            gate = torch.nn.functional.silu(linear(h, w[p + "mlp.gate_proj.weight"]))
            x = x + linear(gate * linear(h, w[p + "mlp.up_proj.weight"]), w[p + "mlp.down_proj.weight"])
        return linear(self.norm(x, "norm.weight"), w["lm_head.weight"])

    @torch.inference_mode()
    def sample(self, temperature, generator):
        """Token lists of the stories of one batch that ended (in EOS or in the next story's BOS)."""
        ids, tokens, done = torch.full((self.batch,), BOS), [], []
        for t in range(self.length):
            scores = self.logits(ids, t).div_(temperature)
            below = scores.sub_(scores.amax(-1, keepdim=True)).exp_().cumsum(-1)
            draw = torch.rand(len(ids), 1, generator=generator) * below[:, -1:]
            ids = torch.searchsorted(below, draw, right=True).flatten().clamp_(max=below.shape[1] - 1)
            tokens = ids[:, None] if t == 0 else torch.cat((tokens, ids[:, None]), 1)
            if t % 16 == 15 or t + 1 == self.length:  # take finished rows out of the batch
                ended = ((tokens == EOS) | (tokens == BOS)).any(1)
                for row in tokens[ended].tolist():
                    done.append(row[: min(row.index(e) for e in (BOS, EOS) if e in row)])
                keep = (~ended).nonzero().flatten()
                if len(keep) == 0:
                    break
                if len(keep) < len(ids):
                    rows = (keep[:, None] * self.kv + torch.arange(self.kv)).flatten()
                    self.cache[:, :, : len(rows), : t + 1] = self.cache[:, :, rows, : t + 1]
                    ids, tokens = ids[keep], tokens[keep]
        return done


def clean(text):
    """One story as plain lines: no blank lines, no spaces at line ends."""
    return "\n".join(line for line in (part.strip() for part in text.split("\n")) if line)


def stage_sample(a):
    """Samples about --tokens story tokens; writes stories, held-out.jsonl and calibration.txt."""
    sampler = Sampler(a.model, 256, 320)
    tok = AutoTokenizer.from_pretrained(a.model)
    generator = torch.Generator().manual_seed(a.seed)
    stories, seen, count, start, round_ = [], set(), 0, time.time(), 0
    while count < a.tokens:
        done = sampler.sample(a.temperature, generator)
        for ids, text in zip(done, tok.batch_decode(done)):
            text = clean(text)
            if text.isascii() and len(text) >= 200 and text[-1] in '.!?"' and text not in seen:
                seen.add(text)
                stories.append(text)
                count += len(ids)
        round_ += 1
        if round_ % 5 == 0:
            log(f"sampled {len(stories)} stories, {count} tokens, {count / (time.time() - start):.0f} tokens/s")
    random.Random(a.seed).shuffle(stories)
    held, rest = stories[: a.held_out], stories[a.held_out :]
    a.out.joinpath("held-out.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in held))
    size, calibration = 0, []
    for s in rest:
        if size >= 60_000:
            break
        calibration.append(s)
        size += len(s) + 2
    a.out.joinpath("calibration.txt").write_text("\n\n".join(calibration) + "\n")
    a.work.joinpath("stories.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in rest))
    log(f"{len(rest)} training stories, {sum(map(len, rest))} bytes; held out {len(held)}; {time.time() - start:.0f} s")


def read_stories(path):
    """The texts of a .jsonl file."""
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------- tokenizer


def stage_tokenizer(a):
    """Trains the byte-level BPE; every byte has a token, so any text goes there and back unchanged."""
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stories = read_stories(a.work / "stories.jsonl")
    tok.train_from_iterator(stories, trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    assert [tok.token_to_id(t) for t in ("<unk>", "<s>", "</s>")] == [UNK, BOS, EOS]
    assert tok.get_vocab_size() == CONFIG["vocab_size"]
    for text in stories[:100] + ["Tim said: \"caf\u00e9\"  \u2014 \u732b\n"]:
        assert tok.decode(tok.encode(text).ids) == text
    tok.save(str(a.checkpoint / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": CONTEXT,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    a.checkpoint.joinpath("tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    sample = stories[:1000]
    n = sum(len(e.ids) for e in tok.encode_batch(sample))
    log(f"tokenizer: {sum(map(len, sample)) / n:.2f} bytes a token, {n / len(sample):.0f} tokens a story")


# ----------------------------------------------------------------------------------------------- train


@torch.no_grad()
def held_out_nll(model, tok, texts):
    """Mean NLL of a predicted token, each text BOS + tokens cut at the context; also NLL per text byte."""
    total, count, size = 0.0, 0, 0
    for text in texts:
        ids = tok.encode(text).ids[:CONTEXT]
        x = torch.tensor([ids])
        logits = model(input_ids=x).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="sum").item()
        count += len(ids) - 1
        size += len(tok.decode(ids).encode())
    return total / count, total / size


def batches(stream, starts, batch, generator):
    """Endless [batch, CONTEXT + 1] windows of the stream, half of them at a story's start."""
    last = len(stream) - CONTEXT - 1
    starts = starts[starts <= last]
    span = torch.arange(CONTEXT + 1)
    order, at, half = starts[:0], 0, batch // 2
    while True:
        if at + half > len(order):
            order, at = starts[torch.randperm(len(starts), generator=generator)], 0
        free = torch.randint(0, last + 1, (batch - half,), generator=generator)
        yield stream[torch.cat((order[at : at + half], free))[:, None] + span]
        at += half


def stage_train(a):
    """Trains for --steps steps (AdamW, warm-up and cosine), then saves and checks the checkpoint."""
    torch.manual_seed(a.seed)
    generator = torch.Generator().manual_seed(a.seed + 1)
    tok = Tokenizer.from_file(str(a.checkpoint / "tokenizer.json"))
    held = read_stories(a.out / "held-out.jsonl")
    encoded = [e.ids + [EOS] for e in tok.encode_batch(read_stories(a.work / "stories.jsonl"))]
    stream = torch.tensor([i for ids in encoded for i in ids])
    starts = (stream == BOS).nonzero().flatten()
    # Transformers 5 wants rope_theta inside rope_parameters; the saved config keeps the older key.
    saved_only = ("architectures", "torch_dtype", "rope_scaling")
    config = LlamaConfig(**{k: v for k, v in CONFIG.items() if k not in saved_only})
    model = LlamaForCausalLM(config).float()
    assert config.rope_parameters["rope_theta"] == CONFIG["rope_theta"]
    log(f"{sum(p.numel() for p in model.parameters())} parameters, {len(stream)} tokens, {len(starts)} stories")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model, dynamic=False) if a.compile else model
    warm, start, smooth = max(1, min(100, a.steps // 10)), time.time(), None
    for step, window in zip(range(a.steps), batches(stream, starts, a.batch, generator)):
        rate = min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / a.steps)))
        for group in optimizer.param_groups:
            group["lr"] = a.lr * rate
        logits = run(input_ids=window[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if step % 20 == 0:
            log(f"step {step} loss {smooth:.4f} {(time.time() - start) / (step + 1):.3f} s/step")
        if step % 200 == 199 or step + 1 == a.steps:
            log(f"step {step} held-out NLL {held_out_nll(model, tok, held)[0]:.4f}")
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, a.checkpoint / "model.safetensors", metadata={"format": "pt"})
    a.checkpoint.joinpath("config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    log(f"trained {a.steps} steps of {a.batch} x {CONTEXT} tokens in {time.time() - start:.0f} s")
    stage_check(a)


def stage_check(a):
    """Reloads the saved files, prints the held-out figures (bf16 weights, f32 arithmetic) and one sample."""
    model = AutoModelForCausalLM.from_pretrained(a.checkpoint, dtype=torch.float32).eval()
    assert AutoModelForCausalLM.from_pretrained(a.checkpoint).dtype == torch.bfloat16
    tok = Tokenizer.from_file(str(a.checkpoint / "tokenizer.json"))
    fast = AutoTokenizer.from_pretrained(a.checkpoint)
    held = read_stories(a.out / "held-out.jsonl")
    assert all(fast(text).input_ids == tok.encode(text).ids for text in held)
    assert all(m.weight.shape[0] % 64 == 0 == m.weight.shape[1] % 64
               for m in model.modules() if isinstance(m, torch.nn.Linear))
    nll, per_byte = held_out_nll(model, tok, held)
    log(f"held-out NLL {nll:.4f} a token, perplexity {math.exp(nll):.3f}, {per_byte / math.log(2):.4f} bits a byte")
    size = sum(f.stat().st_size for f in a.checkpoint.iterdir())
    log(f"checkpoint {size} bytes")
    assert size <= 4_000_000
    torch.manual_seed(a.seed)
    prompt = torch.tensor([tok.encode("Once upon a time").ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=0.7, top_k=0,
                         max_length=CONTEXT, pad_token_id=EOS)
    log("sample:\n" + tok.decode(out[0].tolist()))


def main():
    """Parses the arguments and runs the chosen stage."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=["sample", "tokenizer", "train", "check", "all"])
    p.add_argument("--model", type=Path, required=True, help="folder of the story model")
    p.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the deliverables")
    p.add_argument("--work", type=Path, default=Path("target/demo"), help="folder of the sampled training text")
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", type=int, default=3_000_000, help="story model tokens to sample")
    p.add_argument("--temperature", type=float, default=0.7)
    p.add_argument("--held-out", type=int, default=60, help="stories kept out of training")
    p.add_argument("--steps", type=int, default=2200)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--compile", action="store_true", help="use torch.compile")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    a.checkpoint = a.out / "checkpoint"
    a.checkpoint.mkdir(parents=True, exist_ok=True)
    a.work.mkdir(parents=True, exist_ok=True)
    for stage in ("sample", "tokenizer", "train") if a.stage == "all" else (a.stage,):
        globals()["stage_" + stage](a)


if __name__ == "__main__":
    main()
