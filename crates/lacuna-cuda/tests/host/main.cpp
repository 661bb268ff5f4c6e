// A machine for tests/support/emulator.rs: memory, and the kernels compiled for the host. It takes commands from standard
// input until there are no more; numbers are in the byte order of the machine.
//
//   A  u64 bytes                            takes memory, full of NaN; answers u64, its address
//   F  u64 address                          gives it back
//   W  u64 address, u64 bytes, bytes        writes
//   R  u64 address, u64 bytes               answers the bytes
//   E  u32 eager                            the order of turns from now on
//   L  name (64 bytes), u32 threads, blocks x, blocks y, bytes of shared memory, whether it may begin early, bytes of the
//      struct; the struct
//                                           runs a kernel
//   D  u32 is bf16, rows, cols, tokens, stride, wide, add; u64 weight, x, y
//                                           a dense product, by its definition
//   G  u32 rows, cols, tokens; u64 left, x, out
//                                           adds an outer product, by its definition
#include "attention.cu"
#include "decode.cu"
#include "elementwise.cu"
#include "norm.cu"
#include "place.cu"
#include "prefill.cu"
#include "prefill_bulk.cu"
#include "tokens.cu"

// LACUNA_KERNEL or LACUNA_CLUSTER_KERNEL of every kernel, written by tests/support/emulator.rs.
#include "kernels.inc"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <string>

namespace {

bool read_all(void *to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

void must_read(void *to, size_t bytes) {
    if (!read_all(to, bytes)) emulate::fail("a command that breaks off");
}

template <class T> T number() {
    T x;
    must_read(&x, sizeof x);
    return x;
}

void answer(const void *from, size_t bytes) {
    std::fwrite(from, 1, bytes, stdout);
    std::fflush(stdout);
}

/// Memory whose end, up to a multiple of 16, touches a page that may not be touched.
struct Guarded {
    u8 *pages, *data;
    size_t mapped, bytes;

    explicit Guarded(size_t bytes) : bytes(bytes) {
        size_t page = sysconf(_SC_PAGESIZE), used = (bytes + 15) & ~(size_t)15, whole = (used + page - 1) / page * page;
        mapped = whole + page;
        pages = (u8 *)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages + whole, page, PROT_NONE) != 0) emulate::fail("no memory");
        data = pages + whole - used;
        std::memset(pages, 0xff, whole);
    }
    ~Guarded() { munmap(pages, mapped); }
    Guarded(const Guarded &) = delete;
};

std::map<u64, std::unique_ptr<Guarded>> memory;

Guarded &buffer(u64 address, size_t bytes) {
    auto found = memory.find(address);
    if (found == memory.end() || found->second->bytes < bytes) emulate::fail("no such memory");
    return *found->second;
}

void command_allocate() {
    auto taken = std::make_unique<Guarded>(number<u64>());
    u64 address = (u64)taken->data;
    // An empty one may lie where another does.
    while (memory.count(address)) address++;
    memory[address] = std::move(taken);
    answer(&address, sizeof address);
}

void command_write() {
    u64 address = number<u64>(), bytes = number<u64>();
    must_read(buffer(address, bytes).data, bytes);
}

void command_read() {
    u64 address = number<u64>(), bytes = number<u64>();
    answer(buffer(address, bytes).data, bytes);
}

template <class Half> void dense(const u32 (&n)[6], const u16 *w, const u16 *x, void *y) {
    auto [rows, cols, tokens, stride, wide, add] = n;
    for (u32 r = 0; r < rows; r++) {
        for (u32 t = 0; t < tokens; t++) {
            u64 at = (u64)r * stride + t;
            float sum = 0.0f;
            for (u32 k = 0; k < cols; k++) sum += Half::widen(w[(u64)r * cols + k]) * Half::widen(x[(u64)k * stride + t]);
            if (wide) ((float *)y)[at] = sum + (add ? ((float *)y)[at] : 0.0f);
            else ((u16 *)y)[at] = Half::narrow(sum + (add ? Half::widen(((u16 *)y)[at]) : 0.0f));
        }
    }
}

