//! Elements of a weight's path, as a layer's number is told from it.

/// The part of a weight's `name` behind `part`, a whole number of path elements, whatever comes before.
pub(super) fn below<'a>(name: &'a str, part: &str) -> Option<&'a str> {
    name.match_indices(part).find_map(|(start, _)| {
        let (before, after) = (&name[..start], &name[start + part.len()..]);
        let whole = before.is_empty() || before.ends_with('.');
        match after.strip_prefix('.') {
            Some(below) if whole => Some(below),
            None if whole && after.is_empty() => Some(""),
            _ => None,
        }
    })
}

/// The number that a path begins with.
pub(super) fn leading_number(path: &str) -> Option<usize> {
    path.split('.').next()?.parse().ok()
}
