//! CUDA C++ to machine code by NVRTC, which needs neither a GPU nor a toolkit.

use std::ffi::{CString, c_char};
use std::fmt;

use cudarc::nvrtc::{result, sys};

use super::found::nvrtc_version;
use crate::error::{Error, Result};

/// `mma.sp::ordered_metadata` is PTX ISA 8.5.
const OLDEST_NVRTC: (u32, u32) = (12, 5);

/// What to compile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// machine code of one capability, with what only it has (`sm_90a`) where there is such a thing
    Machine(u32, u32),
    /// text that the driver compiles for a newer GPU than NVRTC knows
    Portable(u32, u32),
}

impl Architecture {
    /// For a GPU: its machine code if NVRTC knows it, else text for the newest that it knows before it.
    pub fn of((major, minor): (u32, u32)) -> Result<Self> {
        let known = supported()?;
        let wanted = major * 10 + minor;
        if known.contains(&wanted) {
            return Ok(Self::Machine(major, minor));
        }
        let nearest = known.into_iter().filter(|&known| (80..wanted).contains(&known)).max();
        nearest.map(|known| Self::Portable(known / 10, known % 10)).ok_or(Error::Capability { major, minor })
    }
}

/// As NVRTC takes it.
impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(major, minor) => {
                let own = if *major == 9 { "a" } else { "" };
                write!(f, "sm_{major}{minor}{own}")
            }
            Self::Portable(major, minor) => write!(f, "compute_{major}{minor}"),
        }
    }
}

/// Compiles a text; gives what the driver loads.
pub fn compile(source: &str, architecture: Architecture) -> Result<Vec<u8>> {
    check_version()?;
    let text = CString::new(source).map_err(|_| Error::Compile("the text of a kernel holds a zero byte".to_owned()))?;
    let program = Program::new(&text)?;
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
    // SAFETY: the program exists until `program` is dropped.
    let compiled = unsafe { result::compile_program(program.0, &options) };
    if compiled.is_err() {
        return Err(Error::Compile(format!("for {architecture}: {}", program.log())));
    }
    match architecture {
        Architecture::Machine(..) => program.cubin(),
        Architecture::Portable(..) => {
            // SAFETY: the program is compiled.
            let text = unsafe { result::get_ptx(program.0) }.map_err(failed)?;
            Ok(text.into_iter().map(|c| c as u8).collect())
        }
    }
}

fn check_version() -> Result<()> {
    match nvrtc_version() {
        None => Err(Error::Missing("NVRTC")),
        Some(version) if version < OLDEST_NVRTC => Err(Error::OldNvrtc { major: version.0, minor: version.1 }),
        Some(_) => Ok(()),
    }
}

/// Capabilities that NVRTC compiles for, ten times the major number plus the minor one.
fn supported() -> Result<Vec<u32>> {
    check_version()?;
    let mut count = 0;
    // SAFETY: the library is there, and `count` outlives the call.
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result().map_err(failed)?;
    let mut known = vec![0; count as usize];
    // SAFETY: there is room for as many as the library just said.
    unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result().map_err(failed)?;
    Ok(known.into_iter().map(|arch| arch as u32).collect())
}

fn failed(error: result::NvrtcError) -> Error {
    Error::Compile(format!("{:?}", error.0))
}

/// A program of NVRTC, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(text: &CString) -> Result<Self> {
        result::create_program(text, Some(c"lacuna.cu")).map(Self).map_err(failed)
    }

    fn log(&self) -> String {
        // SAFETY: the program exists.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is compiled, and `size` outlives the call.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) }.result().map_err(failed)?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: there is room for as many bytes as the library just said.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast::<c_char>()) }.result().map_err(failed)?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once. Nothing is to be done about a failure.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
