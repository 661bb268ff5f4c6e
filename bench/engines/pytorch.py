"""PyTorch on the CPU: torch.nn.functional.linear, the packed forms torch.compile uses, and 8- and 4-bit products.

python pytorch.py --threads 2
"""

from protocol import Unsupported, serve, threads_from_arguments

THREADS = threads_from_arguments()

import warnings

import numpy as np
import torch

warnings.simplefilter("ignore")  # the quantized tensors that "dynamic" needs are deprecated
torch.set_num_threads(THREADS)
torch.set_grad_enabled(False)


class PyTorch:
    name = "pytorch"
    version = torch.__version__

    def variants(self, value_type):
        # What torch.compile with frozen weights turns a linear layer into: a weight packed by oneDNN or (f32) by MKL.
        # int8: dynamic quantization of the activations, and weight-only. int4: weight-only, groups of 32 or 128.
        return {
            "f32": ["linear", "onednn-packed"] + ["mkl-packed"] * torch.backends.mkl.is_available(),
            "bf16": ["linear", "onednn-packed"],
            "int8": ["dynamic", "weight-only"],
            "int4": ["group-32", "group-128"],
        }[value_type]

    def build(self, value_type, variant, weights, x):
        x = torch.from_numpy(x)
        if value_type != "f32" and variant != "dynamic":
            x = x.bfloat16()
        with torch.inference_mode():
            multiply, packed = self.packed(value_type, variant, weights, x)

        @torch.inference_mode()
        def sweep():
            for weight in packed:
                multiply(weight)

        @torch.inference_mode()
        def product(i):
            return multiply(packed[i]).float().numpy()

        return sweep, product

    def packed(self, value_type, variant, weights, x):
        """A function of a packed weight, and the packed weights."""
        matrices = (torch.from_numpy(weights[i]).to(x.dtype) for i in range(len(weights)))
        tokens = x.shape[0]
        if variant == "linear":
            return (lambda w: torch.nn.functional.linear(x, w)), list(matrices)
        if variant == "onednn-packed":
            ops = torch.ops.mkldnn
            try:
                packed = [ops._reorder_linear_weight(w, tokens) for w in matrices]
            except RuntimeError as error:
                if value_type != "bf16":
                    raise
                raise Unsupported(str(error)) from error  # on a CPU without AVX-512
            return (lambda w: ops._linear_pointwise(x, w, None, "none", [], "")), packed
        if variant == "mkl-packed":
            ops = torch.ops.mkl
            return (
                lambda w: ops._mkl_linear(x, w[0], w[1], None, tokens),
                [(ops._mkl_reorder_linear_weight(w, tokens), w) for w in matrices],
            )
        if value_type == "int8":
            scale = torch.from_numpy(np.abs(weights.base).max(axis=1) / 127)
            if variant == "dynamic":
                zeros = torch.zeros(len(scale), dtype=torch.int64)
                ops = torch.ops.quantized

                def pack(i):
                    scales = scale.roll(i).double()
                    quantized = torch.quantize_per_channel(torch.from_numpy(weights[i]), scales, zeros, 0, torch.qint8)
                    return ops.linear_prepack(quantized, None)

                return (lambda w: ops.linear_dynamic(x, w, True)), [pack(i) for i in range(len(weights))]
            if x.shape[1] % 32:
                raise Unsupported("_weight_int8pack_mm reads past columns that are no multiple of 32")  # and crashes
            values = torch.from_numpy(weights.base).div(scale[:, None]).round().to(torch.int8)
            pairs = [(values.roll(i, 0), scale.roll(i).bfloat16()) for i in range(len(weights))]
            return (lambda w: torch.ops.aten._weight_int8pack_mm(x, *w)), pairs
        group = int(variant.removeprefix("group-"))
        rows, cols = weights.base.shape
        if cols % group:
            raise Unsupported(f"{cols} columns are no multiple of a group of {group}")
        groups = torch.from_numpy(weights.base).view(rows, cols // group, group)
        scale = groups.abs().amax(-1) / 7
        values = (groups / scale[..., None]).round().to(torch.int32).view(rows, cols) + 8

        def pack4(i):
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.roll(i, 0), 1)
            scales = scale.roll(i, 0).t()
            return packed, torch.stack([scales, torch.zeros_like(scales)], -1).bfloat16().contiguous()

        return (
            lambda w: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w[0], group, w[1]),
            [pack4(i) for i in range(len(weights))],
        )


serve(PyTorch(), THREADS)
