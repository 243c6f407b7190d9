//! Files of weights: only regular ones are opened, one is read whole only if its header says so, and one is in its place
//! only once it is whole.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use safetensors::tensor::{Metadata, SafeTensorError};

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

/// Name of a file that is not in its place yet.
const NEW: &str = "new";

/// Writes a safetensors file beside `path`, brings that to the disk, and only then puts it in its place: whenever the
/// process or the power goes, what was there is there as before. `before` it is put there, the caller may give the old
/// one another name, by way of a directory of this writing's own.
pub(crate) fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    before: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let written = write(path, tensors, metadata, before);
    // A part of a file is of no use, and it may be what fills the disk.
    let _ = fs::remove_dir_all(workshop(path));
    written
}

fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    before: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    if path.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let workshop = workshop(path);
    match fs::remove_dir_all(&workshop) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir(&workshop)?,
    }
    // Readable as the user's umask says: temporary files, of which safetensors' writer makes one, are the owner's
    // alone.
    let permissions = File::create(workshop.join("permissions"))?.metadata()?.permissions();
    let temporary = workshop.join(NEW);
    let metadata = metadata.into_iter().collect();
    safetensors::serialize_to_file(tensors, Some(metadata), &temporary).map_err(|error| match error {
        SafeTensorError::IoError(error) => error,
        other => io::Error::other(other),
    })?;
    fs::set_permissions(&temporary, permissions)?;
    OpenOptions::new().write(true).open(&temporary)?.sync_all()?;
    match before(&workshop) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => fs::rename(&temporary, path)?,
    }
    // The names are on the disk when their directory is. (Elsewhere than on Unix a directory cannot be opened.)
    #[cfg(unix)]
    File::open(directory(path))?.sync_all()?;
    Ok(())
}

/// What a process that ended while it wrote may have left: whole, or a part of it.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    workshop(path).join(NEW)
}

/// Where a file is written before it is put at `path`: in the same file system, and in a directory of its own, for
/// safetensors' writer has temporary files with names that nobody could tell after a kill.
fn workshop(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
}

#[cfg(unix)]
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
