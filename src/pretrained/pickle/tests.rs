//! Pickles, opcode by opcode: those that are read, and those that are refused or would ask for much.

use super::*;

fn read(bytes: &[u8]) -> Result<Pickle, Fault> {
    Pickle::read(&mut { bytes })
}

fn refusal(bytes: &[u8]) -> String {
    match read(bytes) {
        Ok(_) => panic!("read {bytes:?}"),
        Err(fault) => fault.to_string(),
    }
}

#[test]
fn integers_have_the_value_that_python_gave_them() {
    let cases: [(&[u8], i64); 9] = [
        (b"K\xff.", 255),
        (b"M\x01\x02.", 513),
        (b"J\xfe\xff\xff\xff.", -2),
        (b"\x8a\x00.", 0),
        (b"\x8a\x01\xff.", -1),
        (b"\x8a\x02\xff\x00.", 255),
        (b"\x8a\x05\x00\x00\x00\x00\x01.", 1 << 32),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.", i64::MAX),
        (b"\x8b\x02\x00\x00\x00\x00\x80.", -32768),
    ];
    for (bytes, expected) in cases {
        let pickle = read(bytes).unwrap();
        assert!(
            matches!(pickle.get(pickle.root()), Value::Int(int) if *int == expected),
            "{bytes:?}"
        );
    }
    let long = read(b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.").unwrap();
    assert!(matches!(long.get(long.root()), Value::Other));
}

// Python's `d = {}; [d, d]`, then `d["a"] = 1`: both are one dictionary.
#[test]
fn what_is_shared_is_one_value() {
    let pickle = read(b"\x80\x02]q\x00(}q\x01h\x01eh\x01X\x01\x00\x00\x00aK\x01s0.").unwrap();
    let items = pickle.sequence(pickle.root()).unwrap();
    assert_eq!(items[0], items[1]);
    let (key, value) = pickle.dict(items[0]).unwrap()[0];
    assert_eq!((pickle.text(key), pickle.count(value)), (Some("a"), Some(1)));
}

#[test]
fn tuples_keep_their_order() {
    let pickle = read(b"\x80\x02K\x01K\x02K\x03\x87.").unwrap();
    let items = pickle.sequence(pickle.root()).unwrap();
    let counts: Vec<_> = items.iter().map(|id| pickle.count(*id)).collect();
    assert_eq!(counts, [Some(1), Some(2), Some(3)]);
}

#[test]
fn calls_are_written_down_only() {
    let pickle = read(b"cposix\nsystem\n(X\x04\x00\x00\x00exittR.").unwrap();
    let (callable, args) = pickle.call(pickle.root()).unwrap();
    assert_eq!((callable, pickle.text(args[0])), ("posix.system", Some("exit")));
    // Protocol 4, as `STACK_GLOBAL`.
    let pickle = read(b"\x80\x04\x8c\x05posix\x8c\x06system\x93)R.").unwrap();
    assert_eq!(pickle.call(pickle.root()).unwrap().0, "posix.system");
}

#[test]
fn ordered_dictionaries_are_dictionaries() {
    let python_3 = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00aK\x01u.";
    let python_2 = b"\x80\x02ccollections\nOrderedDict\n]](U\x01aK\x01ea\x85R.";
    for bytes in [&python_3[..], python_2] {
        let pickle = read(bytes).unwrap();
        let [(key, value)] = pickle.dict(pickle.root()).unwrap() else {
            panic!("{bytes:?}")
        };
        assert_eq!((pickle.text(*key), pickle.count(*value)), (Some("a"), Some(1)));
    }
}

#[test]
fn a_list_may_hold_itself() {
    let pickle = read(b"]q\x00h\x00a.").unwrap();
    assert_eq!(pickle.sequence(pickle.root()).unwrap(), [pickle.root()]);
}

#[test]
fn what_is_malformed_is_refused() {
    let cases: [(&[u8], &str); 13] = [
        (b"", "too soon"),
        (b"K", "too soon"),
        (b".", "not there"),
        (b"t.", "not there"),
        (b"K\x01(0N.", "not there"),
        (b"h\x07.", "never stored"),
        (b"X\xff\xff\xff\xffshort", "too soon"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffshort", "too soon"),
        (b"K\x01K\x01a.", "no list"),
        (b"}(K\x01u.", "no dictionary"),
        (b"K\x01K\x02\x93.", "without a name"),
        (b"ccollections\nOrderedDict\n](K\x01e\x85R.", "no pairs"),
        (b"\xff.", "opcode 0xff"),
    ];
    for (bytes, reason) in cases {
        let message = refusal(bytes);
        assert!(message.contains(reason), "{bytes:?}: {message}");
    }
}

#[test]
fn a_small_file_gets_little_memory() {
    let many = vec![b'N'; MOST_VALUES + 1];
    assert!(refusal(&many).contains("more than"));
    let mut remembered = b"N".to_vec();
    remembered.resize(MOST_VALUES + 2, 0x94);
    assert!(refusal(&remembered).contains("more than"));
}

// Each eight times as large on the stack as in the file.
#[test]
fn a_high_stack_is_refused() {
    for (repeated, reason) in [
        (&b"2"[..], "a stack of more"),
        (b"h\x00", "a stack of more"),
        (b"(", "marks at once"),
    ] {
        let mut bytes = b"Nq\x00".to_vec();
        bytes.extend(repeated.repeat(MOST_VALUES + 1));
        assert!(refusal(&bytes).contains(reason), "{repeated:?}");
    }
}

// One list of a thousand pairs, and again and again the dictionary of it: each takes as much memory, of 5 bytes.
#[test]
fn what_a_small_file_repeats_gets_little_memory() {
    let mut dicts = b"ccollections\nOrderedDict\nq\x00K\x01K\x02\x86q\x01](".to_vec();
    dicts.extend(b"h\x01".repeat(1000));
    dicts.extend(b"e\x85q\x02");
    dicts.extend(b"h\x00h\x02R".repeat(MOST_VALUES / 1000));
    assert!(refusal(&dicts).contains("hold more than"));
    // A name of two texts that it has once.
    let mut globals = b"X\x10\x27\x00\x00".to_vec();
    globals.extend([b'a'; 10_000]);
    globals.extend(b"q\x00");
    globals.extend(b"h\x00h\x00\x93".repeat(1000));
    assert!(refusal(&globals).contains("hold more than"));
    // What a checkpoint has is far below.
    let mut list = b"](".to_vec();
    list.extend(b"K\x01".repeat(MOST_VALUES / 4));
    list.extend(b"e.");
    read(&list).unwrap();
}
