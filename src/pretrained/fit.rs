//! Weights in a model's shapes: positions resized, channels summed, a head for other classes drawn anew.

use candle_core::{DType, Tensor};

use super::format::Format;
use super::names::{is_head, INPUT_KERNELS, NORM, POOL_LATENT, POSITION_TABLE, POS_EMBED, REG_TOKEN};
use super::resize::{self, Resize};
use super::source::PeerSource;
use super::square;
use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::weights::Value;

/// Channels of the images that published models are for.
const COLOURS: usize = 3;

impl PeerSource {
    /// The weight in the shape asked for, or `None` where the head is to be drawn anew.
    pub(super) fn fitted(
        &mut self,
        name: &str,
        key: &str,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Option<(Value, Vec<String>)>> {
        let fitted = match key {
            POS_EMBED => self.fitted_positions(key, shape)?,
            _ => self.with_its_position(key, shape)?,
        };
        let Some((found, names)) = self.found(key) else {
            return Ok(None);
        };
        if let Some(positions) = fitted {
            return Ok(Some((Value::Shared(positions), names)));
        }
        let got = found.shape();
        let misshapen = || Error::MisshapenWeight {
            path: name.to_string(),
            got: got.clone(),
            expected: shape.to_vec(),
            source_name: format!("{} (as {})", self.file.path, names.join(", ")),
        };
        // [1, 1, D] and `[D]` are the same to those who write them.
        let filled = |shape: &[usize]| shape.iter().copied().skip_while(|n| *n == 1).collect::<Vec<_>>();
        if found.is_there() && filled(&got) == filled(shape) && !self.lies_otherwise(key, &got) {
            self.check_pooling(key)?;
            return Ok(Some((found.value(&self.file, shape, dtype)?, names)));
        }
        match (&got[..], shape) {
            ([offsets, heads], [to_offsets, to_heads]) if key.ends_with(POSITION_TABLE) && heads == to_heads => {
                let to = self.grid_told(key);
                let Some(tables) = Tables::of(*offsets, *to_offsets, to) else {
                    return Err(misshapen());
                };
                let (table, how) = (found.read(&self.file)?, self.resize(key));
                let resized = tables.resized(&table, how)?.reshape(shape)?;
                let sides = (tables.from.width, (tables.to.height, tables.to.width), how);
                *self.done.tables.entry(sides).or_default() += 1;
                Ok(Some((Value::Shared(resized), names)))
            }
            ([classes, dim @ ..], [to_classes, to_dim @ ..]) if is_head(key) && dim == to_dim => {
                self.done.head = Some((*classes, *to_classes));
                self.taken.extend(names);
                Ok(None)
            }
            (&[out, COLOURS, h, w], &[to_out, channels, to_h, to_w])
                if INPUT_KERNELS.contains(&key) && (out, h, w) == (to_out, to_h, to_w) && channels > 0 =>
            {
                let kernel = with_channels(&found.read(&self.file)?, channels)?;
                let how = if channels == 1 { "summed" } else { "repeated and scaled" };
                self.done
                    .lines
                    .push(format!("{key}: {COLOURS} -> {channels} channels, {how}"));
                Ok(Some((Value::Shared(kernel), names)))
            }
            _ => Err(misshapen()),
        }
    }

    /// Tells whether a table of this shape is for another grid than the model's: it may have as many offsets.
    fn lies_otherwise(&self, key: &str, shape: &[usize]) -> bool {
        match shape {
            [offsets, _] if key.ends_with(POSITION_TABLE) => {
                let tables = Tables::of(*offsets, *offsets, self.grid_told(key));
                tables.is_some_and(|tables| tables.from != tables.to)
            }
            _ => false,
        }
    }

    /// The way in which a weight is resized.
    pub(super) fn resize(&self, key: &str) -> Resize {
        let registers = self.found(REG_TOKEN).is_some();
        let resize = self.fitting.resize;
        resize.unwrap_or_else(|| self.format.resize(key, registers))
    }

    /// Refuses the head of a classifier that reads no norm for a model that has taken the file's: its logits would be
    /// others, and no weight missing or left over.
    fn check_pooling(&self, key: &str) -> Result<()> {
        let (got, pool, norm) = match self.format {
            Format::HfClipClassifier if self.has_taken(NORM) => ("one with a final norm", "MeanOnly", "no norm"),
            Format::HfSiglip if self.has_taken(POOL_LATENT) => {
                ("Attention", "FinalNormThenMean", "no attention pooling")
            }
            _ => return Ok(()),
        };
        if !is_head(key) {
            return Ok(());
        }
        let allowed = format!(
            "vit::Pool::{pool}: the classifier of {} ({}) reads the mean of the patch tokens, and {norm}",
            self.file.path, self.format
        );
        Err(Error::invalid("pool", got, allowed))
    }
}

/// Tables of relative positions of two sizes: a row for each offset, and behind them those of a class token.
struct Tables {
    from: Grid,
    to: Grid,
    /// Rows for pairs with the class token, which stay as they are: BEiT's three.
    others: usize,
}

impl Tables {
    const OF_CLASS_TOKEN: usize = 3;

    /// Of so many rows, `to` of a model that has told the grid of its patches.
    fn of(from: usize, to: usize, grid: Option<Grid>) -> Option<Self> {
        let others = grid.map_or(0, |_| Self::OF_CLASS_TOKEN);
        let side = square(from.checked_sub(others)?)?;
        let to = match grid {
            Some(grid) => Grid::new(2 * grid.height - 1, 2 * grid.width - 1),
            None => square(to).map(|side| Grid::new(side, side))?,
        };
        Some(Self {
            from: Grid::new(side, side),
            to,
            others,
        })
    }

    fn resized(&self, table: &Tensor, how: Resize) -> Result<Tensor> {
        let offsets = table.narrow(0, 0, self.from.len())?;
        let resized = resize::resized(&offsets, self.from, self.to, how)?;
        if self.others == 0 {
            return Ok(resized);
        }
        let others = table
            .narrow(0, self.from.len(), self.others)?
            .to_dtype(resized.dtype())?;
        Ok(Tensor::cat(&[resized, others], 0)?)
    }
}

/// The kernel [O, 3, h, w] for images of other channels, as timm's `adapt_input_conv` makes it
/// (`timm/models/_manipulate.py`): the sum for one channel, [O, 1, h, w]; for C, the three in turns, times 3 / C.
fn with_channels(kernel: &Tensor, channels: usize) -> Result<Tensor> {
    let each = kernel.elem_count() / COLOURS;
    // As it is repeated, as it is scaled, and in the dtype of the model.
    check::fits_memory(
        "in_channels",
        channels,
        each.checked_mul(channels),
        3 * size_of::<f64>(),
    )?;
    let kernel = match kernel.dtype() {
        DType::F64 => kernel.clone(),
        _ => kernel.to_dtype(DType::F32)?,
    };
    if channels == 1 {
        return Ok(kernel.sum_keepdim(1)?);
    }
    let turns: Vec<u32> = (0..channels).map(|channel| (channel % COLOURS) as u32).collect();
    let turns = Tensor::new(turns, kernel.device())?;
    Ok((kernel.index_select(&turns, 1)? * (COLOURS as f64 / channels as f64))?)
}
