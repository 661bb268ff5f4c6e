//! The `lacuna` command.

#![forbid(unsafe_code)]

mod cli;

// Layers come and go in buffers of 100 MB; glibc hands each back to the kernel, and faulting the next one in took a third
// of the system time of a prune.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
