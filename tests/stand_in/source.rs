//! The public items of a crate or module, read from sources that are formatted by rustfmt: what begins in the first column
//! is an item of its module, what is indented once a member.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where an item comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// It is defined in these sources.
    Here,
    /// It is re-exported from a crate.
    Of(&'a str),
}

/// What is public, by paths that begin with `::`.
#[derive(Default)]
pub struct Crate {
    /// The items, and where those come from that another path is re-exported as.
    pub items: BTreeMap<String, Option<String>>,
    /// The public methods of each type.
    pub methods: BTreeMap<String, BTreeSet<String>>,
    /// Types that have those of another one, too.
    pub derefs: BTreeSet<String>,
}

impl Crate {
    /// Reads a root, and the files of its modules: of private ones, the methods of their types.
    pub fn read(root: &Path) -> Self {
        let mut read = Self::default();
        read.module("", root, root.parent().expect("a file is in a directory"));
        read.expand_globs();
        read
    }

    /// The origin of `path`: its own, or that of the module of another crate that it is in.
    pub fn origin(&self, path: &str) -> Origin<'_> {
        if let Some(Some(from)) = self.items.get(path) {
            if from.starts_with("::") {
                return self.origin(from);
            }
        }
        let ends = path.match_indices("::").map(|(end, _)| end).chain([path.len()]);
        let crates = ends.filter_map(|end| self.items.get(&path[..end])?.as_deref()?.split("::").next());
        crates
            .filter(|name| !name.is_empty())
            .map(Origin::Of)
            .next()
            .unwrap_or(Origin::Here)
    }

    /// Reads the module `path` from `file`, whose own modules are in `directory`.
    fn module(&mut self, path: &str, file: &Path, directory: &Path) {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut lines = text.lines();
        let (mut inline, mut owner) = (None, None);
        while let Some(line) = lines.next() {
            match (&inline, line) {
                (_, "}") => (inline, owner) = (None, None),
                (_, line) if line.starts_with("mod ") && line.ends_with(';') && line != "mod tests;" => {
                    let module = named(line, &["mod"]).expect("a module has a name");
                    let mut hidden = Self::default();
                    let below = directory.join(&module);
                    hidden.module("", &file_of(directory, &module), &below);
                    for (name, methods) in hidden.methods {
                        self.methods.entry(name).or_default().extend(methods);
                    }
                    self.derefs.extend(hidden.derefs);
                }
                (_, line) if line.starts_with("impl") => owner = impl_of(line, &mut self.derefs),
                (_, line) if line.starts_with("through_deref!(") && line.ends_with(");") => {
                    self.derefs.extend(names(line));
                    continue;
                }
                (_, line) if line.starts_with("through_deref!(") => {
                    let list = std::iter::once(line).chain(lines.by_ref().take_while(|line| *line != ");"));
                    self.derefs.extend(list.flat_map(names));
                    continue;
                }
                _ => {}
            }
            if let (Some(owner), Some(member)) = (&owner, line.strip_prefix("    pub ")) {
                if let Some(method) = named(member, &["fn", "unsafe fn", "const fn"]) {
                    self.methods.entry(String::clone(owner)).or_default().insert(method);
                }
            }
            let within = match &inline {
                Some(module) if line.starts_with("    pub use") => format!("{path}::{module}"),
                None if line.starts_with("pub ") => path.to_string(),
                _ => continue,
            };
            let item = line.trim_start().trim_start_matches("pub ").to_string();
            if let Some(used) = item.strip_prefix("use ") {
                let mut used = used.to_string();
                while !used.contains(';') {
                    used += lines.next().expect("a use ends");
                }
                self.uses(&within, &used);
            } else if let Some(module) = named(&item, &["mod"]) {
                self.items.insert(format!("{within}::{module}"), None);
                if item.contains('{') {
                    inline = Some(module);
                } else {
                    let (file, below) = (file_of(directory, &module), directory.join(&module));
                    self.module(&format!("{within}::{module}"), &file, &below);
                }
            } else if let Some(name) = named(&item, &["fn", "unsafe fn", "struct", "enum", "trait", "type", "const"]) {
                self.items.insert(format!("{within}::{name}"), None);
            }
        }
    }

    /// Notes what a `use` of `within`, from behind the word on, re-exports.
    fn uses(&mut self, within: &str, used: &str) {
        let used = used.split(';').next().unwrap_or_default();
        let (from, list) = match used.split_once('{') {
            Some((from, list)) => (from.trim_end_matches("::"), list.trim_end_matches('}')),
            None => used.rsplit_once("::").unwrap_or(("", used)),
        };
        let mut segments: Vec<&str> = from.split("::").map(str::trim).collect();
        let from = match segments[0] {
            "candle" | "candle_core" => "candle_core".to_string(),
            "candle_nn" => from.to_string(),
            // Of what lies outside of these sources, no more is asked than that it is not candle's.
            "crate" if segments.get(1) == Some(&"ops") => "masksub::ops".to_string(),
            "crate" => format!("::{}", segments.split_off(1).join("::")),
            "super" => {
                let mut parent = within;
                while segments.first() == Some(&"super") {
                    segments.remove(0);
                    parent = parent.rsplit_once("::").map_or("", |(parent, _)| parent);
                }
                segments
                    .iter()
                    .fold(parent.to_string(), |path, segment| format!("{path}::{segment}"))
            }
            _ => format!("{within}::{}", segments.join("::")),
        };
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let name = name.rsplit(" as ").next().unwrap_or(name);
            let (to, from) = (format!("{within}::{name}"), format!("{from}::{name}"));
            // A function beside the module of its name adds no path.
            self.items.entry(to).or_insert(Some(from));
        }
    }

    /// Puts what they stand for in the place of `path::*`.
    fn expand_globs(&mut self) {
        let globs: Vec<_> = self
            .items
            .keys()
            .filter(|path| path.ends_with("::*"))
            .cloned()
            .collect();
        for glob in globs {
            let from = self.items.remove(&glob).flatten().expect("a glob is of something");
            let (to, from) = (glob.trim_end_matches('*'), from.trim_end_matches('*').to_string());
            let below = self.items.keys().filter_map(|path| path.strip_prefix(&from));
            let below: Vec<_> = below.filter(|name| !name.contains("::")).map(str::to_string).collect();
            for name in below {
                self.items.insert(format!("{to}{name}"), Some(format!("{from}{name}")));
            }
        }
    }
}

