//! Steps over many parameters in a few launches: AdamW, LAMB, moving averages, sums of squares.

use super::launch::{Address, Element, Launch};

/// Elements of a chunk, as in `optimizer.cu`, and the threads that go through it.
const CHUNK: u64 = 16_384;
const THREADS: u32 = 256;

/// A parameter with its state, of what there is none with address 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parameter {
    /// The weights, the gradient (or what the weights move towards), and the two moments.
    pub(crate) addresses: [Address; 4],
    pub(crate) len: usize,
    pub(crate) settings: Settings,
}

/// What differs from parameter to parameter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// The learning rate, or the share of the way.
    pub(crate) lr: f32,
    pub(crate) weight_decay: f32,
    /// 1 / (1 - beta1^t) and 1 / √(1 - beta2^t).
    pub(crate) m_scale: f32,
    pub(crate) root_scale: f32,
}

/// What all parameters have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adam {
    pub(crate) grad_scale: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
}

/// Where all parameters are: words of a table that kernels read.
pub(super) struct Table {
    pub(super) words: Vec<u64>,
    parameters: u32,
    chunks: u32,
}

impl Table {
    /// Of parameters none of which is empty.
    pub(super) fn new(parameters: &[Parameter]) -> candle_core::Result<Self> {
        let mut words = Vec::with_capacity(8 * parameters.len());
        let mut chunks = 0;
        for Parameter {
            addresses,
            len,
            settings,
        } in parameters
        {
            words.extend(addresses);
            words.push(*len as u64);
            let Settings {
                lr,
                weight_decay,
                m_scale,
                root_scale,
            } = *settings;
            let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
            words.push(pair(chunks as u32, lr.to_bits()));
            words.push(pair(weight_decay.to_bits(), m_scale.to_bits()));
            words.push(pair(root_scale.to_bits(), 0));
            chunks += (*len as u64).div_ceil(CHUNK);
        }
        if chunks > i32::MAX as u64 {
            candle_core::bail!("parameters of {chunks} chunks are more than a kernel can count");
        }
        Ok(Self {
            words,
            parameters: parameters.len() as u32,
            chunks: chunks as u32,
        })
    }

    /// Numbers, in `f64`, of so many sums over each chunk, and over each parameter.
    pub(super) fn scratch(&self, columns: usize) -> [usize; 2] {
        [self.chunks, self.parameters].map(|count| count as usize * columns)
    }

    fn launch(&self, name: &str, addresses: &[Address], numbers: &[f32]) -> Launch {
        let grid = ([self.chunks, 1], [THREADS, 1]);
        Launch::new((name, Element::F32), grid, addresses, &[self.parameters], numbers)
    }

    /// The sums over each parameter's chunks.
    fn totals(&self, columns: u32, [table, sums, totals]: [Address; 3]) -> Launch {
        let warps = THREADS / 32;
        let grid = ([(self.parameters * columns).div_ceil(warps), 1], [THREADS, 1]);
        let sizes = [self.parameters, columns, self.chunks];
        Launch::new(
            ("chunk_totals", Element::F32),
            grid,
            &[table, sums, totals],
            &sizes,
            &[],
        )
    }

    pub(super) fn adamw(&self, table: Address, adam: &Adam) -> Launch {
        let &Adam {
            grad_scale,
            beta1,
            beta2,
            eps,
        } = adam;
        let numbers = [grad_scale, 1.0 - beta1, beta2, 1.0 - beta2, eps];
        self.launch("adamw", &[table], &numbers.map(|number| number as f32))
    }

    /// `scratch` is that of two columns.
    pub(super) fn lamb(&self, table: Address, [sums, totals]: [Address; 2], adam: &Adam) -> [Launch; 3] {
        let &Adam {
            grad_scale,
            beta1,
            beta2,
            eps,
        } = adam;
        let numbers = [grad_scale, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps];
        [
            self.launch("lamb_moments", &[table, sums], &numbers.map(|number| number as f32)),
            self.totals(2, [table, sums, totals]),
            self.launch("lamb_step", &[table, totals], &[eps as f32]),
        ]
    }

    /// Moves weights by the share `lr` of the way towards what is in the gradient's place.
    pub(super) fn lerp(&self, table: Address) -> Launch {
        self.launch("lerp", &[table], &[])
    }

