//! Positions of a file in a model's number: on another grid, and with or without those of the tokens in front.

use candle_core::{DType, Tensor};

use super::format::Format;
use super::names::{POS_EMBED, TOKENS};
use super::resize::{self, Resize};
use super::source::PeerSource;
use super::square;
use crate::error::{Error, Result};
use crate::grid::Grid;

/// What becomes of the positions of a file.
#[derive(Debug, PartialEq)]
enum Fate {
    /// The shapes tell: they are the model's own, or they do not fit.
    AsTheyAre,
    /// They are resized; the model has not said to which grid where `taken` for a square.
    Resized { from: Grid, to: Grid, taken: bool },
    /// As many as in the file, which does not tell how they lie.
    TakenFor(Grid),
}

impl PeerSource {
    /// The grid of positions, where the model has told it.
    pub(super) fn grid_told(&self, key: &str) -> Option<Grid> {
        self.told.get(key).map(|told| told.grid)
    }

    /// Tokens whose positions the file has, and for which the model has none; those are added to the tokens themselves, as
    /// timm does for DINOv2 with registers: the sum is all that the blocks read.
    fn tokens_with_positions(&self) -> usize {
        let (Some(told), Some((found, _))) = (self.told.get(POS_EMBED), self.found(POS_EMBED)) else {
            return 0;
        };
        let [lead @ .., n, _] = &found.shape()[..] else {
            return 0;
        };
        let tokens = TOKENS.iter().filter(|token| self.found(token).is_some()).count();
        let patches = n.checked_sub(tokens).filter(|patches| *patches > 0);
        let have_them = match self.format {
            Format::HfVit | Format::HfDeit | Format::HfDinov2 | Format::HfClip | Format::OpenClip => patches.is_some(),
            // With or without them, by their number alone.
            _ => {
                let lie = |patches: usize| square(patches).is_some() || patches == told.grid.len();
                square(*n).is_none() && patches.is_some_and(lie)
            }
        };
        if told.prefix == 0 && have_them && lead.iter().all(|n| *n == 1) {
            tokens
        } else {
            0
        }
    }

    /// A token in front of the patches' with the position that the model has no place for; `None` for any other weight.
    pub(super) fn with_its_position(&mut self, key: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let tokens = TOKENS.iter().filter(|token| self.found(token).is_some());
        let row = tokens
            .take(self.tokens_with_positions())
            .position(|token| *token == key);
        let (Some(row), Some(dim)) = (row, shape.last().copied()) else {
            return Ok(None);
        };
        let (Some((token, _)), Some((positions, _))) = (self.found(key), self.found(POS_EMBED)) else {
            return Ok(None);
        };
        let fits = token.shape().iter().product::<usize>() == dim && positions.shape().last() == Some(&dim);
        if !fits || shape.iter().product::<usize>() != dim {
            return Ok(None);
        }
        let position = positions.read(&self.file)?.reshape(((), dim))?.narrow(0, row, 1)?;
        let token = token.read(&self.file)?.reshape((1, dim))?;
        let dtype = match (token.dtype(), position.dtype()) {
            (DType::F64, _) | (_, DType::F64) => DType::F64,
            _ => DType::F32,
        };
        let sum = (token.to_dtype(dtype)? + position.to_dtype(dtype)?)?;
        let line = format!("{key}: with its position, for which the model has none of its own");
        self.done.lines.push(line);
        Ok(Some(sum.reshape(shape)?))
    }

