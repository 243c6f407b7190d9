//! Caches of keys and values, for generation, that do not cut the gradients of training.
//!
//! candle-nn's caches detach what they are given, or copy it where no gradient follows: keys and values of a model that is
//! trained through one never learn. These behave as candle-nn's where no gradient is asked for. Where one is, `append` of
//! a cache that is empty gives back what it was given; one that is not is an [`Error::InvalidArgument`], because the keys
//! in it are of an earlier pass: reset it before each step (`clear_kv_cache` in most of candle-transformers' models). What
//! they hold, and give out by other methods, is detached.
//!
//! All methods that are not here are candle-nn's, through [`Deref`](std::ops::Deref).

mod growing;
mod joined;
mod rotating;
mod scattered;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};

use super::tracked;
use crate::check;
use crate::error::Error;

pub use candle_nn::kv_cache::{rope_i_inplace, IndicesAndMask, RawInterleavedKvCache};
pub use growing::{Cache, KvCache};
pub use joined::{ConcatKvCache, InterleavedKvCache};
pub use rotating::{RotatingCache, RotatingKvCache};
pub use scattered::{ScatteredCacheBuilder, ScatteredKvCache};

/// An error unless the cache of a pass that is differentiated is empty.
fn check_empty(argument: &'static str, length: usize) -> Result<()> {
    if length == 0 {
        return Ok(());
    }
    let value = format!("a tensor with a gradient, for a cache of {length} positions");
    let allowed =
        "detached, or appended to an empty cache: what is in it is of an earlier pass. Reset it before each step";
    Err(Error::invalid(argument, value, allowed).into())
}

/// An error unless `xs` can follow what a cache has `held` along `dim`: what fails later leaves half of it appended.
fn check_follows(argument: &'static str, xs: &Tensor, dim: usize, held: Option<&Tensor>) -> Result<()> {
    if xs.rank() <= dim {
        return Err(Error::shape(argument, xs.dims(), format!("more than {dim} dimensions")).into());
    }
    let Some(held) = held else { return Ok(()) };
    check::same_dtype(argument, xs, "what the cache holds", held)?;
    let others = |xs: &Tensor| [&xs.dims()[..dim], &xs.dims()[dim + 1..]].concat();
    if xs.rank() != held.rank() || others(xs) != others(held) {
        let expected = format!(
            "that of what the cache holds, {:?}, but for dimension {dim}",
            held.dims()
        );
        return Err(Error::shape(argument, xs.dims(), expected).into());
    }
    Ok(())
}

/// A pair of caches, of keys and of values, in what candle-nn's two pairs have in common. Its type is declared with its
/// own docs.
macro_rules! keys_and_values {
    ($(#[$docs:meta])* $pair:ident of $cache:ident; $(#[$new:meta])* new; $(#[$append:meta])* append) => {
        $(#[$docs])*
        #[derive(Clone, Debug)]
        pub struct $pair {
            k: $cache,
            v: $cache,
        }

        impl $pair {
            $(#[$new])*
            pub fn new(dim: usize, max_seq_len: usize) -> Self {
                let [k, v] = [(); 2].map(|()| $cache::new(dim, max_seq_len));
                Self { k, v }
            }

            /// The cache of keys.
            pub fn k_cache(&self) -> &$cache {
                &self.k
            }

            /// The cache of values.
            pub fn v_cache(&self) -> &$cache {
                &self.v
            }

            /// The cache of keys.
            pub fn k_cache_mut(&mut self) -> &mut $cache {
                &mut self.k
            }

            /// The cache of values.
            pub fn v_cache_mut(&mut self) -> &mut $cache {
                &mut self.v
            }

            /// The keys in it, detached.
            ///
            /// # Errors
            /// candle-nn's.
            pub fn k(&self) -> Result<Option<Tensor>> {
                self.k.current_data()
            }

            /// The values in it, detached.
            ///
            /// # Errors
            /// candle-nn's.
            pub fn v(&self) -> Result<Option<Tensor>> {
                self.v.current_data()
            }

            $(#[$append])*
            ///
            /// # Errors
            /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a tensor with a gradient when the cache is
            /// not empty, and for a cache of no positions; [`Error::Shape`](crate::Error::Shape) and
            /// [`Error::DType`](crate::Error::DType) for one that cannot follow what is in it. Nothing is appended then.
            pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
                self.k.check("k", k)?;
                self.v.check("v", v)?;
                Ok((self.k.join(k)?, self.v.join(v)?))
            }

            /// The number of positions that it has seen.
            pub fn current_seq_len(&self) -> usize {
                self.k.current_seq_len()
            }

            /// Empties it.
            pub fn reset(&mut self) {
                self.k.reset();
                self.v.reset();
            }
        }
    };
}
use keys_and_values;

macro_rules! through_deref {
    ($($cache:ident),*) => {$(
        impl std::ops::Deref for $cache {
            type Target = candle_nn::kv_cache::$cache;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl std::ops::DerefMut for $cache {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.0
            }
        }
    )*};
}
use through_deref;
