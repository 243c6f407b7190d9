//! Files of the IDX format in which MNIST was published, of bytes: plain, or compressed by gzip.
//!
//! Two zeros, 8 for bytes, the number of dimensions, each dimension as a big-endian u32, the values
//! (Y. LeCun et al., "The MNIST database", "THE IDX FILE FORMAT").

use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const UNSIGNED_BYTES: u8 = 8;
/// How many bytes deflate makes of one at most: RFC 1951's longest match, 258 bytes, of two bits.
const MOST_INFLATED: u64 = 1032;

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum IdxError {
    #[error("cannot read {path}: {reason}")]
    Read { path: PathBuf, reason: io::Error },
    #[error("{path} is no IDX file of bytes in {dims} dimensions: it begins with {found:02x?} instead of [00, 00, 08, {dims:02x}]")]
    Magic { path: PathBuf, dims: u8, found: [u8; 4] },
    #[error("{path} says that it is of {shape:?} bytes, which is nothing or more than a file can hold")]
    Shape { path: PathBuf, shape: Vec<u32> },
    #[error("{path} is cut off: it says that it is of {shape:?} bytes, and has {found}")]
    Truncated { path: PathBuf, shape: Vec<u32>, found: u64 },
    #[error("{path} goes on behind the {shape:?} bytes that it says it is of")]
    TooLong { path: PathBuf, shape: Vec<u32> },
}

/// Bytes in `N` dimensions, row by row.
#[derive(Debug)]
pub struct Bytes<const N: usize> {
    pub shape: [usize; N],
    pub values: Vec<u8>,
}

/// `name` in `root`, or the same compressed; none where there is neither.
pub fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let files = [root.join(name), root.join(format!("{name}.gz"))];
    files.into_iter().find(|path| path.is_file())
}

/// The values of the file, which is taken for compressed where its name ends in `.gz`.
///
/// # Errors
/// [`IdxError`], before anything is allocated that the file could not fill.
pub fn read<const N: usize>(path: &Path) -> Result<Bytes<N>, IdxError> {
    let cannot = |reason| IdxError::Read {
        path: path.into(),
        reason,
    };
    let file = File::open(path).map_err(cannot)?;
    let length = file.metadata().map_err(cannot)?.len();
    let file = BufReader::new(file);
    if path.extension().is_some_and(|extension| extension == "gz") {
        parse(path, MultiGzDecoder::new(file), length.saturating_mul(MOST_INFLATED))
    } else {
        parse(path, file, length)
    }
}

