//! A machine without a GPU: a program that has memory and the kernels, compiled for the host from the text that a GPU runs
//! (tests/host/emulate.hpp says how), driven through a pipe.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lacuna_cuda::{
    Buffer, Call, DenseProduct, Error, HalfType, Kernel, Limits, Machine, OuterProduct, Recording, Result, all,
};

/// The kernels as a program, or why there is none.
pub fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| {
        let compilers = std::env::var("CXX").into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned));
        let runs = |name: &String| {
            let status = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        compilers.into_iter().find(runs).map(|compiler| build(&compiler))
    });
    if found.is_none() {
        let why = "no C++ compiler (CXX, c++, g++, clang++): the CUDA kernels were not tested; install g++";
        assert!(std::env::var_os("LACUNA_REQUIRE_SHARED").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
    }
    found.as_deref()
}

fn build(compiler: &str) -> PathBuf {
    // From wherever this file is part of a test program.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lacuna-cuda");
    // Each test program builds its own: they may run side by side.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("kernels.inc"), all().into_iter().map(Kernel::definition).collect::<String>()).unwrap();
    let program = out.join("kernels");
    let built = Command::new(compiler)
        .args([
            "-std=c++17",
            "-O2",
            // As a GPU, which joins products and sums whatever the text says, only where it gains precision.
            "-ffp-contract=off",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-U_FORTIFY_SOURCE",
            "-DLACUNA_HOST",
        ])
        .args([root.join("kernels"), root.join("tests/host"), out.clone()].map(|dir| format!("-I{}", dir.display())))
        .arg(root.join("tests/host/main.cpp"))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(built.status.success(), "{compiler}: {}", String::from_utf8_lossy(&built.stderr));
    program
}

/// One running program.
pub struct Emulator {
    limits: Limits,
    shared: Arc<Mutex<Pipe>>,
}

struct Pipe {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
    /// what is taken down instead of done
    recording: Option<Vec<Vec<u8>>>,
    launches: Vec<Kernel>,
}

impl Emulator {
    /// A GPU of some limits; none where there is no compiler.
    pub fn start(limits: Limits) -> Option<Self> {
        let mut child = Command::new(program()?).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let pipe = Pipe { child, to, from, recording: None, launches: vec![] };
        Some(Self { limits, shared: Arc::new(Mutex::new(pipe)) })
    }

    /// The same with other limits.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, shared: self.shared.clone() }
    }

    /// Whether copies are done when they are issued and the last warp and lane run first, or the other way round.
    pub fn take_turns(&self, eager: bool) {
        self.pipe().send(b'E', &u32::from(eager).to_le_bytes());
    }

    /// What was launched since this was last asked.
    pub fn launches(&self) -> Vec<Kernel> {
        std::mem::take(&mut self.pipe().launches)
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe {
    fn send(&mut self, command: u8, rest: &[u8]) {
        let sent = self.to.write_all(&[command]).and_then(|()| self.to.write_all(rest));
        assert!(sent.is_ok(), "the emulated GPU stopped (its reason is above)");
    }

    fn answer(&mut self, bytes: usize) -> Vec<u8> {
        let mut answer = vec![0; bytes];
        let answered = self.to.flush().and_then(|()| self.from.read_exact(&mut answer));
        assert!(answered.is_ok(), "the emulated GPU stopped: {:?} (its reason is above)", self.child.wait());
        answer
    }

    /// Now, or later.
    fn work(&mut self, command: u8, rest: Vec<u8>) {
        match &mut self.recording {
            None => self.send(command, &rest),
            Some(taken) => taken.push([vec![command], rest].concat()),
        }
    }
}

/// Gives memory back.
struct Memory(u64, Arc<Mutex<Pipe>>);

impl Drop for Memory {
    fn drop(&mut self) {
        let mut pipe = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended, which some test said already.
        let _ = pipe.to.write_all(b"F").and_then(|()| pipe.to.write_all(&self.0.to_le_bytes()));
    }
}

fn words(numbers: &[usize]) -> Vec<u8> {
    numbers.iter().flat_map(|&n| u32::try_from(n).unwrap().to_le_bytes()).collect()
}

impl Machine for Emulator {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let mut pipe = self.pipe();
        assert!(pipe.recording.is_none(), "memory is taken in a recording");
        pipe.send(b'A', &(bytes as u64).to_le_bytes());
        let address = u64::from_le_bytes(pipe.answer(8).try_into().unwrap());
        Ok(Buffer::new(address, bytes, Box::new(Memory(address, self.shared.clone()))))
    }

    fn write(&self, to: &Buffer, bytes: &[u8]) -> Result<()> {
        let mut pipe = self.pipe();
        assert!(pipe.recording.is_none(), "the host writes in a recording");
        if bytes.len() > to.bytes() {
            return Err(Error::Shape { what: "a buffer", want: bytes.len(), got: to.bytes() });
        }
        let head = [to.address().to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat();
        pipe.send(b'W', &[&head, bytes].concat());
        Ok(())
    }

    fn read(&self, from: &Buffer, bytes: usize) -> Result<Vec<u8>> {
        let mut pipe = self.pipe();
        assert!(pipe.recording.is_none(), "the host reads in a recording");
        pipe.send(b'R', &[from.address().to_le_bytes(), (bytes as u64).to_le_bytes()].concat());
        Ok(pipe.answer(bytes))
    }

    fn launch(&self, call: &Call) -> Result<()> {
        let mut bytes = call.kernel().name().into_bytes();
        bytes.resize(64, 0);
        let [across, down] = call.blocks().map(|n| n as usize);
        let shared = call.shared_bytes() as usize;
        assert!(shared <= self.limits.shared_bytes, "more shared memory than there is");
        let (threads, early) = (call.kernel().threads() as usize, usize::from(call.kernel().begins_early()));
        bytes.extend(words(&[threads, across, down, shared, early, call.operands().len()]));
        bytes.extend(call.operands());
        let mut pipe = self.pipe();
        pipe.launches.push(call.kernel());
        pipe.work(b'L', bytes);
        Ok(())
    }

    fn multiply(&self, product: &DenseProduct) -> Result<()> {
        let DenseProduct { half, weight, x, y, rows, cols, tokens, stride, wide, add } = *product;
        let is_bf16 = usize::from(half == HalfType::Bf16);
        let mut bytes = words(&[is_bf16, rows, cols, tokens, stride, usize::from(wide), usize::from(add)]);
        bytes.extend([weight, x, y].iter().flat_map(|buffer| buffer.address().to_le_bytes()));
        self.pipe().work(b'D', bytes);
        Ok(())
    }

    fn add_outer(&self, product: &OuterProduct) -> Result<()> {
        let OuterProduct { left, x, out, rows, cols, tokens } = *product;
        let mut bytes = words(&[rows, cols, tokens]);
        bytes.extend([left, x, out].iter().flat_map(|buffer| buffer.address().to_le_bytes()));
        self.pipe().work(b'G', bytes);
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        // It answers once everything before is done.
        let buffer = self.allocate(0)?;
        self.read(&buffer, 0).map(drop)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        self.pipe().recording = Some(vec![]);
        let done = work();
        let taken = self.pipe().recording.take().unwrap_or_default();
        done?;
        Ok(Box::new(Taken(taken, self.shared.clone())))
    }
}

struct Taken(Vec<Vec<u8>>, Arc<Mutex<Pipe>>);

impl Recording for Taken {
    fn replay(&self) -> Result<()> {
        let mut pipe = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.iter().for_each(|command| pipe.send(command[0], &command[1..]));
        Ok(())
    }
}