/// The file of a module whose parent's modules are in `directory`.
fn file_of(directory: &Path, module: &str) -> PathBuf {
    let files = [format!("{module}.rs"), format!("{module}/mod.rs")].map(|file| directory.join(file));
    let found = files.into_iter().find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{module} has no file in {}", directory.display()))
}

/// The name that follows one of `words`.
fn named(item: &str, words: &[&str]) -> Option<String> {
    let rest = words.iter().find_map(|word| item.strip_prefix(&format!("{word} ")))?;
    names(rest).into_iter().next()
}

/// Every word of a line.
fn names(line: &str) -> Vec<String> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.split(|c| !word(c))
        .filter(|name| !name.is_empty())
        .map(str::to_string)
        .collect()
}

/// The type that a block `impl` adds methods to; one that implements `Deref` goes to `derefs`.
fn impl_of(line: &str, derefs: &mut BTreeSet<String>) -> Option<String> {
    let head = line.trim_start_matches("impl").split('{').next()?;
    // Behind the parameters of the block.
    let head = match head.strip_prefix('<') {
        Some(_) => head.split_once("> ")?.1,
        None => head.trim(),
    };
    match head.split_once(" for ") {
        Some(("Deref" | "std::ops::Deref", name)) => {
            derefs.extend(names(name).into_iter().next());
            None
        }
        Some(_) => None,
        None => names(head).into_iter().next(),
    }
}
