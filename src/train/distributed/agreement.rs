//! Agreement of all ranks that each of them could do its part.

use std::fmt::Display;

use super::Communicator;
use crate::error::{Error, Result};

const DONE: u8 = 0;
const FAILED: u8 = 1;

/// `result` if all ranks have one, or the error of the first that has none: to be called by all, where one alone may fail
/// (a file that it reads or writes, say) and the others would wait for it.
///
/// ```
/// use masksub::train::distributed::{agree, threads, Communicator};
/// use masksub::Error;
/// let ended = threads::run(3, |ranks| {
///     let read = match ranks.rank() {
///         1 => Err(Error::from(candle_core::Error::Msg("image 7 cannot be read".into()))),
///         rank => Ok(rank),
///     };
///     agree(ranks, read)
/// })?;
/// assert_eq!(ended[2].as_ref().unwrap_err().to_string(), "rank 1: image 7 cannot be read");
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// This rank's own, as it is; [`Error::OtherRank`] for another's.
pub fn agree<T, E: From<Error> + Display>(
    ranks: &dyn Communicator,
    result: std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let (value, _) = exchange(ranks, result.map(|value| (value, vec![])))?;
    Ok(value)
}

/// The same, and a few bytes of each rank to all.
pub(super) fn exchange<T, E: From<Error> + Display>(
    ranks: &dyn Communicator,
    result: std::result::Result<(T, Vec<u8>), E>,
) -> std::result::Result<(T, Vec<Vec<u8>>), E> {
    if ranks.size() == 1 {
        return result.map(|(value, bytes)| (value, vec![bytes]));
    }
    let told = match &result {
        Ok((_, bytes)) => [&[DONE], &bytes[..]].concat(),
        Err(error) => [&[FAILED], format!("{error:#}").as_bytes()].concat(),
    };
    let gathered = ranks.gather(&told);
    let (value, _) = result?;
    let failed = |(rank, bytes): (usize, &[u8])| match bytes.split_first() {
        Some((&DONE, bytes)) => Ok(bytes.to_vec()),
        Some((_, text)) => Err(other(rank, String::from_utf8_lossy(text))),
        None => Err(other(rank, "it does not call the same operation")),
    };
    let all = gathered?;
    let all = all.iter().enumerate().map(|(rank, bytes)| failed((rank, bytes)));
    Ok((value, all.collect::<Result<_>>()?))
}

/// The error of another rank.
pub(super) fn other(rank: usize, message: impl Display) -> Error {
    Error::OtherRank {
        rank,
        message: message.to_string(),
    }
}
