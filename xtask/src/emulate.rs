//! The kernels for 64-bit ARM on a CPU that is none: cross-built, linted, and their tests run by QEMU's user emulation.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::check::{cargo, step};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const QEMU: &str = "qemu-aarch64";
/// Where Debian puts the C library of that architecture.
const SYSROOT: &str = "/usr/aarch64-linux-gnu";
/// The plainest 64-bit ARM: what runs on it runs on any. QEMU's default has all extensions there are.
const CPU: &str = "cortex-a53";

pub(crate) fn run() -> Result<()> {
    let missing = missing();
    if !missing.is_empty() {
        bail!("cannot build for {TARGET} and run it here; on Debian and Ubuntu:\n{}", missing.join("\n"));
    }
    let kernels = |subcommand, rest: &[&str]| {
        let mut command = cargo(&[subcommand, "--package", "lacuna-kernels", "--target", TARGET]);
        command
            .args(rest)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", format!("{QEMU} -cpu {CPU} -L {SYSROOT}"));
        command
    };
    step("tests for 64-bit ARM", &mut kernels("test", &["--tests"]))?;
    step("lints for 64-bit ARM", &mut kernels("clippy", &["--all-targets", "--quiet", "--", "--deny", "warnings"]))
}

/// A command for everything that is not there.
fn missing() -> Vec<String> {
    let mut packages = vec![];
    if !runs(QEMU) {
        packages.push("qemu-user");
    }
    if !runs(LINKER) {
        packages.push("gcc-aarch64-linux-gnu");
    }
    if !Path::new(SYSROOT).join("lib/libc.so.6").exists() || !Path::new(SYSROOT).join("include/stdio.h").exists() {
        packages.push("libc6-dev-arm64-cross");
    }
    let mut missing = vec![];
    if !packages.is_empty() {
        missing.push(format!("  apt-get install {}", packages.join(" ")));
    }
    if !has_target() {
        missing.push(format!("  rustup target add {TARGET}"));
    }
    missing
}

fn runs(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Whether the toolchain in use has the target's standard library; it names the place in any case.
fn has_target() -> bool {
    let rustc = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    rustc.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}
