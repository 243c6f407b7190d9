//! Elements of a tensor, read from its file in their order.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use candle_core::{DType, Device, Tensor};

use super::part::{Part, AT_ONCE};
use super::stored::Stored;
use crate::error::Fault;
use crate::ops::{advise_huge_pages, on_own_threads, own_threads};

/// Most elements from the first to the last for each that a tensor has, for all of them to be read: a column of a large
/// matrix is read alone.
const MOST_SPREAD: usize = 4;

/// The bytes of a tensor's elements, one behind the other, as its file has them. Memory is asked for, and may be
/// refused.
pub(super) fn read(part: &Part, stored: &Stored) -> Result<Vec<u8>, Fault> {
    let size = stored.dtype.size_in_bytes();
    let (count, span) = (stored.elem_count(), stored.span());
    let mut reader = part.reader();
    reader.seek(SeekFrom::Start(stored.start))?;
    if span > count.saturating_mul(MOST_SPREAD) {
        let mut elements = reserved(count * size)?;
        scattered(reader, stored, &mut elements)?;
        return Ok(elements);
    }
    let mut bytes = reserved(span * size)?;
    bytes.resize(span * size, 0);
    reader.read_exact(&mut bytes)?;
    if stored.is_in_order() {
        return Ok(bytes);
    }
    let mut elements = reserved(count * size)?;
    in_order(&bytes, stored, &mut elements);
    Ok(elements)
}

/// Elements that a thread reads at a time: 1 MiB of `f32`.
const PIECE: usize = 1 << 18;

/// Writes a tensor's elements to `numbers`, of which there are as many: those that lie in order straight from the file,
/// on several threads, and in one pass where they are of another dtype.
pub(super) fn read_f32(part: &Part, stored: &Stored, numbers: &mut [f32]) -> Result<(), Fault> {
    let (dtype, size) = (stored.dtype, stored.dtype.size_in_bytes());
    if !stored.is_in_order() {
        let elements = read(part, stored)?;
        let mut pieces = elements.chunks(PIECE * size).zip(numbers.chunks_mut(PIECE));
        return pieces.try_for_each(|(elements, numbers)| convert(elements, dtype, numbers));
    }
    let threads = if AT_ONCE { own_threads(numbers.len()) } else { 1 };
    let starts = (stored.start..).step_by(PIECE * size);
    let mut pieces: Vec<_> = numbers
        .chunks_mut(PIECE)
        .zip(starts)
        .map(|(numbers, start)| (start, numbers, Ok(())))
        .collect();
    on_own_threads(&mut pieces, threads, |(start, numbers, result)| {
        *result = read_piece(part, *start, dtype, numbers);
    });
    pieces.into_iter().try_for_each(|(_, _, result)| result)
}

/// Elements that lie one behind the other.
fn read_piece(part: &Part, start: u64, dtype: DType, numbers: &mut [f32]) -> Result<(), Fault> {
    if dtype != DType::F32 {
        let mut elements = vec![0; numbers.len() * dtype.size_in_bytes()];
        part.read_exact_at(start, &mut elements)?;
        return convert(&elements, dtype, numbers);
    }
    part.read_exact_at(start, bytemuck::cast_slice_mut(numbers))?;
    for number in numbers {
        *number = f32::from_bits(u32::from_le(number.to_bits()));
    }
    Ok(())
}

/// Elements as a file has them to as many numbers.
fn convert(elements: &[u8], dtype: DType, numbers: &mut [f32]) -> Result<(), Fault> {
    let converted = Tensor::from_raw_buffer(elements, dtype, &[numbers.len()], &Device::Cpu)
        .and_then(|elements| elements.to_dtype(DType::F32)?.to_vec1::<f32>())
        .map_err(|error| Fault::of_candle("its elements cannot be read as numbers", error))?;
    numbers.iter_mut().zip(converted).for_each(|(to, from)| *to = from);
    Ok(())
}