    /// The sum of the squares of each gradient; `scratch` is that of one column.
    pub(super) fn squares(&self, table: Address, [sums, totals]: [Address; 2]) -> [Launch; 2] {
        [
            self.launch("squares", &[table, sums], &[]),
            self.totals(1, [table, sums, totals]),
        ]
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::{DType, Device, Result, Storage, Tensor};

    use super::{Adam, Parameter, Settings, Table};
    use crate::ops::cpu::kernel::with_storages;
    use crate::ops::cuda::device::{address_of, run_on};

    /// Tensors of one parameter, of equal lengths, `f32`, contiguous and on one CUDA device: as [`Parameter`] has them.
    pub(crate) struct Tensors<'a> {
        pub(crate) tensors: [Option<&'a Tensor>; 4],
        pub(crate) settings: Settings,
    }

    /// Calls `f` with a table of the parameters, and where it is on their device.
    fn with_table<T>(parameters: &[Tensors], f: impl FnOnce(&Table, &Tensor) -> Result<T>) -> Result<T> {
        let all: Vec<_> = parameters.iter().flat_map(|p| p.tensors).flatten().collect();
        let Some(device) = all.first().map(|tensor| tensor.device().clone()) else {
            candle_core::bail!("a kernel for CUDA was called without a tensor");
        };
        // What the kernels write is locked for reading only: as everything on this stream, what others do with it
        // comes before or after.
        let stream = device.as_cuda_device()?.cuda_stream();
        with_storages(&all, |storages| {
            let mut syncs = vec![];
            let mut opened = storages.iter().zip(&all);
            let mut table = Vec::with_capacity(parameters.len());
            for parameter in parameters {
                let mut addresses = [0; 4];
                let mut len = 0;
                let places = addresses.iter_mut().zip(parameter.tensors);
                for (at, _) in places.filter(|(_, tensor)| tensor.is_some()) {
                    let Some((Storage::Cuda(storage), tensor)) = opened.next() else {
                        candle_core::bail!("a kernel for CUDA was called with a tensor that is elsewhere");
                    };
                    let (address, sync) = address_of(storage, tensor.layout(), &stream)?;
                    *at = address;
                    len = tensor.elem_count();
                    syncs.push(sync);
                }
                let settings = parameter.settings;
                table.push(Parameter {
                    addresses,
                    len,
                    settings,
                });
            }
            let table = Table::new(&table)?;
            let words: Vec<_> = table.words.iter().map(|&word| word as i64).collect();
            let on_device = Tensor::from_slice(&words, words.len(), &device)?;
            f(&table, &on_device)
        })
    }

    /// AdamW's step of all parameters, in their memory.
    pub(crate) fn adamw(parameters: &[Tensors], adam: &Adam) -> Result<()> {
        with_table(parameters, |table, at| {
            let [] = run_on([Some(at)], [], |[at], []| vec![table.adamw(at, adam)])?;
            Ok(())
        })
    }

    /// LAMB's step of all parameters, in their memory.
    pub(crate) fn lamb(parameters: &[Tensors], adam: &Adam) -> Result<()> {
        with_table(parameters, |table, at| {
            let scratch = table.scratch(2).map(|len| (len.into(), DType::F64));
            let _ = run_on([Some(at)], scratch, |[at], scratch| {
                table.lamb(at, scratch, adam).into()
            })?;
            Ok(())
        })
    }

    /// Moves each average by `share` of the way towards its weights.
    pub(crate) fn lerp(pairs: &[(&Tensor, &Tensor)], share: f64) -> Result<()> {
        let settings = Settings {
            lr: share as f32,
            ..Settings::default()
        };
        let tensors = |&(average, weights)| Tensors {
            tensors: [Some(average), Some(weights), None, None],
            settings,
        };
        with_table(&pairs.iter().map(tensors).collect::<Vec<_>>(), |table, at| {
            let [] = run_on([Some(at)], [], |[at], []| vec![table.lerp(at)])?;
            Ok(())
        })
    }

    /// The sum of the squares of each tensor, all read back at once.
    pub(crate) fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
        let parameters = tensors.iter().map(|&tensor| Tensors {
            tensors: [None, Some(tensor), None, None],
            settings: Settings::default(),
        });
        let totals = with_table(&parameters.collect::<Vec<_>>(), |table, at| {
            let scratch = table.scratch(1).map(|len| (len.into(), DType::F64));
            let [_, totals] = run_on([Some(at)], scratch, |[at], scratch| table.squares(at, scratch).into())?;
            Ok(totals)
        })?;
        totals.to_device(&Device::Cpu)?.to_vec1()
    }
}
