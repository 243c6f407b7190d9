//! A file of a checkpoint, opened: on the disk, or inflated in memory where it was compressed.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Fault, Result};
use crate::file;

/// The first bytes of a gzip file (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Most bytes that one of a gzip file may become, and those that any may: weights hardly shrink (those of bfloat16 in
/// f32 to less than half), and deflate makes a thousand zeros of one byte.
const MOST_INFLATION: u64 = 8;
const FREE_BYTES: u64 = 16 << 20;
/// Bytes that are inflated at a time.
const PIECE: u64 = 1 << 20;

/// A file to read tensors from.
pub(super) struct Part {
    pub(super) path: PathBuf,
    /// Length of what is read, in bytes.
    pub(super) len: u64,
    data: Data,
}

enum Data {
    File(File),
    Memory(Vec<u8>),
}

impl Part {
    /// Opens a regular file, and inflates one that gzip made.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) for one that cannot be read, or inflates to what no weights can be.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let fail = |fault: Fault| fault.of_file(path);
        let (file, len) = file::open(path).map_err(fail)?;
        let mut part = Self {
            path: path.to_path_buf(),
            len,
            data: Data::File(file),
        };
        if part.start().map_err(|error| fail(error.into()))?.starts_with(&GZIP) {
            let bytes = inflated(part.reader(), len).map_err(fail)?;
            part.len = bytes.len() as u64;
            part.data = Data::Memory(bytes);
        }
        Ok(part)
    }

    /// Its first bytes, 64 at most.
    pub(super) fn start(&self) -> io::Result<Vec<u8>> {
        let mut first = vec![];
        let mut reader = self.reader();
        reader.seek(SeekFrom::Start(0))?;
        reader.take(64).read_to_end(&mut first)?;
        Ok(first)
    }

    /// A reader of it, which shares its place with others of the same file: seek first.
    pub(super) fn reader(&self) -> Reader<'_> {
        match &self.data {
            Data::File(file) => Reader::File(file),
            Data::Memory(bytes) => Reader::Memory(Cursor::new(bytes)),
        }
    }

    /// The bytes from `start` on, as many as there are up to `most`.
    pub(super) fn bytes(&self, start: u64, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        let mut reader = self.reader();
        reader.seek(SeekFrom::Start(start))?;
        reader.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with those from `start` on. Where [`AT_ONCE`], several threads may call it at the same time.
    pub(super) fn read_exact_at(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        match &self.data {
            #[cfg(unix)]
            Data::File(file) => std::os::unix::fs::FileExt::read_exact_at(file, bytes, start),
            _ => {
                let mut reader = self.reader();
                reader.seek(SeekFrom::Start(start))?;
                reader.read_exact(bytes)
            }
        }
    }
}

/// The system reads files from any place, without one that readers share.
pub(super) const AT_ONCE: bool = cfg!(unix);

/// A reader of a [`Part`].
#[derive(Clone)]
pub(super) enum Reader<'a> {
    File(&'a File),
    Memory(Cursor<&'a Vec<u8>>),
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Memory(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Memory(bytes) => bytes.seek(to),
        }
    }
}

/// What gzip made `len` bytes of. Memory is asked for piece by piece, and may be refused.
fn inflated(mut compressed: impl Read + Seek, len: u64) -> std::result::Result<Vec<u8>, Fault> {
    compressed.seek(SeekFrom::Start(0))?;
    let mut decoder = MultiGzDecoder::new(BufReader::new(compressed));
    let most = len.saturating_mul(MOST_INFLATION).saturating_add(FREE_BYTES);
    let mut bytes = vec![];
    loop {
        if bytes.try_reserve(PIECE as usize).is_err() {
            return Err("what it inflates to does not fit in memory".into());
        }
        let read = decoder.by_ref().take(PIECE).read_to_end(&mut bytes);
        if read.map_err(|error| Fault::caused_by("it is no whole gzip file", error))? == 0 {
            // It is held as long as the weights are.
            bytes.shrink_to_fit();
            return Ok(bytes);
        }
        if bytes.len() as u64 > most {
            return Err(format!("its {len} bytes inflate to more than {most}, which no weights do").into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{write::GzEncoder, Compression};
    use std::io::Write;

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_gzip_made_is_made_whole() {
        let bytes: Vec<u8> = (0..3 << 20)
            .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let mut file = compressed(&bytes);
        assert_eq!(inflated(Cursor::new(&file), file.len() as u64).unwrap(), bytes);
        // Files that were put together, as gzip itself reads them.
        file.extend(compressed(b"more"));
        assert!(inflated(Cursor::new(&file), file.len() as u64)
            .unwrap()
            .ends_with(b"more"));
        file.truncate(file.len() - 9);
        let message = inflated(Cursor::new(&file), file.len() as u64).unwrap_err().to_string();
        assert!(message.contains("no whole gzip file"), "{message}");
    }

    #[test]
    fn what_shrinks_as_no_weights_do_is_refused() {
        // A byte of noise and 63 of nothing, which become about two.
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8;
        let sparse: Vec<u8> = (0..48 << 20)
            .map(|i: u32| if i.is_multiple_of(64) { noise(i / 64) } else { 0 })
            .collect();
        let file = compressed(&sparse);
        let len = file.len() as u64;
        assert!(
            (sparse.len() as u64 / 60..sparse.len() as u64 / 12).contains(&len),
            "{len}"
        );
        let message = inflated(Cursor::new(&file), len).unwrap_err().to_string();
        assert!(message.contains("which no weights do"), "{message}");
    }

    #[test]
    fn a_bomb_is_refused_before_memory_is_gone() {
        let bomb = compressed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 1 << 17);
        let message = inflated(Cursor::new(&bomb), bomb.len() as u64).unwrap_err().to_string();
        assert!(message.contains("which no weights do"), "{message}");
    }
}
