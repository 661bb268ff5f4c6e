//! Compiles all kernels for all architectures that the project names, without a GPU: `cargo xtask cuda-compile` runs this
//! and looks at what comes out. `compile DIRECTORY` writes `ARCHITECTURE.cubin` for each, and `ARCHITECTURE-probes.cubin`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use lacuna_cuda::launch::{Architecture, compile};
use lacuna_cuda::{Kernel, all, probe_source, source};

const ARCHITECTURES: [Architecture; 4] = [
    Architecture::Machine(8, 0),
    Architecture::Machine(8, 6),
    Architecture::Machine(8, 9),
    Architecture::Machine(9, 0),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::args().nth(1).ok_or("usage: compile DIRECTORY")?);
    std::fs::create_dir_all(&out)?;
    std::thread::scope(|scope| {
        let compiling = ARCHITECTURES.map(|architecture| {
            let out = &out;
            scope.spawn(move || compile_all(architecture, out).map_err(|e| e.to_string()))
        });
        compiling.into_iter().try_for_each(|thread| Ok(thread.join().expect("compiling does not panic")?))
    })
}

fn compile_all(architecture: Architecture, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (Architecture::Machine(major, minor) | Architecture::Portable(major, minor)) = architecture;
    let kernels: Vec<Kernel> = all().into_iter().filter(|kernel| kernel.runs_on((major, minor))).collect();
    for (name, text) in [("", source(&kernels)), ("-probes", probe_source())] {
        let started = Instant::now();
        let cubin = compile(&text, architecture)?;
        std::fs::write(out.join(format!("{architecture}{name}.cubin")), &cubin)?;
        println!("{architecture}{name}: {} KiB in {:.1} s", cubin.len() / 1024, started.elapsed().as_secs_f64());
    }
    Ok(())
}
