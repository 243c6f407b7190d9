//! Zip archives: where their entries lie, which are read in place.

use std::collections::BTreeMap;
use std::io::BufReader;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::part::Part;
use crate::error::Fault;

/// A run of bytes in a file.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// The entries of an archive.
pub(super) struct Archive {
    pub(super) entries: BTreeMap<String, Run>,
    /// An entry that does not lie there as it is.
    pub(super) compressed: Option<String>,
}

impl Archive {
    pub(super) fn read(part: &Part) -> Result<Self, Fault> {
        let damaged = |error: zip::result::ZipError| Fault::caused_by("it is cut off, or no zip archive", error);
        // It begins with the file. Looked for, the directory of a file of PyTorch's seems to begin with its second entry
        // where the first one takes the 76 bytes that lie behind it: in files whose names have 21 letters.
        let config = Config {
            archive_offset: ArchiveOffset::Known(0),
        };
        let archive = ZipArchive::with_config(config, BufReader::new(part.reader()));
        let mut archive = archive.map_err(damaged)?;
        let (mut entries, mut compressed) = (BTreeMap::new(), None);
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(damaged)?;
            let name = entry.name().map_err(damaged)?.into_owned();
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                compressed = Some(name.clone());
            }
            if let Some(start) = entry.data_start() {
                // What it announces, and no more than there is.
                let bytes = entry.size().min(part.len.saturating_sub(start));
                entries.insert(name, Run { start, bytes });
            }
        }
        Ok(Self { entries, compressed })
    }
}
