//! Any bytes at all, read as a safetensors file that holds a packed layer: refused, or decoded to a layer that survives
//! its own round trip. Five bytes choose the pattern, the shape and the scales, the rest is the file.

#![no_main]

use lacuna_core::{Pattern, ScaleGroup};
use lacuna_format::{PackedTensors, pack_tensors, read_header, read_packed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[v, m, rows, cols, scales], file)) = input.split_first_chunk::<5>() else { return };
    let Ok(pattern) = Pattern::new(v.into(), m.into()) else { return };
    let Ok(header) = read_header(file, file.len() as u64) else { return };
    let data = &file[header.data_start as usize..];
    let tensors = header.metadata.tensors();
    let part = |name: &str| {
        let info = tensors.get(name)?;
        Some((info.dtype, &info.shape[..], &data[info.data_offsets.0..info.data_offsets.1]))
    };
    let (Some(values), Some(columns), Some(positions)) = (part("l.values"), part("l.columns"), part("l.positions"))
    else {
        return;
    };
    let groups = [None, Some(ScaleGroup::Of32), Some(ScaleGroup::Of64), Some(ScaleGroup::Of128)];
    let group = groups[usize::from(scales) % groups.len()];
    let scales = group.and_then(|group| Some((group, part("l.scales")?)));
    if group.is_some() != scales.is_some() {
        return;
    }
    let raw = PackedTensors { values, columns, positions, row_order: part("l.row_order"), scales };
    let shape = [rows.into(), cols.into()];
    if let Ok(packed) = read_packed("l", pattern, shape, &raw) {
        let _ = packed.unpack();
        let again = pack_tensors("l", &packed);
        let same = [("l.values", values.2), ("l.columns", columns.2), ("l.positions", positions.2)];
        let scales = scales.map(|(_, scales)| ("l.scales", scales.2));
        for (name, bytes) in same.into_iter().chain(scales) {
            let tensor = again.iter().find(|(n, _)| n == name).expect("packed again");
            assert_eq!(tensor.1.data(), bytes, "{name}");
        }
    }
});
