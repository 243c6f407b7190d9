//! Files that lie: valid ones with something changed, and headers, archives and pickles that announce what is not there.

use rand::Rng;

use crate::draw::pick;

/// Numbers that lengths and offsets are confused by.
const LIES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    1 << 20,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];

/// The file with one to six changes.
pub fn bytes(rng: &mut impl Rng, file: &[u8], other: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..rng.random_range(1..7) {
        change(rng, &mut file, other);
    }
    file
}

fn change(rng: &mut impl Rng, file: &mut Vec<u8>, other: &[u8]) {
    if file.is_empty() {
        file.extend_from_slice(other);
        return;
    }
    let at = place(rng, file);
    match rng.random_range(0..10) {
        0 => file[at] ^= 1 << rng.random_range(0..8),
        1 => file[at] = rng.random(),
        2 | 3 => {
            let lie = pick(rng, &LIES).to_le_bytes();
            let len = pick(rng, &[1, 2, 4, 8]).min(file.len() - at);
            file[at..at + len].copy_from_slice(&lie[..len]);
        }
        4 => file.truncate(at),
        5 => drop(file.drain(at..(at + rng.random_range(1..64)).min(file.len()))),
        6 => {
            let piece = file[at..(at + rng.random_range(1..64)).min(file.len())].to_vec();
            let to = place(rng, file);
            file.splice(to..to, piece);
        }
        7 => {
            let from = rng.random_range(0..other.len().max(1)).min(other.len());
            let piece = &other[from..(from + rng.random_range(1..256)).min(other.len())];
            file.splice(at..at, piece.iter().copied());
        }
        // A digit for another one: of a shape or an offset in a header.
        8 => {
            if let Some(digit) = file[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                *digit = b'0' + rng.random_range(0..10);
            }
        }
        _ => file.extend((0..rng.random_range(1..32)).map(|_| rng.random::<u8>())),
    }
}

/// Anywhere, but most often where names and sizes are: at the beginning, behind an archive's marks, at the end.
fn place(rng: &mut impl Rng, file: &[u8]) -> usize {
    let near = |at: usize, rng: &mut dyn rand::RngCore| (at + rng.random_range(0..46)).min(file.len() - 1);
    match rng.random_range(0..4) {
        0 => rng.random_range(0..file.len()),
        1 => rng.random_range(0..file.len().min(2000)),
        2 => near(file.len().saturating_sub(100), rng),
        _ => {
            let from = rng.random_range(0..file.len());
            let mark = file[from..].windows(2).position(|bytes| bytes == b"PK");
            near(from + mark.unwrap_or(0), rng)
        }
    }
}

