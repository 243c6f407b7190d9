//! The directory a run writes to. Nothing in it is overwritten by another run, and no file in it is ever half-written.

use anyhow::{bail, Context, Result};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Where runs go that are given no directory.
const DEFAULT_PARENT: &str = "out";

/// What the names of half-written files begin with.
const PARTIAL: &str = ".partial-";

pub struct RunDir(PathBuf);

impl RunDir {
    /// `requested`, which must be empty or not exist yet, or else the first `out/run-N` that does not exist.
    pub fn create(requested: Option<&Path>) -> Result<Self> {
        let path = match requested {
            Some(path) => path.to_path_buf(),
            None => return first_free(Path::new(DEFAULT_PARENT)).map(Self),
        };
        match fs::read_dir(&path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    bail!(
                        "the output directory {} is not empty and is left as it is: choose another one, such as --out {}",
                        path.display(),
                        sibling(&path).display()
                    );
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(&path).with_context(|| cannot_create(&path))?
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot use {} as the output directory", path.display()))
            }
        }
        Ok(Self(path))
    }

    /// A directory that a run has written to.
    pub fn existing(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            bail!("there is no directory {} with a run to resume", path.display());
        }
        // What a kill left half-written.
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(PARTIAL.as_bytes()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self(path.into()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Finds out now, rather than after hours, whether the directory takes `bytes`: writes as much and deletes it.
    pub fn check_room(&self, bytes: usize) -> Result<()> {
        let zeros = vec![0u8; 1 << 20];
        let file = self.temporary("a test file")?;
        let mut left = bytes.max(1);
        while left > 0 {
            let n = left.min(zeros.len());
            (file.as_file().write_all(&zeros[..n])).with_context(|| {
                format!(
                    "the output directory {} does not take the {bytes} bytes that the run will write",
                    self.0.display()
                )
            })?;
            left -= n;
        }
        Ok(())
    }

    /// Creates or replaces the file `name`: written beside it, synced, and renamed, so that there is never a half of it.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.0.join(name);
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
        (builder.tempfile_in(&self.0)).with_context(|| format!("cannot write {what} in {}", self.0.display()))
    }
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
        assert_eq!(names(&path), ["metrics.csv"]);
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
        assert!(names(root.path()).is_empty());
        run.write("a", b"one").unwrap();
        run.write("a", b"two").unwrap();
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"two");
        assert_eq!(names(root.path()), ["a"]);
        assert!(run.write("missing/a", b"").is_err());
        assert_eq!(names(root.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn files_get_the_usual_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("usual"), "").unwrap();
        RunDir(root.path().into()).write("ours", b"").unwrap();
        let mode = |name| fs::metadata(root.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("usual"));
    }
}
