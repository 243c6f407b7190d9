//! What is launched: kernels by their names, with grids and arguments, on addresses in the device's memory.
//!
//! Nothing here needs a device: the tests have the same launches run by an emulator.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::Result;

/// A dtype that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    BF16,
}

impl Element {
    #[cfg(feature = "cuda")]
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
        }
    }
}

/// Where a tensor's elements begin in the device's memory; 0 is none.
pub(crate) type Address = u64;

/// 8-byte words of arguments that any kernel has at most.
const WORDS: usize = 12;

/// A kernel with all it needs.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Its name in the source.
    pub(crate) kernel: String,
    /// Blocks.
    pub(crate) grid: [u32; 2],
    /// Threads of a block.
    pub(crate) block: [u32; 2],
    /// The one argument, a struct.
    pub(crate) args: [u64; WORDS],
}

impl Launch {
    /// Of the kernel `NAME_f32` or `NAME_bf16`, whose struct has `addresses` (or other 8-byte integers), then `sizes`,
    /// then `numbers`.
    pub(super) fn new(
        (name, element): (&str, Element),
        (grid, block): ([u32; 2], [u32; 2]),
        addresses: &[Address],
        sizes: &[u32],
        numbers: &[f32],
    ) -> Self {
        let halves = sizes
            .iter()
            .copied()
            .chain(numbers.iter().map(|number| number.to_bits()));
        let halves: Vec<u32> = halves.collect();
        // In memory the first of two is the lower half of a word.
        let pairs = halves.chunks(2).map(|pair| {
            let upper = pair.get(1).copied().unwrap_or_default();
            u64::from(pair[0]) | u64::from(upper) << 32
        });
        let mut args = [0; WORDS];
        for (arg, word) in args.iter_mut().zip(addresses.iter().copied().chain(pairs)) {
            *arg = word;
        }
        Self {
            kernel: format!("{name}_{}", element.suffix()),
            grid,
            block,
            args,
        }
    }
}

/// Rows of a matrix, and their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(super) rows: u32,
    pub(super) width: u32,
}

impl Rows {
    /// # Errors
    /// If a kernel cannot count so many.
    pub(crate) fn new(rows: usize, width: usize) -> Result<Self> {
        // Of blocks in y there may be 2^16 - 1.
        let most = [i32::MAX as usize, 65_535 * PIECE as usize];
        if rows > most[0] || width > most[1] {
            candle_core::bail!("a kernel of masksub was asked for {rows} rows of {width}, more than it can count");
        }
        let [rows, width] = [rows as u32, width as u32];
        Ok(Self { rows, width })
    }

    /// Of a tensor's last dimension.
    pub(crate) fn of(dims: &[usize]) -> Result<Self> {
        let width = dims.last().copied().unwrap_or(1);
        let rows = dims[..dims.len().max(1) - 1].iter().product();
        Self::new(rows, width)
    }

    /// Of so many elements that stand for themselves. The last row may be shorter.
    pub(crate) fn of_elements(len: usize) -> Result<Self> {
        Self::new(len.div_ceil(PIECE as usize), PIECE as usize)
    }
}

/// As in `common.cu` and `columns.cu`.
const WARP: u32 = 32;
const PIECE: u32 = 1024;
const TILE_COLUMNS: u32 = 32;
const TILE_ROWS: u32 = 8;

/// Warps of a block where each has a row.
const WARPS: u32 = 8;

/// Most chunks of rows that are summed on their own, and the fewest rows of one.
const CHUNKS: u32 = 256;
const CHUNK_ROWS: u32 = 4 * TILE_ROWS;

impl Rows {
    /// A warp for each.
    pub(super) fn warps(self) -> ([u32; 2], [u32; 2]) {
        ([self.rows.div_ceil(WARPS), 1], [WARP * WARPS, 1])
    }

    /// Blocks for each.
    pub(super) fn pieces(self) -> ([u32; 2], [u32; 2]) {
        ([self.rows, self.width.div_ceil(PIECE)], [256, 1])
    }

    /// Rows of a chunk that is summed on its own.
    pub(super) fn chunk_rows(self) -> u32 {
        self.rows.div_ceil(CHUNKS).max(CHUNK_ROWS)
    }

    fn chunks(self) -> u32 {
        self.rows.div_ceil(self.chunk_rows())
    }

    /// A block for some columns of each chunk.
    pub(super) fn tiles(self) -> ([u32; 2], [u32; 2]) {
        let columns = self.width.div_ceil(TILE_COLUMNS);
        ([columns, self.chunks()], [TILE_COLUMNS, TILE_ROWS])
    }
}

/// Sums of columns over chunks of rows, which a second launch adds up.
pub(crate) struct Sums {
    rows: Rows,
    /// Of each column.
    numbers: u32,
}

impl Sums {
    pub(crate) fn new(rows: Rows, numbers: u32) -> Self {
        Self { rows, numbers }
    }

    /// Elements, in `f32`, of the memory in between.
    pub(crate) fn scratch(&self) -> usize {
        self.rows.chunks() as usize * self.numbers as usize * self.rows.width as usize
    }

    /// The second stage: [numbers, width] of the chunks' sums.
    pub(super) fn total(&self, element: Element, [sums, ys]: [Address; 2]) -> Launch {
        let width = self.numbers * self.rows.width;
        let (grid, block) = ([width.div_ceil(TILE_COLUMNS), 1], [TILE_COLUMNS, TILE_ROWS]);
        let sizes = [self.rows.chunks(), width];
        Launch::new(("sum_of_chunks", element), (grid, block), &[sums, ys], &sizes, &[])
    }
}