/// So many numbers, in memory that was not touched yet. Above 256 MiB it is asked for first, and may be
/// refused. Of less the process ends where there is none, as for any other tensor of candle's.
pub(super) fn zeros(count: usize) -> Result<Vec<f32>, Fault> {
    // `vec!` takes pages that are zero already, but ends the process where there is no memory.
    const FEW: usize = 1 << 26;
    if count > FEW && Vec::<f32>::new().try_reserve_exact(count).is_err() {
        return Err(too_long(count.saturating_mul(size_of::<f32>())));
    }
    let mut numbers = vec![0.0; count];
    advise_huge_pages(&mut numbers);
    Ok(numbers)
}

fn too_long(len: usize) -> Fault {
    format!("{len} bytes of a tensor in it do not fit in memory").into()
}

/// An empty vector with room for so many bytes.
fn reserved(len: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![];
    match bytes.try_reserve_exact(len) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(too_long(len)),
    }
}

/// Where each element of a strided tensor lies, in their order, in elements from the first.
fn places(stored: &Stored) -> impl Iterator<Item = usize> + '_ {
    let mut index = vec![0; stored.shape.len()];
    (0..stored.elem_count()).map(move |_| {
        let place: usize = index.iter().zip(&stored.strides).map(|(i, stride)| i * stride).sum();
        // The next element: the last index counts on, and where it is at its end, the one before.
        for (i, n) in index.iter_mut().zip(&stored.shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
        place
    })
}

/// Puts the elements of a strided tensor one behind the other: `bytes` are all from the first to the last.
fn in_order(bytes: &[u8], stored: &Stored, ordered: &mut Vec<u8>) {
    match stored.dtype.size_in_bytes() {
        2 => in_order_of::<2>(bytes, stored, ordered),
        4 => in_order_of::<4>(bytes, stored, ordered),
        8 => in_order_of::<8>(bytes, stored, ordered),
        _ => in_order_of::<1>(bytes, stored, ordered),
    }
}

/// Of elements of N bytes: matrix by matrix, whose sides are the last two, and each in squares, of which all lines are
/// still at hand when the next column of them is read.
fn in_order_of<const N: usize>(bytes: &[u8], stored: &Stored, ordered: &mut Vec<u8>) {
    const SQUARE: usize = 32;
    let (elements, _) = bytes.as_chunks::<N>();
    let padded = |of: &[usize], fill: usize| [&vec![fill; 2usize.saturating_sub(of.len())], of].concat();
    let (shape, strides) = (padded(&stored.shape, 1), padded(&stored.strides, 0));
    let (Some((outer, &[rows, columns])), Some((outer_strides, &[down, right]))) =
        (shape.split_last_chunk::<2>(), strides.split_last_chunk::<2>())
    else {
        return;
    };
    let outer = Stored {
        shape: outer.to_vec(),
        strides: outer_strides.to_vec(),
        ..stored.clone()
    };
    if rows * columns == 0 {
        return;
    }
    for start in places(&outer) {
        let before = ordered.len();
        ordered.resize(before + rows * columns * N, 0);
        let (matrix, _) = ordered.get_mut(before..).unwrap_or_default().as_chunks_mut::<N>();
        for (top, left) in (0..rows)
            .step_by(SQUARE)
            .flat_map(|top| (0..columns).step_by(SQUARE).map(move |left| (top, left)))
        {
            let within = left..columns.min(left + SQUARE);
            for (row, line) in matrix.chunks_mut(columns).enumerate().skip(top).take(SQUARE) {
                let line = line.get_mut(within.clone()).unwrap_or_default();
                for (column, to) in within.clone().zip(line) {
                    *to = elements
                        .get(start + row * down + column * right)
                        .copied()
                        .unwrap_or([0; N]);
                }
            }
        }
    }
}

