//! Names of many parameters in a sentence.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A name or a value in a sentence: in one line and not too long, wherever it comes from. A file may call its tensors as
/// it likes, line breaks and a terminal's commands included.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    const MOST_CHARS: usize = 1000;
    let end = text.char_indices().nth(MOST_CHARS).map(|(end, _)| end);
    if end.is_none() && !text.contains(char::is_control) {
        return text.into();
    }
    let mut plain = String::new();
    for char in text[..end.unwrap_or(text.len())].chars() {
        if char.is_control() {
            plain.extend(char.escape_default());
        } else {
            plain.push(char);
        }
    }
    if let Some(end) = end {
        // To a string there is always room.
        let _ = write!(plain, "... and {} bytes more", text.len() - end);
    }
    plain.into()
}

/// Names that differ in numbers only as one, with how many they are: the first few such groups, in the order of names.
pub(super) fn grouped(names: &[String]) -> String {
    const MOST: usize = 8;
    let mut groups: Vec<(String, usize)> = Vec::new();
    let mut places = BTreeMap::new();
    for name in names {
        let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let parts = name.split('.').map(|part| if number(part) { "*" } else { part });
        let pattern = parts.collect::<Vec<_>>().join(".");
        let place = *places.entry(pattern.clone()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some((_, count)) => *count += 1,
            None => groups.push((name.clone(), 1)),
        }
        if let Some((shown, 2)) = groups.get_mut(place) {
            *shown = pattern;
        }
    }
    let others = groups.len().saturating_sub(MOST);
    let listed: Vec<_> = groups
        .into_iter()
        .take(MOST)
        .map(|(name, count)| {
            if count == 1 {
                plain(&name).into_owned()
            } else {
                format!("{} ({count})", plain(&name))
            }
        })
        .collect();
    match others {
        0 => listed.join(", "),
        _ => format!("{} and {others} more kinds", listed.join(", ")),
    }
}

/// What to take instead of the model whose parameters have such names, if it is one that is known here.
pub(super) fn instead(names: &[String]) -> &'static str {
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    if any("attention.attention.query") {
        ", or masksub::models::vit, which has candle-transformers' ViT under the same names"
    } else if any("pre_layrnorm") {
        ", or masksub::models::vit, which has CLIP's vision tower under the same names"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn whatever_a_name_is_a_sentence_is_one_line() {
        assert_eq!(plain("blocks.0.Größe \"w\""), "blocks.0.Größe \"w\"");
        assert_eq!(plain("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(plain(&"é".repeat(1000)), "é".repeat(1000));
        assert_eq!(
            plain(&"é".repeat(1003)),
            format!("{}... and 6 bytes more", "é".repeat(1000))
        );
    }

    #[test]
    fn numbers_alone_do_not_tell_apart() {
        let of_blocks = names(&["a.0.w", "a.1.w", "a.10.w", "b1.w", "c.7", "head"]);
        assert_eq!(grouped(&of_blocks), "a.*.w (3), b1.w, c.7, head");
        assert_eq!(grouped(&[]), "");
    }

    #[test]
    fn of_many_the_first_few_are_told() {
        let many: Vec<_> = (b'a'..=b'z').map(|letter| char::from(letter).to_string()).collect();
        assert_eq!(grouped(&many), "a, b, c, d, e, f, g, h and 18 more kinds");
    }

    #[test]
    fn known_models_are_told_from_their_names() {
        assert!(instead(&names(&["encoder.layer.0.attention.attention.query.weight"])).contains("models::vit"));
        assert!(instead(&names(&["vision_model.pre_layrnorm.bias"])).contains("CLIP"));
        assert_eq!(instead(&names(&["stages.0.blocks.0.gamma"])), "");
    }
}