void command_dense() {
    u32 bf16 = number<u32>(), n[6];
    for (u32 &size : n) size = number<u32>();
    u64 weight = number<u64>(), x = number<u64>(), y = number<u64>();
    auto [rows, cols, tokens, stride, wide, add] = n;
    (void)tokens, (void)add;
    const u16 *w_data = (const u16 *)buffer(weight, 2ul * rows * cols).data;
    const u16 *x_data = (const u16 *)buffer(x, 2ul * cols * stride).data;
    void *y_data = buffer(y, (wide ? 4ul : 2ul) * rows * stride).data;
    if (bf16) dense<Bf16>(n, w_data, x_data, y_data);
    else dense<F16>(n, w_data, x_data, y_data);
}

void command_outer() {
    u32 rows = number<u32>(), cols = number<u32>(), tokens = number<u32>();
    u64 left = number<u64>(), x = number<u64>(), out = number<u64>();
    const float *l = (const float *)buffer(left, 4ul * rows * tokens).data;
    const float *r = (const float *)buffer(x, 4ul * cols * tokens).data;
    float *sums = (float *)buffer(out, 4ul * rows * cols).data;
    for (u64 i = 0; i < rows; i++) {
        for (u64 j = 0; j < cols; j++) {
            for (u64 t = 0; t < tokens; t++) sums[i * cols + j] += l[i * tokens + t] * r[j * tokens + t];
        }
    }
}

using Run = void (*)(const std::vector<u8> &);

/// Calls a kernel with the struct that it takes.
template <class Operands, void (*KERNEL)(Operands)> void run(const std::vector<u8> &bytes) {
    // C fills a struct up to its alignment.
    if ((bytes.size() + 7) / 8 * 8 != sizeof(Operands)) emulate::fail("a struct of another size");
    Operands operands;
    std::memcpy((void *)&operands, bytes.data(), bytes.size());
    KERNEL(operands);
}

struct Kernel {
    Run run;
    /// blocks of a cluster
    u32 cluster;
};

void command_launch(const std::map<std::string, Kernel> &kernels) {
    char name[65] = {};
    must_read(name, 64);
    u32 threads = number<u32>(), across = number<u32>(), down = number<u32>(), shared = number<u32>();
    emulate::early = number<u32>() != 0;
    std::vector<u8> operands(number<u32>());
    must_read(operands.data(), operands.size());
    auto kernel = kernels.find(name);
    if (kernel == kernels.end()) emulate::fail((std::string("no kernel ") + name).c_str());
    u32 cluster = kernel->second.cluster;
    if (down % cluster != 0) emulate::fail("a cluster that breaks off");
    emulate::cluster.resize(cluster);
    for (emulate::Block &block : emulate::cluster) block.kernel = [&] { kernel->second.run(operands); };
    for (u32 j = 0; j < down; j += cluster) {
        for (u32 i = 0; i < across; i++) {
            for (u32 n = 0; n < cluster; n++) emulate::cluster[n].index = emulate::Index{i, j + n, 0};
            emulate::run_cluster(threads, shared);
        }
    }
}

} // namespace

int main() {
    std::map<std::string, Kernel> kernels;
#undef LACUNA_KERNEL
#undef LACUNA_CLUSTER_KERNEL
#define LACUNA_KERNEL(name, threads, blocks, ...) kernels[#name] = {run<__VA_ARGS__::Operands, name>, 1};
#define LACUNA_CLUSTER_KERNEL(name, threads, cluster, ...) kernels[#name] = {run<__VA_ARGS__::Operands, name>, cluster};
#include "kernels.inc"
    u8 command;
    while (read_all(&command, 1)) {
        switch (command) {
        case 'A': command_allocate(); break;
        case 'F': memory.erase(number<u64>()); break;
        case 'W': command_write(); break;
        case 'R': command_read(); break;
        case 'E': emulate::eager = number<u32>() != 0; break;
        case 'L': command_launch(kernels); break;
        case 'D': command_dense(); break;
        case 'G': command_outer(); break;
        default: emulate::fail("no such command");
        }
    }
}
