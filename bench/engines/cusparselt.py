"""2:4 products by cuSPARSELt, through PyTorch, beside its dense ones: a rival of our kernels on a GPU.

    python cusparselt.py --record DIR

Writes GPU/DATE-gpu-cusparselt.csv with the head of gpu-products.csv. Both sides run as graphs of launches, as ours do there (a
call of it takes the CPU 0.4 ms, many times what the GPU then takes), interleaved; it takes the algorithm that its own search
finds fastest. The masks are random. It has no kernel for few tokens.
"""

import argparse
import datetime
import pathlib
import statistics
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--record", type=pathlib.Path, default=pathlib.Path("bench/record"))
GIVEN = parser.parse_args()

import torch

if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
    sys.exit("no GPU with sparse tensor cores")
if not torch.backends.cusparselt.is_available():
    sys.exit("this PyTorch has no cuSPARSELt")
torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = False

SHAPES = [("llama-2-7b q/k/v/o", 4096, 4096), ("llama-2-7b gate/up", 11008, 4096), ("llama-2-7b down", 4096, 11008)]
TOKENS = [4096, 1024, 256, 16]
ROUNDS, SECONDS, LAUNCHES = 7, 0.03, 20
HEAD = "shape,rows,cols,tokens,value_type,pattern,engine,variant,seconds,minimum,ratio,limit,share,gpu,date,version"


def recorded(product):
    """A graph of launches, after one outside of it."""
    product()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            product()
    return graph


def timed(graph):
    """Seconds of one product."""
    graph.replay()
    torch.cuda.synchronize()
    started, graphs = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS or graphs == 0:
        graph.replay()
        graphs += 1
        if graphs % 32 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / graphs / LAUNCHES


def main():
    today = datetime.datetime.now(datetime.timezone.utc).date()
    folder = GIVEN.record / torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    end = f"{torch.cuda.get_device_name()},{today},torch {torch.__version__}"
    with open(folder / f"{today}-gpu-cusparselt.csv", "w") as out:
        print(HEAD, file=out, flush=True)
        for shape, rows, cols in SHAPES:
            # Zeros draw less power: the dense product is of a weight that has none.
            full = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
            order = torch.rand(rows, cols // 4, 4, device="cuda").argsort(-1)
            weight = full * (order < 2).reshape(rows, cols)
            sparse = torch.sparse.to_sparse_semi_structured(weight)
            for tokens in TOKENS:
                x = torch.randn(cols, tokens, device="cuda", dtype=torch.bfloat16)
                try:
                    sparse.alg_id_cusparselt = torch._cslt_sparse_mm_search(sparse.packed, x)
                    want, got = torch.mm(weight, x).float(), torch.mm(sparse, x).float()
                except (RuntimeError, NotImplementedError) as error:
                    print(f"{shape}, {tokens} tokens: {str(error).splitlines()[0]}", flush=True)
                    continue
                off = ((got - want).norm() / want.norm()).item()
                if not off < 0.01:
                    print(f"{shape}, {tokens} tokens: cuSPARSELt is {off} off")
                    continue
                graphs = recorded(lambda: torch.mm(full, x)), recorded(lambda: torch.mm(sparse, x))
                dense_times, sparse_times = [], []
                for _ in range(ROUNDS):
                    dense_times.append(timed(graphs[0]))
                    sparse_times.append(timed(graphs[1]))
                dense = statistics.median(dense_times)
                for pattern, variant, times in [("dense", "torch", dense_times), ("2:4", "cusparselt", sparse_times)]:
                    median, limit = statistics.median(times), 1 if pattern == "dense" else 2
                    row = f"{shape},{rows},{cols},{tokens},bf16,{pattern},pytorch,{variant},{median:e},{min(times):e},"
                    row += f"{dense / median:.3f},{limit},{dense / median / limit:.3f},{end}"
                    print(row, flush=True)
                    print(row, file=out, flush=True)


main()