/// Reads them so from a file that is at the first, and nothing of what lies between.
fn scattered(reader: impl Read + Seek, stored: &Stored, ordered: &mut Vec<u8>) -> io::Result<()> {
    let size = stored.dtype.size_in_bytes();
    // Neighbours are had at once, and little else.
    let mut reader = BufReader::with_capacity(512, reader);
    let mut at = 0;
    for place in places(stored).map(|place| place * size) {
        reader.seek_relative(place as i64 - at as i64)?;
        reader.by_ref().take(size as u64).read_to_end(ordered)?;
        at = place + size;
    }
    if ordered.len() < stored.elem_count() * size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::pretrained::stored::testing::stored;

    #[test]
    fn a_strided_tensor_is_put_in_order() {
        let cases: [(&[usize], &[usize], &[f32]); 4] = [
            // Transposed, a column, every other, none.
            (&[2, 3], &[1, 2], &[0.0, 2.0, 4.0, 1.0, 3.0, 5.0]),
            (&[3], &[2], &[0.0, 2.0, 4.0]),
            (&[2, 1, 2], &[4, 9, 1], &[0.0, 1.0, 4.0, 5.0]),
            (&[0, 3], &[3, 1], &[]),
        ];
        for (shape, strides, expected) in cases {
            let stored = stored(shape, strides);
            let bytes: Vec<u8> = (0..stored.span()).flat_map(|i| (i as f32).to_le_bytes()).collect();
            let expected: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (mut ordered, mut alone) = (vec![], vec![]);
            in_order(&bytes, &stored, &mut ordered);
            assert_eq!(ordered, expected, "{shape:?} {strides:?}");
            scattered(Cursor::new(&bytes), &stored, &mut alone).unwrap();
            assert_eq!(alone, expected, "{shape:?} {strides:?}");
            if let Some(torn) = bytes.len().checked_sub(1) {
                assert!(scattered(Cursor::new(&bytes[..torn]), &stored, &mut vec![]).is_err());
            }
        }
    }

    #[test]
    fn numbers_are_the_elements_of_any_dtype_in_any_order() {
        const START: usize = 3;
        let values: Vec<f32> = (0..2 * PIECE + 5).map(|i| (i % 251) as f32).collect();
        let tensor = Tensor::new(values.clone(), &Device::Cpu).unwrap();
        let directory = tempfile::tempdir().unwrap();
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I64, DType::U8] {
            let file = directory.path().join("w");
            let tensor = tensor.to_dtype(dtype).unwrap();
            safetensors::serialize_to_file([("w", &tensor)], None, &file).unwrap();
            // Its numbers, somewhere.
            let bytes = std::fs::read(&file).unwrap();
            let bytes = &bytes[bytes.len() - values.len() * dtype.size_in_bytes()..];
            std::fs::write(&file, [&[0; START], bytes].concat()).unwrap();
            let part = Part::open(&file).unwrap();
            let numbers = |shape: &[usize], strides: &[usize]| {
                let stored = Stored {
                    dtype,
                    start: START as u64,
                    ..stored(shape, strides)
                };
                let mut numbers = zeros(stored.elem_count()).unwrap();
                read_f32(&part, &stored, &mut numbers).map(|()| numbers)
            };
            assert!(numbers(&[values.len()], &[1]).unwrap() == values, "{dtype:?}");
            let (rows, columns) = (512, 1024);
            let transposed: Vec<f32> = (0..rows * columns)
                .map(|i| values[i % columns * rows + i / columns])
                .collect();
            assert!(
                numbers(&[rows, columns], &[1, rows]).unwrap() == transposed,
                "{dtype:?}"
            );
            assert!(numbers(&[values.len() + 1], &[1]).is_err(), "{dtype:?}");
        }
        let message = zeros(1 << 60).unwrap_err().to_string();
        assert!(message.contains("do not fit in memory"), "{message}");
    }

    // Two numbers, half a terabyte apart.
    #[cfg(unix)]
    #[test]
    fn what_lies_between_the_elements_is_not_read() {
        use std::os::unix::fs::FileExt as _;
        let (directory, apart) = (tempfile::tempdir().unwrap(), 1 << 37);
        let path = directory.path().join("w");
        let file = std::fs::File::create(&path).unwrap();
        file.write_all_at(&3.0f32.to_le_bytes(), 0).unwrap();
        file.write_all_at(&5.0f32.to_le_bytes(), 4 * apart as u64).unwrap();
        let part = Part::open(&path).unwrap();
        let elements = [3.0f32, 5.0].map(f32::to_le_bytes).concat();
        assert_eq!(read(&part, &stored(&[2], &[apart])).unwrap(), elements);
        let error = read(&part, &stored(&[1 << 50], &[1])).unwrap_err().to_string();
        assert!(error.contains("do not fit in memory"), "{error}");
    }
}
