"""OpenVINO's CPU plugin: one compiled model of MatMuls with constant weights, compressed ones for int8 and int4.

    python openvino_engine.py --threads 2

The graphs are those that NNCF's compress_weights makes: int8 is i8 with a scale a row, int4 is i4 with a scale a group
of 32 or 128 columns. A variant names the columns that share a scale, first of the weight and then of the activations,
which the plugin rounds to int8 (DYNAMIC_QUANTIZATION_GROUP_SIZE; its default is 32). README.md says what was tried.
"""

from protocol import Unsupported, rotated, serve, threads_from_arguments

THREADS = threads_from_arguments()

import numpy as np
import openvino as ov
from openvino import opset13 as ops

core = ov.Core()


def whole_rows(weight):
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    values = np.rint(weight / scale).astype(np.int8)
    return lambda i: ops.multiply(ops.convert(ops.constant(rotated(values, i)), "f32"), ops.constant(rotated(scale, i)))


def groups_of(weight, group):
    rows, cols = weight.shape
    if cols % group:
        raise Unsupported(f"{cols} columns are no multiple of a group of {group}")
    groups = weight.reshape(rows, cols // group, group)
    scale = np.abs(groups).max(axis=2, keepdims=True) / 7
    values = np.rint(groups / scale).astype(np.int8).view(np.uint8) & 15
    pairs = values[..., 0::2] | values[..., 1::2] << 4

    def node(i):
        packed = ov.Tensor(ov.Type.i4, ov.Shape(groups.shape))
        packed.data.reshape(-1)[:] = rotated(pairs, i).reshape(-1)
        scaled = ops.multiply(ops.convert(ops.constant(packed), "f32"), ops.constant(rotated(scale, i)))
        return ops.reshape(scaled, np.array([rows, cols]), special_zero=False)

    return node


class OpenVino:
    name = "openvino"
    version = ov.__version__

    def variants(self, value_type):
        return {
            "f32": ["plain"],
            "bf16": ["plain"],
            "int8": ["row/32", "row/128", "row/256", "row/row"],
            "int4": ["32/32", "128/128"],
        }[value_type]

    def build(self, value_type, variant, weights, x):
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if value_type == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": THREADS,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if variant == "plain":
            node = lambda i: ops.constant(weights[i])
        else:
            group, quantized = variant.split("/")
            node = whole_rows(weights.base) if group == "row" else groups_of(weights.base, int(group))
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = x.shape[1] if quantized == "row" else int(quantized)
        parameter = ops.parameter([-1, x.shape[1]], ov.Type.f32)
        products = [ops.matmul(parameter, node(i), False, True) for i in range(len(weights))]
        request = core.compile_model(ov.Model(products, [parameter]), "CPU", config).create_infer_request()
        request.set_input_tensor(ov.Tensor(x))

        def product(i):
            request.infer()
            return request.get_output_tensor(i).data.copy()

        return request.infer, product


serve(OpenVino(), THREADS)
