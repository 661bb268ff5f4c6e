//! What this machine has to compute with, and what each missing part costs.

use lacuna_cuda::launch::{Found, Gpu};
use serde::Serialize;

/// One part, there or not.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// `cpu`, `driver`, `nvrtc`, `cublaslt`, `gpu`
    pub part: &'static str,
    /// what was found
    pub found: Option<String>,
    /// what cannot be done as it is, and how to change that
    pub costs: Option<String>,
}

/// Looks at everything. Nothing of CUDA has to be there.
pub fn parts() -> Vec<Part> {
    parts_of(&lacuna_cuda::launch::found())
}

fn parts_of(found: &Found) -> Vec<Part> {
    let mut parts = vec![cpu(), driver(found), nvrtc(found), cublaslt(found)];
    if found.gpus.is_empty() {
        let costs = "no GPU is used; everything runs on the CPU".to_owned();
        parts.push(Part { part: "gpu", found: None, costs: Some(costs) });
    }
    parts.extend(found.gpus.iter().map(gpu));
    parts
}

fn cpu() -> Part {
    let best = crate::kernels::list().into_iter().find(|kernel| kernel.weights == "sparse" && kernel.available);
    let name = best.map_or("none", |kernel| kernel.name);
    let slow = (name == "portable").then_some(
        "this CPU has no vector instructions that a kernel is written for (lacuna kernels lists them); products are slow",
    );
    Part { part: "cpu", found: Some(format!("sparse kernel {name}")), costs: slow.map(str::to_owned) }
}

fn driver(found: &Found) -> Part {
    let version = found.driver.map(|(major, minor)| format!("libcuda, CUDA {major}.{minor}"));
    let costs = match (&version, &found.driver_error) {
        (None, _) => Some("no GPU can be used: install NVIDIA's driver, 555 or newer".to_owned()),
        (Some(_), Some(error)) => Some(format!("the driver sees no GPU: {error}")),
        (Some(_), None) => None,
    };
    Part { part: "driver", found: version, costs }
}

fn nvrtc(found: &Found) -> Part {
    let get = "pip install nvidia-cuda-nvrtc-cu12, and put the folder of libnvrtc.so.12 into LD_LIBRARY_PATH";
    let costs = match found.nvrtc {
        None => Some(format!("kernels cannot be compiled for the GPU: {get}")),
        Some(version) if version < (12, 5) => Some(format!("too old for the sparse kernels, which need 12.5: {get}")),
        Some(_) => None,
    };
    Part { part: "nvrtc", found: found.nvrtc.map(|(major, minor)| format!("NVRTC {major}.{minor}")), costs }
}

fn cublaslt(found: &Found) -> Part {
    let get = "pip install nvidia-cublas-cu12, and put the folder of libcublasLt.so.12 into LD_LIBRARY_PATH";
    Part {
        part: "cublaslt",
        found: found.cublaslt.then(|| "cuBLASLt".to_owned()),
        costs: (!found.cublaslt).then(|| format!("dense products cannot run on the GPU: {get}")),
    }
}

fn gpu(gpu: &Gpu) -> Part {
    let (major, minor) = gpu.capability;
    let gib = gpu.memory as f64 / f64::from(1 << 30);
    let multiprocessors = gpu.limits.multiprocessors;
    let text = format!("{}, capability {major}.{minor}, {multiprocessors} multiprocessors, {gib:.0} GiB", gpu.name);
    let old =
        (!gpu.has_sparse_tensor_cores()).then_some("it has no sparse tensor cores: 8.0 (Ampere) or newer is needed");
    Part { part: "gpu", found: Some(text), costs: old.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use lacuna_cuda::Limits;

    use super::*;

    #[test]
    fn every_missing_part_says_what_it_costs() {
        let nothing = Found { driver: None, nvrtc: None, cublaslt: false, gpus: vec![], driver_error: None };
        let parts = parts_of(&nothing);
        let names: Vec<&str> = parts.iter().map(|part| part.part).collect();
        assert_eq!(names, ["cpu", "driver", "nvrtc", "cublaslt", "gpu"]);
        assert!(parts[1..].iter().all(|part| part.found.is_none() && part.costs.is_some()));
    }

    #[test]
    fn parts_that_are_there_but_do_not_serve_say_so() {
        let gpu = |capability| Gpu {
            name: "a GPU".to_owned(),
            capability,
            memory: 80 << 30,
            cache: 1 << 20,
            limits: Limits { shared_bytes: 99 << 10, multiprocessors: 100, bulk: false },
        };
        let found = Found {
            driver: Some((12, 2)),
            nvrtc: Some((12, 4)),
            cublaslt: true,
            gpus: vec![gpu((7, 5)), gpu((9, 0))],
            driver_error: None,
        };
        let costs: Vec<bool> = parts_of(&found)[1..].iter().map(|part| part.costs.is_some()).collect();
        // driver, NVRTC, cuBLASLt, a Turing GPU, a Hopper one
        assert_eq!(costs, [false, true, false, true, false]);
    }
}
