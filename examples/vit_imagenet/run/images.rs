//! The images that a run was started with, so that it goes on with no others.

use super::dir::RunDir;
use crate::data::image_tree::TreeError;
use crate::data::Dataset;
use crate::ranks;
use anyhow::{bail, ensure, Context, Result};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// Every file with its size, a line each, as the run began. A checkpoint carries the list's digest.
const FILE: &str = "images.txt";
const DIGEST: &str = "images/digest";
const UNREADABLE: &str = "images/unreadable";

pub struct Images {
    /// Until it is written.
    list: Option<String>,
    digest: String,
    root: PathBuf,
    /// Training images that ended the run: when they were mended, they are others.
    unreadable: BTreeSet<String>,
}

impl Images {
    /// Those of `data`, where they are files below `root`.
    pub fn of(data: &dyn Dataset, root: Option<&Path>) -> Self {
        let list = data.files();
        Self {
            digest: digest(list.as_deref().unwrap_or_default()),
            list,
            root: root.unwrap_or(Path::new("")).into(),
            unreadable: BTreeSet::new(),
        }
    }

    /// How many bytes [`write`](Self::write) will write.
    pub fn bytes(&self) -> usize {
        self.list.as_ref().map_or(0, String::len)
    }

    /// Leaves the list in the run's directory.
    pub fn write(&mut self, out: &RunDir) -> Result<()> {
        match self.list.take() {
            Some(list) if !out.path().join(FILE).exists() => out.write(FILE, list.as_bytes()),
            _ => Ok(()),
        }
    }

