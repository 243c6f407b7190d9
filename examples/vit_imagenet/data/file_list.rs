//! Millions of file names in little memory.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Relative paths, one behind the other in one piece of memory: their bytes and one number each.
#[derive(Clone, Debug, Default)]
pub struct FileList {
    // A zero, which no name contains, stands between a directory and what is in it. It sorts before everything, so
    // comparing bytes compares component by component, as a sorted walk through the tree would go.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl FileList {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn push(&mut self, path: &Path) {
        let mut names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_encoded_bytes()),
            _ => None,
        });
        self.bytes.extend_from_slice(names.next().unwrap_or_default());
        for name in names {
            self.bytes.push(0);
            self.bytes.extend_from_slice(name);
        }
        self.ends.push(self.bytes.len());
    }

    /// File number `i`.
    pub fn get(&self, i: usize) -> PathBuf {
        let names = self.entry(i).split(|&byte| byte == 0);
        // SAFETY: each is a whole name as `OsStr::as_encoded_bytes` gave it to `push`.
        names
            .map(|name| unsafe { OsStr::from_encoded_bytes_unchecked(name) })
            .collect()
    }

    /// The same files in order, without spare memory.
    pub fn sorted(&self) -> Self {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by_key(|&i| self.entry(i));
        let (mut bytes, mut ends) = (
            Vec::with_capacity(self.bytes.len()),
            Vec::with_capacity(self.ends.len()),
        );
        for i in order {
            bytes.extend_from_slice(self.entry(i));
            ends.push(bytes.len());
        }
        Self { bytes, ends }
    }

    fn entry(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start..self.ends[i]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list<'a>(paths: impl IntoIterator<Item = &'a Path>) -> FileList {
        let mut list = FileList::default();
        paths.into_iter().for_each(|path| list.push(path));
        list
    }

    proptest! {
        #[test]
        fn gives_back_what_was_pushed_in_the_order_of_paths(
            names in prop::collection::vec(prop::collection::vec("[a-c.é -]{1,4}", 1..4), 0..40),
        ) {
            let paths: Vec<PathBuf> = names
                .iter()
                .map(|parts| parts.iter().filter(|part| *part != "." && *part != "..").collect())
                .collect();
            let list = list(paths.iter().map(PathBuf::as_path));
            prop_assert_eq!((0..list.len()).map(|i| list.get(i)).collect::<Vec<_>>(), &paths[..]);
            let mut expected = paths;
            expected.sort();
            let sorted = list.sorted();
            prop_assert_eq!((0..sorted.len()).map(|i| sorted.get(i)).collect::<Vec<_>>(), expected);
        }
    }

    #[cfg(unix)]
    #[test]
    fn names_need_not_be_unicode() {
        use std::os::unix::ffi::OsStrExt;
        let latin = Path::new(OsStr::from_bytes(b"dir/caf\xe9.jpg"));
        assert_eq!(list([latin]).get(0), latin);
    }

    #[test]
    fn a_million_files_take_thirty_bytes_each() {
        let mut list = FileList::default();
        for i in (0..1_000_000).rev() {
            list.push(Path::new(&format!("n01440764_{i}.JPEG")));
        }
        let sorted = list.sorted();
        assert_eq!(sorted.len(), 1_000_000);
        assert_eq!(sorted.get(1), Path::new("n01440764_1.JPEG"));
        let bytes = sorted.bytes.capacity() + sorted.ends.capacity() * size_of::<usize>();
        assert!(bytes < 30_000_000, "{bytes}");
    }
}
