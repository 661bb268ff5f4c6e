"""ONNX Runtime's CPU provider: MatMul for f32, MatMulNBits and DynamicQuantizeMatMul for integers.

    python onnxruntime_engine.py --threads 2

Variants of MatMulNBits name the values that share a scale and the accuracy_level: 4 rounds activations to int8, 0 keeps
them f32. Its CPU provider has no MatMul of bf16.
"""

from protocol import Unsupported, rotated, serve, threads_from_arguments

THREADS = threads_from_arguments()

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper


def blocks(weight, bits, size):
    """The values, [R, K / size, bytes], and scales of MatMulNBits, whose zero point is 2^(bits - 1)."""
    rows, cols = weight.shape
    if cols % size:
        raise Unsupported(f"{cols} columns are no multiple of a block of {size}")
    grouped = weight.reshape(rows, cols // size, size)
    top = 2 ** (bits - 1) - 1
    scale = np.abs(grouped).max(axis=2) / top
    values = (np.rint(grouped / scale[..., None]) + top + 1).astype(np.uint8)
    return (values[..., 0::2] | values[..., 1::2] << 4 if bits == 4 else values), scale


class OnnxRuntime:
    name = "onnxruntime"
    version = ort.__version__

    def variants(self, value_type):
        return {
            "f32": ["MatMul"],
            "bf16": [],
            "int8": ["MatMulNBits/32/4", "DynamicQuantizeMatMul"],
            "int4": ["MatMulNBits/32/4", "MatMulNBits/128/4", "MatMulNBits/32/0"],
        }[value_type]

    def build(self, value_type, variant, weights, x):
        rows, cols = weights.base.shape
        operator, *numbers = variant.split("/")
        attributes, domain = {}, "com.microsoft"
        if operator == "MatMul":
            domain, tensors = "", lambda i: [weights[i].T]
        elif operator == "MatMulNBits":
            bits = int(value_type.removeprefix("int"))
            size, level = map(int, numbers)
            values, scale = blocks(weights.base, bits, size)
            attributes = {"K": cols, "N": rows, "bits": bits, "block_size": size, "accuracy_level": level}
            tensors = lambda i: [rotated(values, i), rotated(scale, i)]
        else:
            scale = np.abs(weights.base).max(axis=1) / 127
            values = np.rint(weights.base / scale[:, None]).astype(np.int8)
            tensors = lambda i: [rotated(values, i).T, rotated(scale, i)]

        nodes, constants, shared = [], [], {}
        for i in range(len(weights)):
            arrays = {f"w{i}.{j}": np.ascontiguousarray(array) for j, array in enumerate(tensors(i))}
            nodes.append(helper.make_node(operator, ["x", *arrays], [f"y{i}"], domain=domain, **attributes))
            # The values go to the session beside the model, whose own size may not exceed 2 GB.
            shared.update((name, ort.OrtValue.ortvalue_from_numpy(array)) for name, array in arrays.items())
            constants += [external(name, array) for name, array in arrays.items()]
        outputs = [
            helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [x.shape[0], rows]) for i in range(len(weights))
        ]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))]
        graph = helper.make_graph(nodes, "products", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_external_initializers(list(shared), list(shared.values()))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        for output in outputs:
            binding.bind_output(output.name, "cpu")

        def sweep():
            session.run_with_iobinding(binding)

        def product(i):
            sweep()
            return binding.get_outputs()[i].numpy()

        return sweep, product


def external(name, array):
    tensor = onnx.TensorProto()
    tensor.name, tensor.data_location = name, TensorProto.EXTERNAL
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.external_data.add(key="location", value="given-in-memory")
    return tensor


serve(OnnxRuntime(), THREADS)