/// The values of what `reader` yields, at most `most` bytes.
fn parse<const N: usize>(path: &Path, mut reader: impl Read, most: u64) -> Result<Bytes<N>, IdxError> {
    let mut fill = |bytes: &mut [u8]| match reader.read_exact(bytes) {
        Err(reason) if reason.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true).map_err(|reason| IdxError::Read {
            path: path.into(),
            reason,
        }),
    };
    let mut magic = [0; 4];
    if !fill(&mut magic)? || magic != [0, 0, UNSIGNED_BYTES, N as u8] {
        return Err(IdxError::Magic {
            path: path.into(),
            dims: N as u8,
            found: magic,
        });
    }
    let mut shape = [0u32; N];
    for dim in &mut shape {
        let mut bytes = [0; 4];
        if !fill(&mut bytes)? {
            return Err(IdxError::Truncated {
                path: path.into(),
                shape: vec![],
                found: 0,
            });
        }
        *dim = u32::from_be_bytes(bytes);
    }
    let count = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim.into()));
    let fits = |&count: &u64| count > 0 && usize::try_from(count).is_ok();
    let Some(count) = count.filter(fits) else {
        return Err(IdxError::Shape {
            path: path.into(),
            shape: shape.into(),
        });
    };
    let truncated = |found| IdxError::Truncated {
        path: path.into(),
        shape: shape.into(),
        found,
    };
    if count > most {
        return Err(truncated(most));
    }
    // It grows with what is there: a compressed file of zeros could fill far more memory than its own length.
    let mut values = vec![];
    let read = reader.take(count + 1).read_to_end(&mut values);
    match read {
        // A compressed file may be cut off, too.
        Err(reason) if reason.kind() == io::ErrorKind::UnexpectedEof => return Err(truncated(values.len() as u64)),
        Err(reason) => {
            return Err(IdxError::Read {
                path: path.into(),
                reason,
            })
        }
        Ok(_) if (values.len() as u64) < count => return Err(truncated(values.len() as u64)),
        Ok(_) if values.len() as u64 > count => {
            return Err(IdxError::TooLong {
                path: path.into(),
                shape: shape.into(),
            })
        }
        Ok(_) => values.shrink_to_fit(),
    }
    Ok(Bytes {
        shape: shape.map(|dim| dim as usize),
        values,
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use flate2::write::GzEncoder;
    use flate2::Compression;
    use std::io::Write;

    /// The file's bytes.
    pub fn file(shape: &[u32], values: &[u8]) -> Vec<u8> {
        let dims = shape.iter().flat_map(|dim| dim.to_be_bytes());
        [0, 0, 8, shape.len() as u8]
            .into_iter()
            .chain(dims)
            .chain(values.iter().copied())
            .collect()
    }

    pub fn compressed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_of(name: &str, bytes: &[u8]) -> Result<Bytes<2>, IdxError> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    }

    #[test]
    fn a_file_is_read_plain_or_compressed() {
        let whole = file(&[2, 3], &[1, 2, 3, 4, 5, 250]);
        for (name, bytes) in [("a", whole.clone()), ("a.gz", compressed(&whole))] {
            let read = read_of(name, &bytes).unwrap();
            assert_eq!((read.shape, read.values), ([2, 3], vec![1, 2, 3, 4, 5, 250]));
        }
    }

    /// As `cat` of two compressed files leaves them.
    #[test]
    fn a_file_compressed_in_pieces_is_read_to_its_end() {
        let whole = file(&[2, 3], &[1, 2, 3, 4, 5, 250]);
        for at in [3, 8, 12, 15] {
            let pieces = [compressed(&whole[..at]), compressed(&whole[at..])].concat();
            assert_eq!(read_of("a.gz", &pieces).unwrap().values, [1, 2, 3, 4, 5, 250], "{at}");
        }
        let more = [compressed(&whole), compressed(&[0])].concat();
        assert!(matches!(read_of("a.gz", &more), Err(IdxError::TooLong { .. })));
    }

    #[test]
    fn what_is_cut_off_or_goes_on_is_refused() {
        let whole = file(&[2, 3], &[9; 6]);
        for length in 0..whole.len() {
            for (name, bytes) in [("a", whole[..length].to_vec()), ("a.gz", compressed(&whole[..length]))] {
                let error = read_of(name, &bytes).unwrap_err();
                match length {
                    ..4 => assert!(matches!(error, IdxError::Magic { .. }), "{error}"),
                    _ => assert!(matches!(error, IdxError::Truncated { .. }), "{error}"),
                }
            }
        }
        // Where the compression is cut off, not what was compressed.
        let short = compressed(&whole);
        for length in 0..short.len() {
            assert!(read_of("a.gz", &short[..length]).is_err(), "{length}");
        }
        let error = read_of("a", &[&whole[..], &[0]].concat()).unwrap_err();
        assert!(matches!(error, IdxError::TooLong { .. }), "{error}");
    }

    #[test]
    fn other_files_are_refused_by_their_first_bytes() {
        for bytes in [
            file(&[2], &[1, 2]),
            [0, 0, 13, 2].repeat(5),
            b"\x89PNG and so on".to_vec(),
            compressed(&file(&[2, 1], &[1, 2])),
        ] {
            let error = read_of("a", &bytes).unwrap_err();
            assert!(matches!(error, IdxError::Magic { dims: 2, .. }), "{error}");
        }
        assert!(matches!(
            read_of("a.gz", b"plain, not compressed"),
            Err(IdxError::Read { .. })
        ));
        let absent = read::<1>(Path::new("absent")).unwrap_err().to_string();
        assert!(absent.starts_with("cannot read absent: "), "{absent}");
    }

    /// Nothing of such a size is asked of the system.
    #[test]
    fn sizes_that_no_file_of_this_length_has_are_refused_before_they_are_allocated() {
        let error = |name: &str, shape: &[u32]| {
            let whole = file(shape, &[1, 2, 3]);
            let bytes = if name == "a" { whole } else { compressed(&whole) };
            read_of(name, &bytes).unwrap_err()
        };
        for name in ["a", "a.gz"] {
            assert!(matches!(error(name, &[1 << 20, 1 << 20]), IdxError::Truncated { .. }));
            assert!(matches!(error(name, &[u32::MAX, u32::MAX]), IdxError::Truncated { .. }));
            assert!(matches!(error(name, &[0, 3]), IdxError::Shape { .. }));
        }
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        std::fs::write(&path, file(&[u32::MAX; 3], &[1])).unwrap();
        assert!(matches!(read::<3>(&path), Err(IdxError::Shape { .. })));
    }
}
