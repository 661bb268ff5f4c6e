// Runs emulated kernels for tests/host.rs: a case from standard input, its y to standard output, until there are no more.
//
// A case: the kernel's name (64 bytes), then u32: eager, threads, blocks x, blocks y, bytes of shared memory, and the numbers
// of `Product` in their order; then its buffers in their order (values to y), each a u64 of bytes and the bytes; an empty
// one is a null pointer.
#include "decode.cu"
#include "prefill.cu"

// LACUNA_KERNEL of every kernel, written by tests/host.rs.
#include "kernels.inc"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <string>

namespace {

bool read_all(void *to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

void must_read(void *to, size_t bytes) {
    if (!read_all(to, bytes)) emulate::fail("a case that breaks off");
}

u32 read_u32() {
    u32 x;
    must_read(&x, 4);
    return x;
}

/// Memory whose end, up to a multiple of 16, touches a page that may not be touched.
struct Guarded {
    u8 *pages = nullptr, *data = nullptr;
    size_t bytes = 0, mapped = 0;

    Guarded() {
        u64 length;
        must_read(&length, 8);
        bytes = length;
        if (bytes == 0) return;
        size_t page = sysconf(_SC_PAGESIZE), used = (bytes + 15) & ~(size_t)15, whole = (used + page - 1) / page * page;
        mapped = whole + page;
        pages = (u8 *)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages + whole, page, PROT_NONE) != 0) emulate::fail("no memory");
        data = pages + whole - used;
        must_read(data, bytes);
    }
    ~Guarded() {
        if (mapped) munmap(pages, mapped);
    }
    Guarded(const Guarded &) = delete;
};

} // namespace

int main() {
    std::map<std::string, void (*)(Product)> kernels;
#undef LACUNA_KERNEL
#define LACUNA_KERNEL(name, ...) kernels[#name] = name;
#include "kernels.inc"
    emulate::Block block;
    char name[65] = {};
    while (read_all(name, 64)) {
        auto kernel = kernels.find(name);
        if (kernel == kernels.end()) emulate::fail((std::string("no kernel ") + name).c_str());
        block.eager = read_u32() != 0;
        u32 threads = read_u32(), across = read_u32(), down = read_u32(), shared = read_u32();
        Product p{};
        for (u32 *number : {&p.rows, &p.tokens, &p.stride, &p.v, &p.slabs, &p.slabs_per_scale, &p.row_tile, &p.slab_places}) {
            *number = read_u32();
        }
        Guarded values, metadata, scales, places, slab_columns, columns, output_rows, x, bias, residual, y;
        p.values = values.data;
        p.metadata = (const u32 *)metadata.data;
        p.scales = (const u16 *)scales.data;
        p.places = (const u16 *)places.data;
        p.slab_columns = (const u32 *)slab_columns.data;
        p.columns = (const u32 *)columns.data;
        p.output_rows = (const u32 *)output_rows.data;
        p.x = (const u16 *)x.data;
        p.bias = (const float *)bias.data;
        p.residual = (const u16 *)residual.data;
        p.y = (u16 *)y.data;
        block.kernel = [&] { kernel->second(p); };
        for (u32 j = 0; j < down; j++) {
            for (u32 i = 0; i < across; i++) {
                block.index = emulate::Index{i, j, 0};
                emulate::run_block(block, threads, shared);
            }
        }
        std::fwrite(y.data, 1, y.bytes, stdout);
        std::fflush(stdout);
    }
}
