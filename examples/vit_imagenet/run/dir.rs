//! The directory a run writes to. No other run writes to it or overwrites what is there, and no file is ever half-written.

use anyhow::{bail, Context, Result};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Where runs go that are given no directory.
const DEFAULT_PARENT: &str = "out";

/// What the names of half-written files begin with.
const PARTIAL: &str = ".partial-";

/// The file that a run holds a lock on. The system lets go of it when the process ends, however that happens.
const LOCK: &str = ".lock";

/// Where the first checkpoint is written before it is put in its place.
const CHECKPOINT: &str = ".checkpoint.safetensors.partial";

pub struct RunDir {
    path: PathBuf,
    /// Held as long as the run may write; none where it only reads, or on a file system without locks.
    _lock: Option<File>,
    /// Whether this rank writes, or another.
    writes: bool,
}

impl RunDir {
    /// `requested`, which must be empty or not exist yet, or else the first `out/run-N` that does not exist. What a run
    /// leaves that was killed before its first checkpoint counts as nothing.
    pub fn create(requested: Option<&Path>) -> Result<Self> {
        let Some(path) = requested else {
            return Self::locked(first_free(Path::new(DEFAULT_PARENT))?);
        };
        match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.any(|entry| !entry.is_ok_and(|entry| is_rest(&entry))) {
                    bail!(
                        "the output directory {} is not empty and is left as it is: choose another one, such as --out {}",
                        path.display(),
                        sibling(path).display()
                    );
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(path).with_context(|| cannot_create(path))?
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot use {} as the output directory", path.display()))
            }
        }
        let dir = Self::locked(path.into())?;
        let _ = fs::remove_dir_all(path.join(CHECKPOINT));
        Ok(dir)
    }

    /// A directory that a run has written to, and that this one goes on writing to.
    pub fn existing(path: &Path) -> Result<Self> {
        Self::locked(Self::reading(path)?.path)
    }

    /// Where another rank writes: what is written here is not.
    pub fn of_another_rank(path: Option<&Path>) -> Self {
        Self {
            path: path.unwrap_or(Path::new("")).into(),
            _lock: None,
            writes: false,
        }
    }

    /// A directory that a run has written to, or is writing to.
    pub fn reading(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            bail!("there is no directory {} with a run to resume", path.display());
        }
        Ok(Self {
            path: path.into(),
            _lock: None,
            writes: true,
        })
    }

    /// The directory, of which nobody else has the lock, without what a kill has left half-written in it.
    fn locked(path: PathBuf) -> Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK));
        let file = file.with_context(|| format!("cannot write to the output directory {}", path.display()))?;
        let lock = match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => bail!(
                "another run writes to {}: let it end, or choose another directory",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                let path = path.display();
                eprintln!("{path} cannot be locked ({error}): nothing keeps a second run from writing there, too");
                None
            }
        };
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry?;
            if is_partial(&entry) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self {
            path,
            _lock: lock,
            writes: true,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is this rank that writes here.
    pub fn writes(&self) -> bool {
        self.writes
    }

    /// Finds out now, rather than after hours, whether the directory takes `bytes`: writes as much and deletes it.
    pub fn check_room(&self, bytes: usize) -> Result<()> {
        if !self.writes {
            return Ok(());
        }
        let zeros = vec![0u8; 1 << 20];
        let file = self.temporary("a test file")?;
        let mut left = bytes.max(1);
        while left > 0 {
            let n = left.min(zeros.len());
            (file.as_file().write_all(&zeros[..n])).with_context(|| {
                format!(
                    "the output directory {} does not take the {bytes} bytes that the run will write",
                    self.path.display()
                )
            })?;
            left -= n;
        }
        Ok(())
    }

    /// Creates or replaces the file `name`: written beside it, synced, and renamed, so that there is never a half of it.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        if !self.writes {
            return Ok(());
        }
        let path = self.path.join(name);
        let cannot = || format!("cannot write {}", path.display());
        let mut file = self.temporary(name)?;
        file.write_all(contents).with_context(cannot)?;
        file.as_file().sync_all().with_context(cannot)?;
        file.persist(&path).with_context(cannot)?;
        Ok(())
    }

    fn temporary(&self, what: &str) -> Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PARTIAL);
        #[cfg(unix)] // readable as the user's umask says, not by the owner alone
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        (builder.tempfile_in(&self.path)).with_context(|| format!("cannot write {what} in {}", self.path.display()))
    }
}

fn is_partial(entry: &fs::DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(PARTIAL.as_bytes())
}

/// Of a run that was killed before its first checkpoint.
fn is_rest(entry: &fs::DirEntry) -> bool {
    is_partial(entry) || [LOCK, CHECKPOINT].iter().any(|name| entry.file_name() == *name)
}

