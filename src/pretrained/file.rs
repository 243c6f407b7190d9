//! A checkpoint's file: which tensors it holds and where, each read when it is asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::pth;
use super::stored::{Contents, Stored};
use crate::error::{Fault, Result};
use crate::file;

/// Prefixes that PyTorch puts before the names of a module that it wraps: `DistributedDataParallel` and
/// `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// A file of tensors. Nothing of it is in memory but names and sizes.
pub(super) struct TensorFile {
    /// As the user gave it.
    pub(super) path: String,
    file: File,
    pub(super) tensors: BTreeMap<String, Stored>,
    /// The key that the tensors lie below, in a file that has others.
    pub(super) key: Option<String>,
    /// Keys of the file beside them.
    pub(super) beside: Vec<String>,
}

impl TensorFile {
    /// Opens a safetensors or a PyTorch file. Its first bytes say which it is: the endings of names differ (`.pth`,
    /// `.pt`, `.bin`).
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) for one that cannot be read, is cut off, or is neither;
    /// [`Error::CodeInCheckpoint`](crate::Error::CodeInCheckpoint).
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let fail = |fault: Fault| fault.of_file(path);
        let io = |error: std::io::Error| fail(error.into());
        let (mut file, len) = file::open(path).map_err(fail)?;
        let mut first = vec![];
        file.by_ref().take(16).read_to_end(&mut first).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let contents = match first[..] {
            [] => Err(fail("it is empty".into())),
            // A safetensors file starts with the length of its header, which may be any byte.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => read_safetensors(&file, len).map_err(fail),
            [b'P', b'K', ..] => pth::read_zip(&name, &file, len),
            [0x80, ..] => pth::read_legacy(&name, &file, len),
            _ => Err(fail("it is neither a safetensors nor a PyTorch file".into())),
        }?;
        let Contents { tensors, key, beside } = contents;
        if tensors.is_empty() {
            return Err(fail("it holds no tensor".into()));
        }
        Ok(Self {
            path: name,
            file,
            tensors: unwrapped(tensors),
            key,
            beside,
        })
    }

    /// A tensor as the file has it, on the CPU.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) when the file cannot be read any more.
    pub(super) fn read(&self, stored: &Stored) -> Result<Tensor> {
        let fail = |error: std::io::Error| Fault::from(error).of_file(Path::new(&self.path));
        let size = stored.dtype.size_in_bytes();
        let mut bytes = vec![0; stored.span() * size];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(stored.start)).map_err(fail)?;
        file.read_exact(&mut bytes).map_err(fail)?;
        if stored.strides != Stored::contiguous_strides(&stored.shape) {
            bytes = in_order(&bytes, stored);
        }
        Ok(Tensor::from_raw_buffer(
            &bytes,
            stored.dtype,
            &stored.shape,
            &Device::Cpu,
        )?)
    }
}

/// The tensors by their names within the wrappers that are around all of them: one may wrap another.
fn unwrapped(mut tensors: BTreeMap<String, Stored>) -> BTreeMap<String, Stored> {
    let around_all = |tensors: &BTreeMap<String, Stored>| {
        let mut wrappers = WRAPPERS.into_iter();
        wrappers.find(|wrapper| tensors.keys().all(|name| name.starts_with(wrapper)))
    };
    // As deep as a model may be wrapped by both, whatever a file says.
    for _ in WRAPPERS {
        let Some(wrapper) = around_all(&tensors) else { break };
        let bare = |name: String| name.strip_prefix(wrapper).map(str::to_string).unwrap_or(name);
        tensors = tensors.into_iter().map(|(name, stored)| (bare(name), stored)).collect();
    }
    tensors
}

/// The elements of a strided tensor one after the other.
fn in_order(bytes: &[u8], stored: &Stored) -> Vec<u8> {
    let size = stored.dtype.size_in_bytes();
    let mut ordered = Vec::with_capacity(stored.elem_count() * size);
    let mut index = vec![0; stored.shape.len()];
    for _ in 0..stored.elem_count() {
        let start: usize = index.iter().zip(&stored.strides).map(|(i, stride)| i * stride).sum();
        ordered.extend_from_slice(bytes.get(start * size..(start + 1) * size).unwrap_or_default());
        // The next element: the last index counts on, and where it is at its end, the one before.
        for (i, n) in index.iter_mut().zip(&stored.shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    ordered
}

/// The header alone.
fn read_safetensors(file: &File, len: u64) -> std::result::Result<Contents, Fault> {
    let (metadata, data) = file::safetensors_header(file, len)?;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        // candle knows some types by name alone, and gives them no size.
        let dtype = DType::try_from(info.dtype)
            .ok()
            .filter(|dtype| dtype.size_in_bytes() > 0);
        let dtype =
            dtype.ok_or_else(|| format!("tensor {name} has elements of {:?}, which is not read here", info.dtype))?;
        let (first, last) = info.data_offsets;
        let stored = Stored {
            dtype,
            strides: Stored::contiguous_strides(&info.shape),
            shape: info.shape.clone(),
            start: data + first as u64,
        };
        stored.check(&name, (last - first) as u64)?;
        tensors.insert(name, stored);
    }
    Ok(Contents {
        tensors,
        key: None,
        beside: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(shape: &[usize], strides: &[usize]) -> Stored {
        Stored {
            dtype: DType::F32,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            start: 0,
        }
    }

    #[test]
    fn a_strided_tensor_is_put_in_order() {
        let cases: [(&[usize], &[usize], &[f32]); 4] = [
            // Transposed, a column, every other, none.
            (&[2, 3], &[1, 2], &[0.0, 2.0, 4.0, 1.0, 3.0, 5.0]),
            (&[3], &[2], &[0.0, 2.0, 4.0]),
            (&[2, 1, 2], &[4, 9, 1], &[0.0, 1.0, 4.0, 5.0]),
            (&[0, 3], &[3, 1], &[]),
        ];
        for (shape, strides, expected) in cases {
            let stored = stored(shape, strides);
            let bytes: Vec<u8> = (0..stored.span()).flat_map(|i| (i as f32).to_le_bytes()).collect();
            let expected: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(in_order(&bytes, &stored), expected, "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn what_does_not_lie_in_the_file_is_refused() {
        stored(&[2, 3], &[3, 1]).check("w", 24).unwrap();
        stored(&[], &[]).check("w", 4).unwrap();
        stored(&[0, 3], &[3, 1]).check("w", 24).unwrap();
        for (shape, strides, available) in [
            (vec![2, 3], vec![3, 1], 23),
            (vec![2, 3], vec![4, 1], 24),
            // As many as one likes, all the same.
            (vec![1 << 40], vec![0], 24),
            (vec![usize::MAX, usize::MAX], vec![usize::MAX, usize::MAX], u64::MAX),
            (vec![usize::MAX, 2], vec![2, 1], u64::MAX),
            (vec![0, 1 << 40], vec![1, 1], 24),
        ] {
            let message = stored(&shape, &strides).check("w", available).unwrap_err().to_string();
            assert!(message.contains("tensor w of shape"), "{message}");
        }
    }
}