    /// Positions for the model's grid; `None` where they are as they are.
    pub(super) fn fitted_positions(&mut self, key: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let Some((found, _)) = self.found(key) else {
            return Ok(None);
        };
        let (dim, before) = (shape.last().copied().unwrap_or(1), self.tokens_with_positions());
        let mut from = found.shape();
        if let [.., n, _] = &mut from[..] {
            *n -= before;
        }
        let read = || -> Result<Tensor> {
            let rows = found.read(&self.file)?.reshape(((), dim))?;
            Ok(rows.narrow(0, before, rows.dim(0)? - before)?)
        };
        let (fitted, line) = match self.positions(key, &from, shape)? {
            Fate::AsTheyAre
                if before > 0 && from.ends_with(shape.get(shape.len().saturating_sub(2)..).unwrap_or_default()) =>
            {
                return Ok(Some(read()?.reshape(shape)?));
            }
            Fate::AsTheyAre => return Ok(None),
            Fate::Resized { from, to, taken } => {
                // What stands before them, of the class token, stays as it is.
                let positions = read()?;
                let how = self.resize(key);
                if how == Resize::Geometric {
                    return Err(resize::for_tables_alone(from, to));
                }
                let resized = resize::resized(&positions, from, to, how)?;
                let taken = if taken { ", taken for a square" } else { "" };
                (resized, format!("{key}: {from} -> {to} positions{taken}, {how}"))
            }
            Fate::TakenFor(grid) => {
                let line = format!("{key}: {} positions, taken for the model's {grid}", grid.len());
                (read()?, line)
            }
        };
        self.done.lines.push(line);
        Ok(Some(fitted.reshape(shape)?))
    }

    /// What becomes of positions of shape `from` in a model that asks for `to`.
    fn positions(&self, key: &str, from: &[usize], to: &[usize]) -> Result<Fate> {
        let ([lead @ .., n, d], [.., m, to_d]) = (from, to) else {
            return Ok(Fate::AsTheyAre);
        };
        if lead.iter().any(|n| *n != 1) || d != to_d {
            return Ok(Fate::AsTheyAre);
        }
        let told = self.grid_told(key);
        if let (Some(said), Some(told)) = (self.fitting.grid, told.filter(|told| self.fitting.grid != Some(*told))) {
            let allowed = format!("{told}, the model's own, of {m} positions");
            return Err(Error::invalid("grid", said, allowed));
        }
        match told {
            Some(grid) => Ok(on_grid(*n, *m, grid)),
            None => self.on_unknown_grid(*n, *m),
        }
    }

    /// Positions of a model that has not told how they lie.
    fn on_unknown_grid(&self, n: usize, m: usize) -> Result<Fate> {
        // Positions of their own for the class token, and for a distillation token, leave a square.
        let leaves_square = |class: &usize| n > *class && square(n - class).is_some();
        let class = (1..=2).find(leaves_square).unwrap_or(0);
        if m <= class || square(n - class).is_none() {
            return Ok(Fate::AsTheyAre);
        }
        let wanted = m - class;
        match (self.fitting.grid, square(wanted)) {
            (Some(grid), _) if grid.len() == wanted => Ok(on_grid(n, m, grid)),
            (Some(grid), _) => {
                let allowed = format!("of the {wanted} positions that the model has");
                Err(Error::invalid("grid", grid, allowed))
            }
            (None, Some(side)) => Ok(match on_grid(n, m, Grid::new(side, side)) {
                Fate::Resized { from, to, .. } => Fate::Resized { from, to, taken: true },
                other => other,
            }),
            // As many as in the file, however they lie.
            (None, None) if n == m => Ok(Fate::AsTheyAre),
            // A model of the other sort would have a square.
            (None, None) if (0..=2).any(|other| m > other && square(m - other).is_some()) => Ok(Fate::AsTheyAre),
            (None, None) => {
                let allowed = format!(
                    "said by Pretrained::with_grid: the model's {wanted} positions are no square, so that {} of {} cannot \
                     be resized to them",
                    POS_EMBED, self.file.path
                );
                Err(Error::invalid("grid", "not known", allowed))
            }
        }
    }
}

/// What becomes of n positions in a model of m, of which the last lie on a grid. Those of other tokens stand before.
fn on_grid(n: usize, m: usize, grid: Grid) -> Fate {
    let Some(before) = m.checked_sub(grid.len()) else {
        return Fate::AsTheyAre;
    };
    match n.checked_sub(before).map(|patches| (patches, square(patches))) {
        Some((_, Some(side))) if grid == Grid::new(side, side) => Fate::AsTheyAre,
        Some((_, Some(side))) => Fate::Resized {
            from: Grid::new(side, side),
            to: grid,
            taken: false,
        },
        Some((patches, None)) if patches == grid.len() => Fate::TakenFor(grid),
        _ => Fate::AsTheyAre,
    }
}
