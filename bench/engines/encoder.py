"""Whole encoders, dense, from a Hugging Face folder: bert, roberta, vit and deit in PyTorch, OpenVINO or ONNX Runtime.

    python encoder.py --engine openvino --model DIR --threads 2

Every engine starts from the model that transformers loads. README.md has the protocol and the batch that goes in.
"""

import argparse
import pathlib
import tempfile

from protocol import Fastest, Unsupported, answers_alone, arguments, converse, measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--engine", choices=["pytorch", "openvino", "onnxruntime"], required=True)
parser.add_argument("--model", type=pathlib.Path, required=True)
GIVEN = arguments(parser)
ANSWERS = answers_alone()

import numpy as np
import torch
import transformers

torch.set_num_threads(GIVEN.threads)
transformers.logging.set_verbosity_error()
CONFIG = transformers.AutoConfig.from_pretrained(GIVEN.model)
TEXT, IMAGES = ("bert", "roberta"), ("vit", "deit")


class Encoder(torch.nn.Module):
    """From token ids to the last hidden states, or from pixels to logits."""

    def __init__(self):
        super().__init__()
        if CONFIG.model_type in TEXT:
            load, options = transformers.AutoModel, {"add_pooling_layer": False}
        else:
            load, options = transformers.AutoModelForImageClassification, {}
        self.model = load.from_pretrained(GIVEN.model, dtype=torch.float32, **options).eval()

    def forward(self, x):
        if CONFIG.model_type in TEXT:
            return self.model(input_ids=x).last_hidden_state
        return self.model(pixel_values=x).logits


def batch_of(count, tokens):
    """Token ids [count, tokens], 2 + (7919·b + 104729·t) mod (vocabulary − 2), which is never padding; or pixels of
    `count` images, value i of them all (7919·i mod 65536) / 32768 − 1."""
    if CONFIG.model_type in TEXT:
        ids = np.arange(count)[:, None] * 7919 + np.arange(tokens) * 104729
        return 2 + ids % (CONFIG.vocab_size - 2)
    shape = (count, CONFIG.num_channels, CONFIG.image_size, CONFIG.image_size)
    pixels = np.arange(np.prod(shape)) * 7919 % 65536 / 32768 - 1
    return pixels.astype(np.float32).reshape(shape)


class PyTorch:
    version = torch.__version__
    # Scaled dot-product attention in both. Compiled, linear layers are packed, by MKL (f32) or oneDNN (bf16).
    variants = {"f32": ["eager", "compile"]}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # without an instruction it takes ten times as long as f32 and more
        variants["bf16"] = ["eager", "compile"]

    def build(self, value_type, variant, x):
        model, x = Encoder(), torch.from_numpy(x)
        if value_type == "bf16":
            model, x = model.bfloat16(), x.bfloat16() if x.is_floating_point() else x
        if variant == "compile":
            torch._dynamo.reset()  # it compiles one function a few times only
            torch._inductor.config.freezing = True
            torch._inductor.config.compile_threads = 1
            model = torch.compile(model)

        @torch.no_grad()  # inference_mode would keep the compiler from freezing
        def forward():
            return model(x).float().numpy()

        return forward


class OpenVino:
    variants = {value_type: ["1 stream", "a stream a thread"] for value_type in ("f32", "bf16")}

    def __init__(self):
        import openvino

        self.library, self.version = openvino, openvino.__version__

    def build(self, value_type, variant, x):
        streams = 1 if variant == "1 stream" else GIVEN.threads
        if len(x) % streams or (streams == 1) != (variant == "1 stream"):
            raise Unsupported(f"{len(x)} inputs are not to be shared by {streams} streams")
        config = {
            "INFERENCE_PRECISION_HINT": value_type,
            "INFERENCE_NUM_THREADS": GIVEN.threads,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
        }
        parts = np.split(x, streams)
        model = self.library.convert_model(Encoder(), example_input=torch.from_numpy(parts[0]))
        model.reshape(parts[0].shape)
        compiled = self.library.Core().compile_model(model, "CPU", config)
        requests = [compiled.create_infer_request() for _ in parts]
        for request, part in zip(requests, parts):
            request.set_input_tensor(self.library.Tensor(part))

        def forward():
            for request in requests:
                request.start_async()
            for request in requests:
                request.wait()
            return np.concatenate([request.get_output_tensor().data for request in requests])

        return forward


class OnnxRuntime:
    variants = {"f32": ["Attention"]}  # its CPU provider has no MatMul of bf16

    def __init__(self):
        import onnxruntime

        self.library, self.version = onnxruntime, onnxruntime.__version__

    def build(self, value_type, variant, x):
        options = self.library.SessionOptions()
        options.intra_op_num_threads = GIVEN.threads
        options.graph_optimization_level = self.library.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Opset 23 is the first with an operator of attention.
        program = torch.onnx.export(
            Encoder(), (torch.from_numpy(x),), input_names=["x"], dynamo=True, opset_version=23, verbose=False
        )
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "encoder.onnx"
            program.save(path, external_data=True)  # the model itself may not exceed 2 GB
            session = self.library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": x})[0]


def main():
    if CONFIG.model_type not in TEXT + IMAGES:
        raise SystemExit(f"{GIVEN.model}: model_type {CONFIG.model_type} is none of {', '.join(TEXT + IMAGES)}")
    engine = {"pytorch": PyTorch, "openvino": OpenVino, "onnxruntime": OnnxRuntime}[GIVEN.engine]()
    fastest = Fastest()

    def answer(request):
        value_type, count, tokens = request["value_type"], int(request["batch"]), int(request.get("tokens", 0))
        if (CONFIG.model_type in TEXT) != (tokens > 0):
            return {"unsupported": f"{tokens} tokens of {CONFIG.model_type}"}
        key = (value_type, count, tokens)
        first = {} if key != fastest.key else {"warm_ups": 0, "least": 1}
        said = fastest.time(
            key,
            engine.variants.get(value_type, []),
            lambda variant: engine.build(value_type, variant, batch_of(count, tokens)),
            lambda forward: measure(forward, 1, float(request.get("min_seconds", 0)), **first),
        )
        if "output" in request and "unsupported" not in said:
            _, forward = fastest.built
            output = forward()
            output.astype("<f4").tofile(request["output"])
            said["shape"] = output.shape
        return said

    hello = {
        "engine": GIVEN.engine,
        "version": f"{engine.version}, transformers {transformers.__version__}",
        "value_types": list(engine.variants),
        "threads": GIVEN.threads,
    }
    converse(ANSWERS, hello, answer)


main()
