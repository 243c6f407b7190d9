//! Archives of `numpy.savez`, as JAX projects publish weights: their arrays in place, turned to PyTorch's shapes.

use std::collections::BTreeMap;

use candle_core::DType;

use super::archive::{Archive, Run};
use super::part::Part;
use super::stored::{Contents, Dictionary, Stored};
use crate::error::Fault;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header of an array that is read, in bytes: those of arrays of numbers have about 118.
const MOST_HEADER: usize = 1 << 14;
/// Most dimensions of an array: those of weights have 4.
const MOST_DIMS: usize = 8;
/// Start of the names of what big_vision has for all blocks in one array, the blocks first.
const SCANNED: &str = "Transformer/encoderblock/";
/// Most blocks in one array.
const MOST_BLOCKS: usize = 1024;

/// Reads what an archive says of its arrays. Their names get dots for slashes.
pub(super) fn read(part: &Part, archive: &Archive) -> Result<Contents, Fault> {
    let arrays = archive.entries.iter();
    let arrays: Vec<_> = arrays
        .filter_map(|(name, run)| Some((name.strip_suffix(".npy")?, *run)))
        .collect();
    if arrays.is_empty() {
        return Err("it is a zip archive, but neither torch.save's nor numpy.savez's".into());
    }
    if let Some(name) = &archive.compressed {
        return Err(format!("{name} is compressed in it: save it by numpy.savez, not savez_compressed").into());
    }
    let mut tensors = BTreeMap::new();
    for (name, run) in arrays {
        let bytes = part.bytes(run.start, run.bytes.min(MOST_HEADER as u64 + 12))?;
        let array = Array::parse(&bytes).map_err(|fault| fault.of_part(name))?;
        for (name, stored) in array.stored(name, run)? {
            let name = name.replace('/', ".");
            if tensors.insert(name.clone(), stored).is_some() {
                return Err(format!("two arrays in it have the name {name}, with slashes or dots").into());
            }
        }
    }
    let whole = Dictionary {
        tensors,
        ..Default::default()
    };
    Ok(Contents {
        dictionaries: vec![whole],
        ..Default::default()
    })
}

/// The header of an array (numpy/lib/format.py), whose numbers lie behind it in C's order.
#[derive(Debug, PartialEq)]
struct Array {
    dtype: DType,
    shape: Vec<usize>,
    /// Where the numbers begin.
    data: usize,
}

