//! Lines that say what was done with a checkpoint.

use std::collections::BTreeMap;

use super::names::{is_head, known_missing, POSITION_TABLE};
use super::source::PeerSource;
use crate::error::listed;
use crate::weights::Source;

/// What was done, in the order of what matters.
pub(super) fn of(source: &PeerSource) -> Vec<String> {
    let mut notes = vec![place(source)];
    if source.taken.is_empty() {
        notes.push(format!(
            "nothing of the file was used: no weight was asked for by a {}'s name, which starts at the root of the \
             builder, without a prefix",
            source.format.family().name()
        ));
    }
    notes.extend(source.done.lines.iter().cloned());
    for ((from, (height, width), how), count) in &source.done.tables {
        let (table, tables) = (
            POSITION_TABLE.trim_start_matches('.'),
            if *count == 1 { "table" } else { "tables" },
        );
        notes.push(format!(
            "{table}: {from} x {from} -> {height} x {width} offsets, {how}, {count} {tables}"
        ));
    }
    let head = source.done.head;
    if let Some((from, to)) = head {
        notes.push(format!("head: {from} -> {to} classes, drawn anew"));
    }
    let known = |key: &&String| known_missing(source.format, key) && !(head.is_some() && is_head(key));
    let drawn: Vec<_> = source.drawn.iter().filter(known).map(String::as_str).collect();
    if !drawn.is_empty() {
        notes.push(format!("not in the file, so drawn: {}", drawn.join(", ")));
    }
    notes.extend(left_out(source));
    notes
}

/// The format, and where it stood.
fn place(source: &PeerSource) -> String {
    let (file, format) = (&source.file, source.format);
    let key = file.key.as_deref();
    let places = key.into_iter().chain(file.prefix.strip_suffix('.'));
    let places: Vec<_> = places.map(|place| format!("`{place}`")).collect();
    let below = match &places[..] {
        [] => String::new(),
        places => format!(", below {}", places.join(" and ")),
    };
    format!("format {format}, {} tensors{below}", file.tensors.len())
}

/// What no model needs, and what lies beside the weights.
fn left_out(source: &PeerSource) -> Vec<String> {
    let mut groups = BTreeMap::<_, usize>::new();
    for name in source.left_over() {
        if let Some(group) = source.leftover(&name) {
            *groups.entry(group).or_default() += 1;
        }
    }
    let tensors = |count| if count == 1 { "tensor" } else { "tensors" };
    let groups = groups.into_iter();
    let mut notes: Vec<_> = groups
        .map(|(group, count)| format!("left out: {group}, {count} {}", tensors(count)))
        .collect();
    if !source.file.alternatives.is_empty() {
        let keys = listed(&source.file.alternatives);
        notes.push(format!(
            "weights that were not taken lie below: {keys} (Pretrained::open_key)"
        ));
    }
    if !source.file.beside.is_empty() {
        notes.push(format!("left out: {}, beside the weights", listed(&source.file.beside)));
    }
    notes
}
