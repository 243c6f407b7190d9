//! A study's section of a Markdown file: rewritten where it is, or put at the end.

use crate::machine;
use crate::study::Study;
use anyhow::{Context, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Writes the study's section of `file`, and into the directory of its name the pictures and a row for each run.
pub fn update(file: &Path, study: &Study, table: &str, runs: &str, pictures: &[(&'static str, String)]) -> Result<()> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let dir = file.with_file_name(&stem);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let csv = format!("{}.csv", study.name);
    fs::write(dir.join(&csv), without_place(runs, &study.flags)).with_context(|| format!("cannot write {csv}"))?;
    let mut shown = format!("\nEvery run: [{stem}/{csv}]({stem}/{csv}).\n");
    for (name, svg) in pictures {
        let picture = format!("{}-{name}.svg", study.name);
        fs::write(dir.join(&picture), svg).with_context(|| format!("cannot write {picture}"))?;
        shown += &format!("\n![{}: {name}]({stem}/{picture})\n", study.name);
    }
    let command = command(std::env::args().skip(1));
    let seeds = match study.seeds {
        1 => "seed 0".to_string(),
        n => format!("seeds 0 to {}", n - 1),
    };
    let body = format!(
        "`{command}`\n\nAll runs: {}{seeds}. {}.\n\n{table}{shown}",
        flags_before(&[&study.flags[..], &study.reporting].concat()),
        machine::sentence()
    );
    let text = with_section(&text, &study.name, &body);
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Flags and a comma, where there are any.
fn flags_before(flags: &[String]) -> String {
    if flags.is_empty() {
        String::new()
    } else {
        format!("`{}`, ", anywhere(flags.iter().cloned()).join(" "))
    }
}

/// Rows of runs without where the images are on this machine.
fn without_place(runs: &str, flags: &[String]) -> String {
    let place = flags.windows(2).find(|pair| pair[0] == "--data");
    place.map_or(runs.into(), |pair| runs.replace(&pair.join(" "), "--data DIR"))
}

/// Arguments without where the images are on this machine.
fn anywhere(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut is_place = false;
    let argument = |argument: String| match (std::mem::replace(&mut is_place, argument == "--data"), argument) {
        (true, _) => "DIR".into(),
        (_, argument) if argument.starts_with("--data=") => "--data=DIR".into(),
        (_, argument) => argument,
    };
    arguments.map(argument).collect()
}

/// What a reader types, without what is only of this machine.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let mut words = vec!["cargo run --release --features augment --example compare --".to_string()];
    let mut arguments = anywhere(arguments).into_iter();
    while let Some(argument) = arguments.next() {
        if ["--report", "--out", "--jobs"].contains(&argument.as_str()) {
            arguments.next();
            continue;
        }
        words.push(if argument.contains(' ') {
            format!("\"{argument}\"")
        } else {
            argument
        });
    }
    words.join(" ")
}

/// `text` with `body` between the lines that name the section.
fn with_section(text: &str, name: &str, body: &str) -> String {
    let (begin, end) = (
        format!("<!-- compare {name} -->\n"),
        format!("<!-- end of {name} -->\n"),
    );
    let section = format!("{begin}\n{}\n\n{end}", body.trim());
    let found = text.find(&begin).and_then(|from| {
        let length = text[from..].find(&end)?;
        Some((from, from + length + end.len()))
    });
    match found {
        Some((from, to)) => format!("{}{section}{}", &text[..from], &text[to..]),
        None if text.is_empty() => section,
        None => format!("{}\n\n{section}", text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_where_it_stands_and_nothing_else() {
        let first = with_section("# Results\n\nWords.\n", "quick", "old");
        assert_eq!(
            first,
            "# Results\n\nWords.\n\n<!-- compare quick -->\n\nold\n\n<!-- end of quick -->\n"
        );
        let both = with_section(&(first + "\nMore words.\n"), "losses", "other\n");
        let new = with_section(&both, "quick", "new");
        assert_eq!(new, both.replace("old", "new"));
        assert!(new.contains("More words.") && new.ends_with("other\n\n<!-- end of losses -->\n"));
        assert_eq!(with_section(&new, "quick", "new"), new);
    }

    #[test]
    fn a_sweep_leaves_the_study_alone() {
        let quick = with_section("", "quick", "a table");
        let both = with_section(&quick, "quick-sweep", "another");
        assert!(both.starts_with(&quick) && both.contains("another"), "{both}");
        let flags = ["--epochs", "2"].map(String::from);
        assert_eq!(
            (flags_before(&flags), flags_before(&[])),
            ("`--epochs 2`, ".into(), String::new())
        );
    }

    #[test]
    fn rows_do_not_tell_where_the_images_are() {
        let flags = ["--data", "/home/somebody/images", "--flip", "0.5"].map(String::from);
        let rows = "plain,0,--data /home/somebody/images --flip 0.5 --seed 0\n";
        assert_eq!(without_place(rows, &flags), "plain,0,--data DIR --flip 0.5 --seed 0\n");
        assert_eq!(without_place(rows, &flags[2..]), rows);
    }

    #[test]
    fn the_command_is_what_another_reader_types() {
        let typed = [
            "--study",
            "losses",
            "--out",
            "/tmp/x",
            "--method",
            "a b=--epochs 3",
            "--jobs",
            "1",
            "--data",
            "/home/somebody/images",
            "--sweep",
        ];
        assert_eq!(
            command(typed.map(String::from).into_iter()),
            "cargo run --release --features augment --example compare -- --study losses --method \"a b=--epochs 3\" \
             --data DIR --sweep"
        );
        assert_eq!(flags_before(&["--data=x".into()]), "`--data=DIR`, ");
    }
}
