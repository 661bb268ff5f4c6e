//! The crate's one room with unsafe code: libraries of CUDA, found at run time, and what is asked of them.
//!
//! Nothing here panics where something is missing: cudarc would, at the first call into a library that is not there, so
//! each way in ([`found`], [`Device::open`], [`compile`], and the first dense product) asks first whether it is.

#![allow(unsafe_code)]

mod compile;
mod dense;
mod device;
mod found;
mod probe;

pub use compile::{Architecture, compile};
pub use device::Device;
pub use found::{Found, Gpu, found};
pub use probe::Probe;