impl Array {
    fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let short = || Fault::from("its header is no array's");
        let (version, rest) = bytes
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_at_checked(2))
            .ok_or_else(short)?;
        let (len, rest) = match version {
            [1, _] => rest.split_at_checked(2),
            _ => rest.split_at_checked(4),
        }
        .ok_or_else(short)?;
        let mut wide = [0; 4];
        wide.iter_mut().zip(len).for_each(|(to, from)| *to = *from);
        let start = MAGIC.len() + version.len() + len.len();
        let len = u32::from_le_bytes(wide) as usize;
        let header = rest
            .get(..len)
            .and_then(|header| std::str::from_utf8(header).ok())
            .ok_or_else(short)?;
        // A dictionary, as Python writes it out.
        let field = |name: &str| {
            header
                .split_once(&format!("'{name}':"))
                .map(|(_, value)| value.trim_start())
        };
        let descr = field("descr").and_then(|value| value.strip_prefix('\'')?.split_once('\''));
        let (descr, _) = descr.ok_or("its elements are no plain numbers")?;
        let dtype = match descr {
            "<f4" => DType::F32,
            "<f8" => DType::F64,
            "<f2" => DType::F16,
            // numpy knows no bfloat16: two bytes of no meaning.
            "|V2" | "<V2" => DType::BF16,
            "<i8" => DType::I64,
            "<i4" => DType::I32,
            "|u1" => DType::U8,
            other => return Err(format!("elements of {other} are not read here").into()),
        };
        if !field("fortran_order").is_some_and(|value| value.starts_with("False")) {
            return Err("it is in Fortran's order: save it by numpy.ascontiguousarray".into());
        }
        let shape = field("shape").and_then(|value| value.strip_prefix('(')?.split_once(')'));
        let (shape, _) = shape.ok_or_else(short)?;
        let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty());
        let sides: Vec<&str> = sides.take(MOST_DIMS + 1).collect();
        let shape: Option<Vec<usize>> = sides.iter().map(|side| side.parse().ok()).collect();
        let shape = shape.filter(|shape| shape.len() <= MOST_DIMS).ok_or_else(short)?;
        let data = start + len;
        Ok(Self { dtype, shape, data })
    }

    /// The weights that an array holds, by their names: itself, or those of all blocks where flax scanned over them.
    fn stored(self, name: &str, run: Run) -> Result<Vec<(String, Stored)>, Fault> {
        let Some((before, part)) = name.split_once(SCANNED) else {
            return Ok(vec![(name.to_string(), self.in_pytorchs_shape(name, run)?)]);
        };
        let (depth, shape) = match &self.shape[..] {
            [depth, shape @ ..] if *depth <= MOST_BLOCKS => (*depth, shape.to_vec()),
            shape => return Err(Fault::from(format!("{shape:?} is no shape of all blocks' weights")).of_part(name)),
        };
        Stored::in_order(self.dtype, self.shape.clone()).check(name, run.bytes.saturating_sub(self.data as u64))?;
        let bytes = shape.iter().product::<usize>() * self.dtype.size_in_bytes();
        let of_block = |block: usize| {
            let name = format!("{before}{}_{block}/{part}", SCANNED.trim_end_matches('/'));
            let array = Self {
                shape: shape.clone(),
                data: self.data + block * bytes,
                ..self
            };
            let stored = array.in_pytorchs_shape(&name, run)?;
            Ok((name, stored))
        };
        (0..depth).map(of_block).collect()
    }

    /// The place of the array's numbers, in the shape that PyTorch gives the same weight. Flax has the outputs of a
    /// `kernel` last, and heads in a dimension of their own: [H, W, I, O] is a convolution's [O, I, H, W], and with it
    /// [I, O], [I, heads, D] of a projection to heads, [heads, D, O] of the one behind them, and [heads, D] of a bias.
    fn in_pytorchs_shape(self, name: &str, run: Run) -> Result<Stored, Fault> {
        let contiguous = Stored {
            start: run.start + self.data as u64,
            ..Stored::in_order(self.dtype, self.shape)
        };
        // Before sides are multiplied with one another.
        contiguous.check(name, run.bytes.saturating_sub(self.data as u64))?;
        let (module, leaf) = name.rsplit_once('/').unwrap_or(("", name));
        let (shape, strides) = match (leaf, &contiguous.shape[..]) {
            ("kernel", &[h, w, i, o]) => (vec![o, i, h, w], vec![1, o, w * i * o, i * o]),
            ("kernel", &[heads, dim, o]) if module.ends_with("/out") => (vec![o, heads * dim], vec![1, o]),
            ("kernel", &[i, heads, dim]) => (vec![heads * dim, i], vec![1, heads * dim]),
            ("kernel", &[i, o]) => (vec![o, i], vec![1, o]),
            ("bias", &[heads, dim]) => (vec![heads * dim], vec![1]),
            _ => return Ok(contiguous),
        };
        Ok(Stored {
            shape,
            strides,
            ..contiguous
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(dict: &str) -> Vec<u8> {
        [MAGIC, &[1, 0], &(dict.len() as u16).to_le_bytes(), dict.as_bytes()].concat()
    }

    fn parsed(dict: &str) -> Result<Array, String> {
        Array::parse(&header(dict)).map_err(|fault| fault.to_string())
    }

    #[test]
    fn headers_are_read_as_numpy_writes_them() {
        let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n";
        let (array, data) = (parsed(dict).unwrap(), 10 + dict.len());
        let (dtype, shape) = (DType::F32, vec![3, 4]);
        assert_eq!(array, Array { dtype, shape, data });
        let shape = |shape: &str| {
            parsed(&format!(
                "{{'descr': '|V2', 'fortran_order': False, 'shape': {shape}, }}"
            ))
        };
        assert_eq!(shape("()").unwrap().shape, [0; 0]);
        assert_eq!(shape("(7,)").unwrap().shape, [7]);
        assert_eq!(shape("(7,)").unwrap().dtype, DType::BF16);
        for damaged in ["(7", "(-1,)", "(1, 1, 1, 1, 1, 1, 1, 1, 1)", "(99999999999999999999,)"] {
            assert!(shape(damaged).is_err(), "{damaged}");
        }
        for (dict, fault) in [
            (
                "{'descr': '>f4', 'fortran_order': False, 'shape': ()}",
                "elements of >f4",
            ),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': ()}", "Fortran"),
            (
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}",
                "no plain numbers",
            ),
            ("{}", "no plain numbers"),
        ] {
            let message = parsed(dict).unwrap_err();
            assert!(message.contains(fault), "{message}");
        }
        let whole = header("{'descr': '<f4', 'fortran_order': False, 'shape': (), }");
        for len in 0..whole.len() {
            assert!(Array::parse(&whole[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn an_array_has_no_more_than_its_run() {
        let array = |sides: Vec<usize>| Array {
            dtype: DType::F32,
            shape: sides,
            data: 8,
        };
        let run = Run { start: 100, bytes: 32 };
        let stored = array(vec![2, 3]).in_pytorchs_shape("a/kernel", run).unwrap();
        assert_eq!(
            (&stored.shape[..], &stored.strides[..], stored.start),
            (&[3, 2][..], &[1, 3][..], 108)
        );
        for sides in [vec![7, 1], vec![usize::MAX, 2, usize::MAX], vec![1 << 40; 4]] {
            assert!(
                array(sides.clone()).in_pytorchs_shape("a/kernel", run).is_err(),
                "{sides:?}"
            );
        }
    }

    #[test]
    fn arrays_of_one_name_are_told() {
        use std::io::Write as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("w.npz");
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        let array = [
            &header("{'descr': '<f4', 'fortran_order': False, 'shape': (), }")[..],
            &[0; 4],
        ]
        .concat();
        for (names, told) in [(["a/b", "a/c"], false), (["a/b", "a.b"], true)] {
            let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
            for name in names {
                archive.start_file(format!("{name}.npy"), options).unwrap();
                archive.write_all(&array).unwrap();
            }
            archive.finish().unwrap();
            let part = Part::open(&path).unwrap();
            let read = super::read(&part, &Archive::read(&part).unwrap());
            let message = read.err().map(|fault| fault.to_string()).unwrap_or_default();
            assert_eq!(
                message.contains("two arrays in it have the name a.b"),
                told,
                "{message}"
            );
        }
    }
}