    /// What a checkpoint has to keep.
    pub fn settings(&self) -> Result<[(&'static str, String); 2]> {
        Ok([
            (DIGEST, self.digest.clone()),
            (UNREADABLE, serde_json::to_string(&self.unreadable)?),
        ])
    }

    /// The image that ends the run with `error`, if it was one.
    pub fn unreadable(&self, error: &anyhow::Error) -> Option<String> {
        let Some(TreeError::Unreadable { path, .. }) = error.downcast_ref() else {
            return None;
        };
        Some(name(path.strip_prefix(&self.root).unwrap_or(path)))
    }

    /// Remembers the image that ended the run, unless its name is empty; returns whether it is a new one.
    pub fn note(&mut self, name: &str) -> bool {
        !name.is_empty() && self.unreadable.insert(name.into())
    }

    /// Goes on as the run that has these settings.
    ///
    /// # Errors
    /// When the images are not the run's: names the first that differs. Of images to evaluate on and of those that ended the
    /// run the size may differ, which is told.
    pub fn resume(&mut self, settings: &BTreeMap<String, String>, out: &RunDir) -> Result<()> {
        let setting = |name| {
            let setting = settings.get(name);
            setting.with_context(|| format!("the checkpoint has no {name}"))
        };
        self.unreadable = serde_json::from_str(setting(UNREADABLE)?).context("the checkpoint's unreadable images")?;
        let was = setting(DIGEST)?;
        if *was == self.digest {
            return Ok(());
        }
        let list = std::fs::read_to_string(out.path().join(FILE)).unwrap_or_default();
        ensure!(
            digest(&list) == *was,
            "a run goes on with the images it was started with, but these are others ({FILE} in {}, which would tell the \
             first difference, is gone or changed)",
            out.path().display()
        );
        let all = differences(&list, self.list.as_deref().unwrap_or_default());
        let harmless = |difference: &Difference| {
            matches!(difference.kind, Kind::Size { .. })
                && (!difference.name.starts_with("train") || self.unreadable.contains(&difference.name))
        };
        let (harmless, others): (Vec<_>, Vec<_>) = all.into_iter().partition(harmless);
        if let Some(sentence) = sentence(&others) {
            bail!("a run goes on with the images it was started with, but {sentence}");
        }
        if let Some(sentence) = sentence(&harmless).filter(|_| ranks::tells()) {
            eprintln!("changed since the run was started: {sentence}");
        }
        // The list and its digest stay those of the run's beginning.
        (self.digest, self.list) = (was.clone(), None);
        Ok(())
    }
}

/// A line of the list.
pub fn line(path: &Path, bytes: u64) -> String {
    format!("{bytes} {}\n", name(path))
}

/// A path as text without a line break in it, from which any other path differs.
fn name(path: &Path) -> String {
    let quoted = format!("{path:?}");
    quoted[1..quoted.len() - 1].to_string()
}

fn digest(list: &str) -> String {
    format!("{:08x}", crc32fast::hash(list.as_bytes()))
}

struct Difference {
    name: String,
    kind: Kind,
}

enum Kind {
    New,
    Gone,
    Size { was: String, now: String },
}

/// In the order of the lists, which is the same.
fn differences(was: &str, now: &str) -> Vec<Difference> {
    let parse = |list| -> Vec<(&str, &str)> { str::lines(list).filter_map(|line| line.split_once(' ')).collect() };
    let (was, now) = (parse(was), parse(now));
    let then: HashSet<&str> = was.iter().map(|line| line.1).collect();
    let mut differences = Vec::new();
    let mut differs = |name: &str, kind| {
        let name = name.to_string();
        differences.push(Difference { name, kind });
    };
    let mut old = was.into_iter();
    for (size, name) in now {
        if !then.contains(name) {
            differs(name, Kind::New);
            continue;
        }
        for (old_size, old_name) in old.by_ref() {
            if old_name != name {
                differs(old_name, Kind::Gone);
                continue;
            }
            if old_size != size {
                let (was, now) = (old_size.to_string(), size.to_string());
                differs(name, Kind::Size { was, now });
            }
            break;
        }
    }
    old.for_each(|(_, name)| differs(name, Kind::Gone));
    differences
}

/// The first, and how many others there are.
fn sentence(differences: &[Difference]) -> Option<String> {
    let (Difference { name, kind }, others) = differences.split_first()?;
    let first = match kind {
        Kind::New => format!("{name} is new"),
        Kind::Gone => format!("{name} is gone"),
        Kind::Size { was, now } => format!("{name} has {now} bytes, in the run {was}"),
    };
    Some(match others.len() {
        0 => first,
        1 => format!("{first} (and one other differs)"),
        n => format!("{first} (and {n} others differ)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(files: &[(&str, u64)]) -> String {
        files
            .iter()
            .map(|(path, bytes)| line(Path::new(path), *bytes))
            .collect()
    }

    #[test]
    fn the_first_difference_is_named_and_the_others_counted() {
        let was = list(&[("train/a/1", 5), ("train/a/2", 6), ("train/b/1", 7)]);
        for (now, said) in [
            (&[("train/a/1", 5), ("train/a/2", 6), ("train/b/1", 7)][..], None),
            (
                &[("train/a/1", 5), ("train/b/1", 7), ("train/b/2", 6)],
                Some("train/a/2 is gone (and one other differs)"),
            ),
            (
                &[("train/a/0", 1), ("train/a/1", 5), ("train/a/2", 6)],
                Some("train/a/0 is new (and one other differs)"),
            ),
            (
                &[("train/a/1", 8), ("train/a/2", 6), ("train/b/1", 9)],
                Some("train/a/1 has 8 bytes, in the run 5 (and one other differs)"),
            ),
            (&[], Some("train/a/1 is gone (and 2 others differ)")),
        ] {
            assert_eq!(sentence(&differences(&was, &list(now))).as_deref(), said);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_name_is_one_line_and_like_no_other() {
        use std::os::unix::ffi::OsStrExt;
        let names = [&b"a\nb"[..], b"a\\nb", b"a b", b"a\xff", b"a\xfe"]
            .map(|bytes| name(Path::new(std::ffi::OsStr::from_bytes(bytes))));
        assert!(names.iter().all(|name| name.lines().count() == 1));
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }
}
