//! Files of weights: only regular ones are opened, and one is read whole only if its header says so.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::Metadata;

use crate::error::Fault;

/// Longest header of a safetensors file, in bytes: the limit of the safetensors crate.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// A regular file, and how many bytes it has. Others are not opened: a pipe would wait for a writer, and a device may
/// have no end.
pub(crate) fn open(path: &Path) -> Result<(File, u64), Fault> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err("it is a directory: give the file of the weights".into());
    }
    if !metadata.is_file() {
        return Err("it is a pipe, a socket or a device: give a file".into());
    }
    Ok((File::open(path)?, metadata.len()))
}

/// The bytes of a safetensors file.
pub(crate) fn read_safetensors(path: &Path) -> Result<Vec<u8>, Fault> {
    let (mut file, len) = open(path)?;
    safetensors_header(&file, len)?;
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    let size = usize::try_from(len).unwrap_or(usize::MAX);
    if bytes.try_reserve_exact(size).is_err() {
        return Err(format!("its {len} bytes do not fit in memory").into());
    }
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The header of a safetensors file of `len` bytes, and where the tensors begin behind it.
pub(crate) fn safetensors_header(mut file: impl Read, len: u64) -> Result<(Metadata, u64), Fault> {
    let mut header_len = [0; 8];
    if len < header_len.len() as u64 {
        return Err(format!("it is cut off: {len} bytes have no room for a header").into());
    }
    file.read_exact(&mut header_len)?;
    let header_len = u64::from_le_bytes(header_len);
    if header_len > MOST_HEADER_BYTES {
        return Err(format!("its header of {header_len} bytes is longer than {MOST_HEADER_BYTES}").into());
    }
    let mut header = vec![];
    file.take(header_len).read_to_end(&mut header)?;
    if (header.len() as u64) < header_len {
        return Err("it is cut off: its header is longer than the file".into());
    }
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| Fault::caused_by("its header is damaged", error))?;
    let data = 8 + header_len;
    let expected = data.saturating_add(metadata.data_len() as u64);
    if expected != len {
        return Err(
            format!("it has {len} bytes where its header announces {expected}: it is cut off or damaged").into(),
        );
    }
    Ok((metadata, data))
}
