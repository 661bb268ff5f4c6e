//! The CUDA kernels without a GPU: compiled by NVRTC from its PyPI wheel for every architecture, and the machine code
//! looked at: each product on sparse tensor cores, nothing spilled to memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::check::{TRAIN, cargo, step};
use crate::root;

/// The compiler, and a disassembler that reads its machine code. Both are installed into `target/`.
const WHEELS: [&str; 2] = ["nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-nvdisasm==13.5.37"];

/// Fetches what is missing, compiles, and looks.
pub(crate) fn compile() -> Result<()> {
    inspect(&Tools::fetch()?)
}

/// The same as a step of `cargo xtask check`, which goes on where the wheels cannot be had.
pub(crate) fn check() -> Result<()> {
    match Tools::fetch() {
        Ok(tools) => inspect(&tools),
        Err(error) => {
            eprintln!("== CUDA kernels: SKIPPED (no compiler for them: {error:#})");
            Ok(())
        }
    }
}

/// Builds the checks that need a GPU and runs them; what there is no GPU for fails.
pub(crate) fn gpu_check() -> Result<()> {
    let build = ["build", "--release", "--quiet", "--package", "lacuna-cuda", "--example", "gpu_check"];
    step("build", &mut cargo(&build))?;
    let mut check = Command::new("bash");
    check.arg("scripts/gpu_check.sh").arg(target().join("release/examples/gpu_check"));
    // NVRTC from its wheel, where it has been fetched.
    if let Ok(tools) = Tools::find(&venv()) {
        check.env("LD_LIBRARY_PATH", tools.libraries);
    }
    step("GPU", &mut check)
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn venv() -> PathBuf {
    root().join("target/cuda/venv")
}

struct Tools {
    /// where libnvrtc lies
    libraries: PathBuf,
    nvdisasm: PathBuf,
}

impl Tools {
    fn fetch() -> Result<Self> {
        let venv = venv();
        if Self::find(&venv).is_err() {
            step("venv for NVRTC", Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
            let mut pip = Command::new(venv.join("bin/pip"));
            step("NVRTC from PyPI", pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(WHEELS))?;
        }
        Self::find(&venv)
    }

    fn find(venv: &Path) -> Result<Self> {
        let mut files = vec![];
        all_files(venv, &mut files);
        let named = |name: &str| {
            let found = files.iter().find(|path| path.file_name().is_some_and(|file| file == name));
            found.cloned().with_context(|| format!("no {name} under {}", venv.display()))
        };
        let library = named("libnvrtc.so.12")?;
        let libraries = library.parent().expect("a file lies in a folder").to_owned();
        Ok(Self { libraries, nvdisasm: named("nvdisasm")? })
    }
}

fn all_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all_files(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn inspect(tools: &Tools) -> Result<()> {
    let out = root().join("target/cuda/cubins");
    // With the features of `check`'s tests: of others, libraries would be compiled once more.
    let build = ["build", "--release", "--quiet", "--workspace", "--features", TRAIN, "--example", "compile"];
    step("build of the compiler's driver", &mut cargo(&build))?;
    let mut compile = Command::new(target().join("release/examples/compile"));
    step("CUDA kernels", compile.arg(&out).env("LD_LIBRARY_PATH", &tools.libraries))?;
    let mut wrong = vec![];
    for entry in fs::read_dir(&out)? {
        let path = entry?.path();
        let kernels = disassemble(&tools.nvdisasm, &path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("{name}: {} kernels", kernels.len());
        if kernels.is_empty() {
            wrong.push(format!("{name}: no kernels"));
        }
        for (kernel, code) in kernels {
            let spills = code.iter().filter(|line| line.contains(" STL") || line.contains(" LDL")).count();
            if spills > 0 {
                wrong.push(format!("{name} {kernel}: {spills} accesses to spilled registers"));
            }
            let sparse = code.iter().any(|line| line.contains("HMMA.SP") || line.contains("HGMMA.SP"));
            if !sparse && ["prefill_", "decode_"].iter().any(|product| kernel.starts_with(product)) {
                wrong.push(format!("{name} {kernel}: no HMMA.SP"));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("machine code:\n{}", wrong.join("\n")) }
}

/// The instructions of every kernel.
fn disassemble(nvdisasm: &Path, cubin: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let output = Command::new(nvdisasm).arg(cubin).output().context("cannot start nvdisasm")?;
    if !output.status.success() {
        bail!("nvdisasm {}: {}", cubin.display(), String::from_utf8_lossy(&output.stderr));
    }
    let mut kernels: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = None;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(section) = line.trim().strip_prefix(".section\t") {
            let name = section.split(',').next().unwrap_or("").trim_matches('"');
            current = name.strip_prefix(".text.").map(str::to_owned);
        } else if let Some(kernel) = &current
            && line.contains("/*")
        {
            kernels.entry(kernel.clone()).or_default().push(line.to_owned());
        }
    }
    Ok(kernels)
}