fn cannot_create(path: &Path) -> String {
    format!("cannot create the output directory {}", path.display())
}

/// The first of `parent/run-1`, `parent/run-2`, … that could be created: two runs never get the same.
fn first_free(parent: &Path) -> Result<PathBuf> {
    fs::create_dir_all(parent).with_context(|| cannot_create(parent))?;
    for n in 1.. {
        let path = parent.join(format!("run-{n}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            created => return created.with_context(|| cannot_create(&path)).map(|()| path),
        }
    }
    unreachable!("an endless range ends by returning")
}

/// The first of `path-2`, `path-3`, … that does not exist.
fn sibling(path: &Path) -> PathBuf {
    let numbered = |n: usize| {
        let mut name = path.components().collect::<PathBuf>().into_os_string(); // without a slash at the end
        name.push(format!("-{n}"));
        PathBuf::from(name)
    };
    (2..).map(numbered).find(|path| !path.exists()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn creates_what_is_missing_and_takes_what_is_empty() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        assert_eq!(RunDir::create(Some(&path)).unwrap().path(), path);
        assert!(RunDir::create(Some(&path)).is_ok());
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused_and_another_suggested() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        RunDir::create(Some(&path))
            .unwrap()
            .write("metrics.csv", b"old")
            .unwrap();
        fs::create_dir(root.path().join("run-2")).unwrap();
        for given in [path.clone(), path.join("")] {
            let error = RunDir::create(Some(&given)).err().unwrap().to_string();
            assert!(error.contains("is not empty"), "{error}");
            assert!(
                error.ends_with(&format!("--out {}", root.path().join("run-3").display())),
                "{error}"
            );
        }
        assert_eq!(fs::read(path.join("metrics.csv")).unwrap(), b"old");
        assert_eq!(names(&path), [LOCK, "metrics.csv"]);
        // Nothing is put into a directory that is somebody else's.
        let foreign = root.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.tex"), "").unwrap();
        assert!(RunDir::create(Some(&foreign)).is_err());
        assert_eq!(names(&foreign), ["thesis.tex"]);
    }

    #[test]
    fn the_rest_of_a_run_before_its_first_checkpoint_is_cleared_away() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(".partial-x"), "half").unwrap();
        fs::create_dir(root.path().join(CHECKPOINT)).unwrap();
        fs::write(root.path().join(CHECKPOINT).join("new"), "half").unwrap();
        RunDir::create(Some(root.path())).unwrap();
        assert_eq!(names(root.path()), [LOCK]);
        RunDir::create(Some(root.path())).unwrap();
    }

    #[test]
    fn one_run_writes_and_others_read() {
        let root = tempfile::tempdir().unwrap();
        let first = RunDir::create(Some(root.path())).unwrap();
        for second in [RunDir::create(Some(root.path())), RunDir::existing(root.path())] {
            let error = second.err().unwrap().to_string();
            assert!(
                error.starts_with(&format!("another run writes to {}", root.path().display())),
                "{error}"
            );
        }
        fs::write(root.path().join(".partial-x"), "being written").unwrap();
        RunDir::reading(root.path()).unwrap();
        assert_eq!(names(root.path()), [LOCK, ".partial-x"]);
        drop(first);
        RunDir::existing(root.path()).unwrap();
        assert_eq!(names(root.path()), [LOCK]);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_or_of_its_parent_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("run")] {
            let error = format!("{:#}", RunDir::create(Some(&path)).err().unwrap());
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn numbers_count_on() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("out");
        assert_eq!(first_free(&parent).unwrap(), parent.join("run-1"));
        assert_eq!(first_free(&parent).unwrap(), parent.join("run-2"));
        fs::remove_dir(parent.join("run-1")).unwrap();
        assert_eq!(first_free(&parent).unwrap(), parent.join("run-1"));
    }

    #[test]
    fn writing_replaces_and_leaves_nothing_else_behind() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(root.path())).unwrap();
        run.check_room(3 << 20).unwrap();
        assert_eq!(names(root.path()), [LOCK]);
        run.write("a", b"one").unwrap();
        run.write("a", b"two").unwrap();
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"two");
        assert_eq!(names(root.path()), [LOCK, "a"]);
        assert!(run.write("missing/a", b"").is_err());
        assert_eq!(names(root.path()), [LOCK, "a"]);
    }

    #[cfg(unix)]
    #[test]
    fn files_get_the_usual_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("usual"), "").unwrap();
        RunDir::create(Some(&root.path().join("run")))
            .unwrap()
            .write("ours", b"")
            .unwrap();
        let mode = |name| fs::metadata(root.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("run/ours"), mode("usual"));
    }
}
