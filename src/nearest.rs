//! Names that are like one that there is not.

/// Those of `names` that differ least from `name`, the nearest first: at most `most`, and none twice.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let mut near: Vec<_> = names.into_iter().map(|other| (distance(name, other), other)).collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(most).map(|(_, other)| other).collect()
}

/// The least number of characters to insert, delete or replace (V. Levenshtein, 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    // Worked by hand.
    #[test]
    fn distances_are_the_fewest_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("head", "haed", 2),
            ("head.weight", "head.weight", 0),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_come_first() {
        let names = ["norm.weight", "head.bias", "head.weight", "head.bias"];
        assert_eq!(nearest("head.weihgt", names, 2), ["head.weight", "head.bias"]);
        assert_eq!(nearest("x", [], 2), [""; 0]);
    }
}
