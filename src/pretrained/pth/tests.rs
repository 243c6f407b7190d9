//! Objects of pickles: the dictionaries in them, and those that are refused or would ask for much.

use super::*;

/// The object of a pickle, where every storage is one number.
fn of_pickle(bytes: &[u8]) -> Result<Contents> {
    let path = Path("w.pth".as_ref());
    let pickle = path.pickle(&mut { bytes })?;
    contents(&path, &pickle, None, |_, _| Ok(Some(Run { start: 0, bytes: 4 })))
}

#[test]
fn a_tensor_has_few_dimensions() {
    let of_ones = |dims: usize| {
        let start = b"}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(\
            (X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\x00(";
        of_pickle(&[&start[..], &b"K\x01".repeat(dims), b"tq\x00h\x00tRs."].concat())
    };
    let contents = of_ones(MOST_DIMS).unwrap();
    assert_eq!(contents.dictionaries[0].tensors["w"].shape, [1; MOST_DIMS]);
    let error = of_ones(MOST_DIMS + 1).map(drop).unwrap_err().to_string();
    assert!(error.contains("tensor w is described as no tensor is"), "{error}");
}

#[test]
fn what_lies_beside_the_weights_is_named_once() {
    let tensor = b"X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(\
        (X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\x00))tRs";
    let beside = |name: &[u8]| [&b"X\x01\0\0\0"[..], name, b"q\x00K\x01sh\x00K\x01s"].concat();
    let model = [
        &b"}X\x05\0\0\0model}"[..],
        tensor,
        &beside(b"a"),
        b"s",
        &beside(b"b"),
        b".",
    ]
    .concat();
    let contents = of_pickle(&model).unwrap();
    assert_eq!(contents.keys, ["model", "b"]);
    assert_eq!(contents.dictionaries[0].others, ["a"]);
    let bare = [&b"}"[..], tensor, &beside(b"a"), b"."].concat();
    assert_eq!(of_pickle(&bare).unwrap().dictionaries[0].others, ["a"]);
}

/// A tensor of one number, remembered as number 9.
const TENSOR: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n(\
    (X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\x00))tRq\x09";

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// Puts the text in the place of that number, and takes it off the stack.
fn remembered(index: u32, name: &str) -> Vec<u8> {
    [&text(name)[..], b"r", &index.to_le_bytes(), b"0"].concat()
}

fn recalled(index: u32) -> Vec<u8> {
    [&b"j"[..], &index.to_le_bytes()].concat()
}

fn refusal(bytes: &[u8]) -> String {
    of_pickle(bytes).map(drop).unwrap_err().to_string()
}

/// The object `{"0": {...}, "1": {...}}` of so many dictionaries, each with one tensor and these items.
fn of_dictionaries(count: usize, remember: &[u8], items: &[u8]) -> Vec<u8> {
    let mut bytes = [TENSOR, b"0", remember, b"}("].concat();
    for key in 0..count {
        bytes.extend([&text(&key.to_string())[..], b"}(", &text("w"), b"h\x09", items, b"u"].concat());
    }
    bytes.extend(b"u.");
    bytes
}

// A pickle has a text once and may recall it in every dictionary, which each take a copy.
#[test]
fn names_take_little_memory() {
    let longest = "n".repeat(MOST_NAME);
    let with = |name: &str| of_dictionaries(2, &remembered(20, name), &[&recalled(20)[..], b"h\x09"].concat());
    let contents = of_pickle(&with(&longest)).unwrap();
    assert_eq!(contents.dictionaries[1].tensors.len(), 2);
    let message = refusal(&with(&format!("{longest}n")));
    assert!(
        message.contains("a name in it has 4097 bytes, and a weight's at most 4096"),
        "{message}"
    );
    // As the key of what is no tensor it is copied too.
    let key = [&b"}("[..], &text("w"), TENSOR, &text(&format!("{longest}n")), b"Nu."].concat();
    assert!(refusal(&key).contains("a name in it"));

    let count = (MOST_NAMES / MOST_DICTIONARIES / MOST_NAME) as u32;
    let names = |count: u32| {
        let name = |index: u32| format!("{index:0>width$}", width = MOST_NAME);
        let remember: Vec<u8> = (0..count)
            .flat_map(|index| remembered(100 + index, &name(index)))
            .collect();
        let items: Vec<u8> = (0..count)
            .flat_map(|index| [recalled(100 + index), b"N".to_vec()].concat())
            .collect();
        of_dictionaries(MOST_DICTIONARIES, &remember, &items)
    };
    of_pickle(&names(count - 1)).unwrap();
    let message = refusal(&names(count));
    assert!(message.contains("the names in it have more than"), "{message}");
}

// Half a million keys of one dictionary of half a million numbers: looked at below each key, it would take hours.
#[test]
fn a_dictionary_below_many_keys_is_looked_at_once() {
    let numbers = [&b"}("[..], &b"h\x01N".repeat(500_000), b"u"].concat();
    let bytes = [
        &remembered(1, "n")[..],
        &numbers,
        b"q\x020}(",
        &b"h\x01h\x02".repeat(500_000),
        &text("w"),
        TENSOR,
        b"u.",
    ]
    .concat();
    assert_eq!(of_pickle(&bytes).unwrap().dictionaries.len(), 1);
}

#[test]
fn few_dictionaries_are_read() {
    let read = of_pickle(&of_dictionaries(MOST_DICTIONARIES, b"", b"")).unwrap();
    assert_eq!(read.dictionaries.len(), MOST_DICTIONARIES);
    let many = of_dictionaries(MOST_DICTIONARIES + 1, b"", b"");
    let message = refusal(&many);
    assert!(
        message.contains("it holds 65 dictionaries of tensors, of which at most 64 are read"),
        "{message}"
    );
    // One of them is.
    let path = Path("w.pth".as_ref());
    let pickle = path.pickle(&mut { &many[..] }).unwrap();
    let one = contents(&path, &pickle, Some("64"), |_, _| Ok(Some(Run { start: 0, bytes: 4 }))).unwrap();
    assert_eq!(one.dictionaries.len(), 1);
}

#[test]
fn a_key_that_is_there_twice_is_told() {
    let below = [&text("model")[..], b"}", &text("w"), b"h\x09ss"].concat();
    let bytes = [TENSOR, b"0}", &below, &below, b"."].concat();
    let message = refusal(&bytes);
    assert!(
        message.contains("it holds two dictionaries below one key, model"),
        "{message}"
    );
}
