//! A model as safetensors: made, and loaded back through mmap.
#![allow(unsafe_code)] // memmap2's map: see the SAFETY note at its one use.

use std::fs::File;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::exit::{Failure, Kind};

/// Bytes of one layer's tensor: 8192 rows of 1024 half-precision numbers.
const LAYER: usize = 16 << 20;

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Other, format!("{what}: {error}"))
}

/// The number that fills layer `index`, so that a swapped or shifted tensor shows.
fn fill(index: usize, at: usize) -> u8 {
    (at.wrapping_mul(31).wrapping_add(index.wrapping_mul(97)) >> 3) as u8
}

/// Makes a model of at least `size` bytes.
pub(super) fn make(path: &Path, size: u64) -> Result<usize, Failure> {
    let layers = (size as usize).div_ceil(LAYER).max(1);
    let data: Vec<Vec<u8>> =
        (0..layers).map(|index| (0..LAYER).map(|at| fill(index, at)).collect()).collect();
    let mut tensors = Vec::with_capacity(layers);
    for (index, bytes) in data.iter().enumerate() {
        let view = TensorView::new(Dtype::F16, vec![8192, 1024], bytes);
        let view = view.map_err(|e| failed("making the model", e))?;
        tensors.push((format!("model.layers.{index}.weight"), view));
    }
    safetensors::serialize_to_file(tensors, None, path)
        .map_err(|e| failed("making the model", e))?;
    Ok(layers)
}

/// Loads the model as an inference server does: mmap, parse the header, touch every tensor.
/// Checks every byte. Returns the bytes checked.
pub(super) fn load(path: &Path, layers: usize) -> Result<u64, Failure> {
    let file = File::open(path).map_err(|e| failed("opening the model", e))?;
    // SAFETY: the mapping is read-only and private to this function; the demo made the file and
    // nobody else writes it meanwhile.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| failed("mmap of the model", e))?;
    let model = SafeTensors::deserialize(&map).map_err(|e| failed("parsing the model", e))?;
    if model.len() != layers {
        return Err(failed("checking the model", format!("{} tensors of {layers}", model.len())));
    }
    let mut checked = 0;
    for index in 0..layers {
        let name = format!("model.layers.{index}.weight");
        let tensor = model.tensor(&name).map_err(|e| failed(&name, e))?;
        let right = tensor.dtype() == Dtype::F16
            && tensor.shape() == [8192, 1024]
            && tensor.data().iter().enumerate().all(|(at, byte)| *byte == fill(index, at));
        if !right {
            return Err(failed("checking the model", format!("{name} has wrong bytes")));
        }
        checked += tensor.data().len() as u64;
    }
    Ok(checked)
}
