//! The launch module on whatever machine this is: nothing panics where something is missing, and where a GPU is there, one
//! product is the CPU's. `cargo xtask gpu-check` is the thorough form of the latter.

#[path = "../../lacuna-kernels/tests/support/random.rs"]
mod support;

use lacuna_core::{Dtype, Matrix, Packed};
use lacuna_cuda::launch::{Architecture, Device, compile, found};
use lacuna_cuda::{Activations, Dense, Error, HalfType, Sparse, all, source};
use lacuna_kernels::sparse::REFERENCE;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[test]
fn what_is_missing_is_an_error_that_names_it() {
    let found = found();
    if found.driver.is_none() {
        assert!(found.gpus.is_empty());
        assert!(matches!(Device::open(0), Err(Error::Missing(name)) if name.contains("libcuda")));
    }
    if found.nvrtc.is_none() {
        let compiled = compile(&source(&all()[..1]), Architecture::Machine(8, 0));
        assert!(matches!(compiled, Err(Error::Missing("NVRTC"))));
        assert!(Architecture::of((9, 0)).is_err());
    }
}

#[test]
fn a_gpu_newer_than_nvrtc_gets_portable_text() {
    if found().nvrtc.is_none() {
        eprintln!("SKIPPED: no NVRTC here (cargo xtask cuda-compile brings one)");
        return;
    }
    assert_eq!(Architecture::of((9, 0)).unwrap(), Architecture::Machine(9, 0));
    assert!(matches!(Architecture::of((99, 0)).unwrap(), Architecture::Portable(..)));
    let text = compile(&source(&all()[..1]), Architecture::Portable(8, 0)).unwrap();
    assert!(String::from_utf8_lossy(&text).contains(".target sm_80"));
}

#[test]
fn a_gpu_computes_what_the_cpu_computes() {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(why) => {
            eprintln!("SKIPPED: {why}");
            return;
        }
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (rows, cols, half) = (130, 256, HalfType::F16);
    let mask = support::random_mask(&mut rng, "64:2:8".parse().unwrap(), rows, cols);
    let (weight, order) = (support::random_matrix(&mut rng, rows, cols), support::random_order(&mut rng, rows));
    let packed = Packed::pack(&weight, mask, Dtype::F16, Some(order)).unwrap();
    for tokens in [1, 40, 100] {
        // Powers of two are exact in every type.
        let x: Vec<f32> = (0..cols * tokens).map(|i| [0.5, -0.25, 1.0][i % 3]).collect();
        let mut want = Matrix::zeros(rows, tokens);
        let weight = (REFERENCE.prepare)(&packed, None, lacuna_kernels::Activations::F32);
        weight.multiply(&Matrix::new(cols, tokens, x.clone()).unwrap(), &mut want);
        let x = Activations::upload(&device, half, [cols, tokens], &x).unwrap();
        let mut y = Activations::filled(&device, half, [rows, tokens], f32::NAN).unwrap();
        Sparse::upload(&device, &packed, None, half).unwrap().multiply(&device, &x, &mut y).unwrap();
        let mut dense = Activations::filled(&device, half, [rows, tokens], f32::NAN).unwrap();
        if found().cublaslt {
            let weight = Dense::upload(&device, half, [rows, cols], packed.unpack().data().iter().copied()).unwrap();
            weight.multiply(&device, &x, &mut dense).unwrap();
        } else {
            dense = Activations::upload(&device, half, [rows, tokens], want.data()).unwrap();
        }
        for got in [y, dense] {
            let got = got.download(&device).unwrap();
            let off = got.iter().zip(want.data()).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            // At most 64 products of magnitude 1, a sum below 64, rounded to 11 bits once; NaN is no match either.
            assert!(off <= 64.0 * 2_f32.powi(-11), "{off} off");
            assert!(got.iter().all(|y| y.is_finite()));
        }
    }
}