/// A safetensors file whose header is well-formed and says anything.
pub fn safetensors(rng: &mut impl Rng) -> Vec<u8> {
    let data = rng.random_range(0..200usize);
    let mut entries = vec![];
    let mut at = 0u64;
    for i in 0..rng.random_range(0..6) {
        let shape: Vec<String> = (0..rng.random_range(0..5)).map(|_| number(rng, 6)).collect();
        let end = at + rng.random_range(0..40);
        let offsets = if rng.random_bool(0.5) {
            format!("{at},{end}")
        } else {
            format!("{},{}", number(rng, data as u64 + 1), number(rng, data as u64 + 1))
        };
        at = end;
        let dtype = pick(
            rng,
            &["F32", "F64", "BF16", "F16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "X"],
        );
        let name = pick(
            rng,
            &["w", "head.weight", "cls_token", "model/w", "optim/w.step", "/", ""],
        );
        entries.push(format!(
            r#""{name}{i}":{{"dtype":"{dtype}","shape":[{}],"data_offsets":[{offsets}]}}"#,
            shape.join(",")
        ));
    }
    if rng.random_bool(0.3) {
        entries.push(r#""__metadata__":{"format":"masksub-checkpoint","version":"1","step":"1","seed":"2"}"#.into());
    }
    let header = format!("{{{}}}", entries.join(","));
    let len = if rng.random_bool(0.9) {
        header.len() as u64
    } else {
        pick(rng, &LIES)
    };
    let len = len.to_le_bytes();
    let data = if rng.random_bool(0.7) { at as usize } else { data };
    [&len[..], header.as_bytes(), &vec![0x3f; data]].concat()
}

/// A number of a header: small for the most part.
fn number(rng: &mut impl Rng, below: u64) -> String {
    match rng.random_range(0..8) {
        0 => pick(rng, &LIES).to_string(),
        1 => pick(rng, &["-1", "1e3", "18446744073709551616", "0.5", "null"]).into(),
        _ => rng.random_range(0..below).to_string(),
    }
}

/// A pickle of random instructions, most of which find what they take.
pub fn pickle(rng: &mut impl Rng) -> Vec<u8> {
    let mut pickle = vec![0x80, pick(rng, &[2, 4])];
    if rng.random_bool(0.5) {
        pickle.extend(b"}");
    }
    for _ in 0..rng.random_range(0..120) {
        instruction(rng, &mut pickle);
    }
    if rng.random_bool(0.7) {
        pickle.extend(weight(rng));
    }
    if rng.random_bool(0.9) {
        pickle.push(b'.');
    }
    pickle
}

fn instruction(rng: &mut impl Rng, pickle: &mut Vec<u8>) {
    const PLAIN: &[u8] = b"N()]}\x8f\x85\x86\x87tlduesa\x90\x91012RbQ\x81\x92\x93\x94.";
    match rng.random_range(0..12) {
        0..5 => pickle.push(pick(rng, PLAIN)),
        5 => {
            let lie = pick(rng, &LIES).to_le_bytes();
            let (opcode, len) = pick(rng, &[(b'K', 1), (b'M', 2), (b'J', 4), (b'G', 8), (0x95, 8)]);
            pickle.push(opcode);
            pickle.extend(&lie[..len]);
        }
        6 => {
            let text = pick(rng, &["w", "model", "state_dict", "storage", "head.weight", "0"]);
            pickle.extend([0x8c, text.len() as u8]);
            pickle.extend(text.as_bytes());
        }
        7 => {
            // A length that lies.
            let lie = pick(rng, &LIES).to_le_bytes();
            let (opcode, len) = pick(
                rng,
                &[
                    (b'X', 4),
                    (0x8d, 8),
                    (b'B', 4),
                    (0x8e, 8),
                    (0x8a, 1),
                    (0x8b, 4),
                    (0x96, 8),
                ],
            );
            pickle.push(opcode);
            pickle.extend(&lie[..len]);
        }
        8 => pickle.extend([pick(rng, b"hq"), rng.random_range(0..4)]),
        9 => {
            pickle.push(pick(rng, b"jr"));
            pickle.extend(rng.random::<u32>().to_le_bytes());
        }
        10 => {
            let global = pick(
                rng,
                &[
                    "collections\nOrderedDict\n",
                    "torch._utils\n_rebuild_tensor_v2\n",
                    "torch\nFloatStorage\n",
                    "posix\nsystem\n",
                ],
            );
            pickle.push(b'c');
            pickle.extend(global.as_bytes());
        }
        _ => pickle.push(rng.random()),
    }
}

/// A name and a tensor, whose offset, size and strides say anything.
fn weight(rng: &mut impl Rng) -> Vec<u8> {
    let mut number = |pickle: &mut Vec<u8>| {
        if rng.random_bool(0.3) {
            pickle.extend([0x8a, 8]);
            pickle.extend(pick(rng, &LIES).to_le_bytes());
        } else {
            pickle.extend([b'K', rng.random_range(0..5)]);
        }
    };
    let mut pickle = b"X\x0b\0\0\0head.weightctorch._utils\n_rebuild_tensor_v2\n(\
        (X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
        .to_vec();
    number(&mut pickle);
    for _size_and_strides in 0..2 {
        pickle.push(b'(');
        number(&mut pickle);
        number(&mut pickle);
        pickle.push(b't');
    }
    pickle.extend(b"tRs");
    pickle
}
