"""llama.cpp: ggml_mul_mat of the ggml library that llama-cpp-python carries, through ctypes.

    python llama_cpp_engine.py --threads 2

int8 is Q8_0, int4 is Q4_0 or Q4_K. Weights lie in each kind of buffer the CPU backend offers for them: "plain", and
those that repack ("CPU_REPACK"), as llama.cpp uses them when it loads a model; not in those for AMX, which crash. Activations
are f32.
"""

import ctypes
import importlib.metadata
import importlib.util
import pathlib
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p

from protocol import Unsupported, rotated, serve, threads_from_arguments

THREADS = threads_from_arguments()

import numpy as np

LIBRARIES = pathlib.Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
F32, GRAPH_ROOM = 0, 64
TYPES = {"f32": {"F32": F32}, "bf16": {"BF16": 30}, "int8": {"Q8_0": 8}, "int4": {"Q4_0": 2, "Q4_K": 12}}


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


def bind(library, name, result, *arguments):
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


base = ctypes.CDLL(str(LIBRARIES / "libggml-base.so"), ctypes.RTLD_GLOBAL)
cpu = ctypes.CDLL(str(LIBRARIES / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
ggml_init = bind(base, "ggml_init", c_void_p, InitParams)
ggml_free = bind(base, "ggml_free", None, c_void_p)
tensor_overhead = bind(base, "ggml_tensor_overhead", c_size_t)
graph_overhead = bind(base, "ggml_graph_overhead_custom", c_size_t, c_size_t, c_bool)
new_tensor = bind(base, "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
mul_mat = bind(base, "ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
new_graph = bind(base, "ggml_new_graph_custom", c_void_p, c_void_p, c_size_t, c_bool)
expand = bind(base, "ggml_build_forward_expand", None, c_void_p, c_void_p)
nbytes = bind(base, "ggml_nbytes", c_size_t, c_void_p)
block_size = bind(base, "ggml_blck_size", c_int64, c_int)
quantize = bind(base, "ggml_quantize_chunk", c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)
allocate = bind(base, "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
free_buffer = bind(base, "ggml_backend_buffer_free", None, c_void_p)
set_tensor = bind(base, "ggml_backend_tensor_set", None, c_void_p, c_void_p, c_size_t, c_size_t)
get_tensor = bind(base, "ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)
supports = bind(base, "ggml_backend_supports_op", c_bool, c_void_p, c_void_p)
compute = bind(base, "ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
buffer_name = bind(base, "ggml_backend_buft_name", c_char_p, c_void_p)
plain_buffers = bind(base, "ggml_backend_cpu_buffer_type", c_void_p)
registered = bind(base, "ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)
device_of = bind(base, "ggml_backend_get_device", c_void_p, c_void_p)
backend = bind(cpu, "ggml_backend_cpu_init", c_void_p)()
bind(cpu, "ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)(backend, THREADS)

silent = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda *_: None)
bind(base, "ggml_log_set", None, c_void_p, c_void_p)(silent, None)


def buffer_types():
    """The plain CPU buffers and those that lay a weight out anew."""
    address = registered(bind(cpu, "ggml_backend_cpu_reg", c_void_p)(), b"ggml_backend_dev_get_extra_bufts")
    found = {"plain": plain_buffers()}
    extra = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device_of(backend)) if address else []
    for buffers in extra:
        if not buffers:
            break
        # Products in buffers for AMX end the process: llama.cpp issue 20824 and pull request 26954, of 2026, neither in a release.
        if buffer_name(buffers) != b"AMX":
            found[buffer_name(buffers).decode()] = buffers
    return found


def pointer(array):
    return array.ctypes.data_as(c_void_p)


class Case:
    """A graph of one mul_mat a copy, all of the same activations."""

    contexts = buffers = ()

    def __init__(self, kind, buffers, weights, x):
        rows, cols = weights.base.shape
        if cols % block_size(kind):
            raise Unsupported(f"{cols} columns are no multiple of a block of {block_size(kind)}")
        self.shape, count = (x.shape[0], rows), len(weights)
        self.buffers = []
        room = graph_overhead(count + GRAPH_ROOM, False) + tensor_overhead() * (count + GRAPH_ROOM)
        self.contexts = [ggml_init(InitParams(room, None, True)) for _ in range(2)]
        packed = [new_tensor(self.contexts[0], kind, cols, rows) for _ in range(count)]
        self.buffers.append(allocate(self.contexts[0], buffers))
        context = self.contexts[1]
        activations = new_tensor(context, F32, cols, x.shape[0])
        self.outputs = [mul_mat(context, w, activations) for w in packed]
        if not supports(backend, self.outputs[0]):
            raise Unsupported("the backend has no such product in such a buffer")
        self.buffers.append(allocate(context, plain_buffers()))
        self.graph = new_graph(context, count + GRAPH_ROOM, False)
        for output in self.outputs:
            expand(self.graph, output)
        set_tensor(activations, pointer(x), 0, x.nbytes)
        values = np.empty((rows, nbytes(packed[0]) // rows), np.uint8)
        if kind == F32:
            values[:] = weights.base.view(np.uint8)
        else:
            quantize(kind, pointer(weights.base), pointer(values), 0, rows, cols, None)
        for i, w in enumerate(packed):
            copy = rotated(values, i)
            set_tensor(w, pointer(copy), 0, copy.nbytes)

    def sweep(self):
        status = compute(backend, self.graph)
        assert status == 0, f"ggml status {status}"

    def product(self, i):
        self.sweep()
        y = np.empty(self.shape, np.float32)
        get_tensor(self.outputs[i], pointer(y), 0, y.nbytes)
        return y

    def __del__(self):
        for buffer in self.buffers:
            free_buffer(buffer)
        for context in self.contexts:
            ggml_free(context)


class LlamaCpp:
    name = "llama.cpp"
    version = "llama-cpp-python " + importlib.metadata.version("llama-cpp-python")

    def variants(self, value_type):
        return [f"{kind}/{buffers}" for kind in TYPES[value_type] for buffers in buffer_types()]

    def build(self, value_type, variant, weights, x):
        kind, buffers = variant.split("/")
        case = Case(TYPES[value_type][kind], buffer_types()[buffers], weights, x)
        return case.sweep, case.product


serve(LlamaCpp(), THREADS)
